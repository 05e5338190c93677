"""Repeats a quantized `ort` graph's arithmetic in PyTorch, on the same quantized weights, as the engine's reference.

Weights and activations are rounded, so even a correct engine is far from the unquantized model. From this reference it
differs only by fp32 rounding, which may move an activation that is halfway between two quantized values to the other.
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

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def quantize_module(
    module: AnyModule, choose_format: Callable[[str], OrtFormat], rounding: Rounding | None = None, prefix: str = ""
) -> AnyModule:
    """Replaces a module's linear layers by quantized ones, in place; returns the module.

    Args:
        module: the module; linear layers of its submodules are replaced too.
        choose_format: maps a linear layer's name, which begins with `prefix`, to its format.
        rounding: the rounding of int8 activations, to share it with other modules; None for a new one.
        prefix: the module's own name and a dot, "" for the outermost module.
    """
    rounding = rounding or Rounding()
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            bias = None if child.bias is None else child.bias.detach()
            linear = choose_format(prefix + name).make_linear(child.weight.detach(), bias)
            if isinstance(linear, Int8Linear):
                linear.round_activations = rounding
            setattr(module, name, linear)
        else:
            quantize_module(child, choose_format, rounding, f"{prefix}{name}.")
    return module


class RowsLayer(nn.Module):
    """Computes a model's last layer as the graph does: from the attention's output projection on, only logits rows.

    An int8 activation has a single scale, which in these products and in the head therefore depends on the logits rows
    alone. rows: int64 [batch, n], the logits rows of the next forward pass; hidden states of other rows are returned as
    zeros.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer, self.rows = layer, torch.zeros(1, 1, dtype=torch.int64)
        weak_self = weakref.proxy(self)  # a reference cycle would keep the weights until the garbage collector runs
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: (weak_self.select_rows(inputs[0]),))

    def select_rows(self, x: Tensor) -> Tensor:
        """Returns the logits rows of x [batch, width, size]: [batch, n, size]."""
        return x.gather(1, self._expand_rows(x))

    def _expand_rows(self, x: Tensor) -> Tensor:
        return self.rows[..., None].expand(-1, -1, x.shape[-1])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KeyValueStore | None) -> Tensor:
        layer = self.layer
        attention_output = self.select_rows(x) + layer.self_attn(layer.input_layernorm(x), cos, sin, mask, cache)
        output = attention_output + layer.mlp(layer.post_attention_layernorm(attention_output))
        return torch.zeros_like(x).scatter(1, self._expand_rows(x), output)


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
        self.last_layer = RowsLayer(cast(Layer, model.layers[-1]))
        model.layers[-1] = self.last_layer
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
    """Runs a `QuantizedModel` as a backend, which `compare` can take. torch: the `TorchBackend` that runs the model."""

    name = "quantized in torch"

    def __init__(self, source: Checkpoint, contract: Contract, formats: OrtFormats) -> None:
        model = QuantizedModel(source, formats)
        transformer = cast(Transformer, model)  # it has all methods that a backend calls
        self.torch, self.contract = TorchBackend(transformer, contract, barred=source.list_missing_ids()), contract
        self._last_layer = model.last_layer

    def read_cache(self) -> Floats:
        """Returns the KV cache, keys and values in turn. fp32 [2 * layers, batch, kv_heads, capacity, head_dim]

        Without a KV cache the array is empty.
        """
        cache = self.torch.cache
        if cache is None:
            return np.zeros(0, np.float32)
        parts = [part for pair in zip(cache.keys, cache.values, strict=True) for part in pair]
        return torch.stack(parts).numpy()

    def open(self, batch: int, capacity: int) -> None:
        self.torch.open(batch, capacity)

    def forward(self, forward: Forward) -> Proposal:
        self._last_layer.rows = torch.from_numpy(forward.rows)
        return self.torch.forward(forward)

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.torch.keep(rows)


def compute_whole_bound(quantization_error: float) -> float:
    """Returns the bound, in nats, on how far an engine's log-probabilities may be from the unquantized model's.

    The bound is twice the quantization error, but at least that of fp32. It leaves an engine as much room for a
    distance from the quantized arithmetic in PyTorch as that arithmetic itself has from the model. Less room would
    refuse correct engines of deep models: one activation that is rounded to the other value changes more of them in
    every later layer, until the errors of the engine and of the arithmetic are alike in size only.

    Args:
        quantization_error: largest difference, in nats, of a top-1 token's log-probability between the quantized
            arithmetic in PyTorch (`QuantizedBackend`) and the unquantized model, as `compare` measures it.
    """
    return max(PRECISIONS["fp32"].log_prob, 2 * quantization_error)
