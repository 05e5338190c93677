"""Runs the same step in PyTorch: the reference model of train/, its weights in fp32 or bf16, eager or compiled.

The step computes token and confidence but no entropy, less than the exported graph, so that PyTorch is not at a
disadvantage in the comparison.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime.backend import Ints
from runtime.perf.op_counts import ModelShape
from train.transformer.network import Transformer

from .contender import Cell, make_tokens
from .standin import make_standin


class FixedCache:
    """Holds the keys and values of all layers, zeros at first; every step writes its own after the same `past`."""

    def __init__(self, shape: ModelShape, dtype: torch.dtype, past: int, width: int) -> None:
        size = (1, shape.kv_heads, past + width, shape.head_dim)
        self.past = past
        self.parts = [(torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)) for _ in range(shape.layers)]

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes [1, kv_heads, width, head_dim] and returns all keys and values."""
        keys, values = self.parts[layer]
        keys[:, :, self.past :] = key
        values[:, :, self.past :] = value
        return keys, values


class TorchStep:
    """Runs a step. precision: of weights, KV cache and products, fp32 or bf16; compiled: by torch.compile, per cell."""

    def __init__(self, shape: ModelShape, precision: str, compiled: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.shape, self.compiled = shape, compiled
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model: Transformer = make_standin(shape).build().to(self.dtype)
        self.run = self.predict

    def place(self, cell: Cell) -> None:
        self.cache = FixedCache(self.shape, self.dtype, cell.past, cell.width)
        self.ids = torch.from_numpy(make_tokens(cell.width))[None]
        self.positions = cell.past + torch.arange(cell.width)[None]
        self.visible = torch.full((1, cell.width), cell.past + cell.width)
        if self.compiled:
            torch.compiler.reset()
            self.run = torch.compile(self.predict, dynamic=False)

    def predict(self, ids: Tensor, visible: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns token and confidence of each row, each [1, width]."""
        length = self.cache.past + ids.shape[1]
        hidden = self.model(ids, visible, positions, self.cache, length)
        logits = self.model.logits(hidden).float()
        logits[..., self.shape.vocab - 1] = float("-inf")  # the mask token
        confidence, token = torch.softmax(logits, dim=-1).max(dim=-1)
        return token, confidence

    @torch.inference_mode()
    def step(self) -> None:
        self.token, self.confidence = self.run(self.ids, self.visible, self.positions)

    def predict_top1(self) -> Ints:
        return self.token[0].numpy()

    def describe(self) -> dict[str, Any]:
        return {"torch": torch.__version__}
