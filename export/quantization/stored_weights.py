"""Makes a checkpoint with the dequantized weights of a quantized graph, for comparisons in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train.checkpoint import Checkpoint

from .own_codes import is_quantized
from .trt_formats import TRT_FORMATS, TrtFormat

LAYERS = "layers."  # prefix of the names of quantized weights


@dataclass(frozen=True, slots=True)
class StoredWeights(Mapping[str, Tensor]):
    """Maps names to weights, with the layers' matrices rounded to a format; computes each on request and keeps none.

    weights: the checkpoint's. own: whether the graph stores the numbers of an already quantized directory (GPTQ, AWQ),
    which are rounded to fp16 and not quantized again.
    """

    weights: Mapping[str, Tensor]
    format: TrtFormat
    own: bool

    def __getitem__(self, name: str) -> Tensor:
        weight = self.weights[name]
        if not name.startswith(LAYERS) or weight.dim() != 2:
            return weight
        if self.own:
            return weight.half().float()
        block = self.format.choose_block(weight.shape[1])
        if block is None:
            return weight
        fp16_weight = weight.half().float().numpy().T  # [in, out], in fp16 as in the graph before it is quantized
        dequantized = self.format.quantize(fp16_weight, block).dequantize()
        return torch.from_numpy(np.ascontiguousarray(dequantized.T.astype(np.float32)))

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def replace_by_stored_weights(source: Checkpoint, name: str) -> Checkpoint:
    """Returns the checkpoint with its layers' weights rounded as the format `name` of `TRT_FORMATS` stores them."""
    own = name == "int4" and is_quantized(source)
    return replace(source, weights=StoredWeights(source.weights, TRT_FORMATS[name], own))
