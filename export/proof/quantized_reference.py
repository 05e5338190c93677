"""Repeats a quantized `ort` graph's arithmetic in PyTorch, over the same numbers: the engine's reference.

Weights and activations are rounded, so even a correct engine is far from the unquantized model. It differs from this
reference only by fp32 rounding: an activation halfway between two quantized values may be rounded to the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.precisions import PRECISIONS
from export.quantization.ort_formats import OrtFormat, OrtFormats
from export.quantization.ort_int8 import Int8Linear, Rounding, restore_rows
from runtime.backend import Floats, Forward, Proposal
from runtime.contract import Contract
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend
from train.transformer.network import KeyValueStore, Layer, Transformer

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def quantize_module(
    module: ModuleT, chosen: Callable[[str], OrtFormat], rounding: Rounding | None = None, within: str = ""
) -> ModuleT:
    """Replaces a module's linear layers by quantized ones, in place; returns the module.

    chosen: maps the name of each layer, after the prefix `within`, to its format; rounding: shared with other modules,
    None for a new one.
    """
    rounding = rounding or Rounding()
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            bias = None if child.bias is None else child.bias.detach()
            made = chosen(within + name).linear(child.weight.detach(), bias)
            if isinstance(made, Int8Linear):
                made.rounded = rounding
            setattr(module, name, made)
        else:
            quantize_module(child, chosen, rounding, f"{within}{name}.")
    return module


class RowsLayer(nn.Module):
    """Computes the last layer as the graph does: after attention, only for the logits rows.

    So the single scale of an activation, there and in the head, is over these rows only. rows: int64 [batch, n], the
    logits rows of the next forward pass; the hidden states of other rows are zeros.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer, self.rows = layer, torch.zeros(1, 1, dtype=torch.int64)
        own = weakref.proxy(self)  # a reference cycle would keep the weights until Python's garbage collector runs
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: (own.pick(given[0]),))

    def pick(self, x: Tensor) -> Tensor:
        """Returns the rows of x [batch, width, size]: [batch, n, size]."""
        return x.gather(1, self._expand_rows(x))

    def _expand_rows(self, x: Tensor) -> Tensor:
        return self.rows[..., None].expand(-1, -1, x.shape[-1])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KeyValueStore | None) -> Tensor:
        inner = self.layer
        mixed = self.pick(x) + inner.self_attn(inner.input_layernorm(x), cos, sin, mask, cache)
        made = mixed + inner.mlp(inner.post_attention_layernorm(mixed))
        return torch.zeros_like(x).scatter(1, self._expand_rows(x), made)


class QuantizedModel(nn.Module):
    """Computes a checkpoint's model in quantized arithmetic; has `forward` and `logits` as `Transformer` has them."""

    def __init__(self, source: Checkpoint, formats: OrtFormats) -> None:
        super().__init__()
        model = source.build()
        table = model.embed_tokens.weight.detach()
        self.head = Int8Linear(table if source.model.tied else model.lm_head.weight.detach())
        model.embed_tokens.weight = nn.Parameter(restore_rows(table), requires_grad=False)
        rounding = Rounding()
        for i, layer in enumerate(model.layers):
            quantize_module(layer, formats.bind_layer(i, len(model.layers)), rounding)
        self.last = RowsLayer(cast(Layer, model.layers[-1]))
        model.layers[-1] = self.last
        self.model = model

    def forward(
        self, input_ids: Tensor, visible: Tensor, positions: Tensor, cache: KeyValueStore | None, length: int
    ) -> Tensor:
        hidden: Tensor = self.model(input_ids, visible, positions, cache, length)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        return logits


class QuantizedBackend:
    """Runs a `QuantizedModel` as a backend that `compare` takes. torch: the backend that runs it."""

    name = "quantized in torch"

    def __init__(self, source: Checkpoint, contract: Contract, formats: OrtFormats) -> None:
        made = QuantizedModel(source, formats)
        model = cast(Transformer, made)  # it has all methods that a backend calls
        self.torch, self.contract = TorchBackend(model, contract, barred=source.list_missing_ids()), contract
        self._last = made.last

    def read_cache(self) -> Floats:
        """Returns the KV cache, keys and values in turn. [2 * layers, batch, kv_heads, capacity, head_dim]"""
        kept = self.torch.cache
        if kept is None:
            return np.zeros(0, np.float32)
        parts = [part for pair in zip(kept.keys, kept.values, strict=True) for part in pair]
        return torch.stack(parts).numpy()

    def open(self, batch: int, capacity: int) -> None:
        self.torch.open(batch, capacity)

    def forward(self, forward: Forward) -> Proposal:
        self._last.rows = torch.from_numpy(forward.rows)
        return self.torch.forward(forward)

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.torch.keep(rows)


def compute_whole_bound(lost: float) -> float:
    """Returns how far, in nats, an engine's log-probabilities may be from the unquantized model (`compare`).

    That is twice `lost`, the distance of its arithmetic in PyTorch from the model: by the triangle inequality, an
    engine may then be as far from that arithmetic as that is from the model. Less would not do: in a deep model, one
    activation that rounds to the other value changes more activations in every later layer, until the errors of engine
    and arithmetic have only their size in common.
    """
    return max(PRECISIONS["fp32"].log_prob, 2 * lost)
