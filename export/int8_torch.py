"""The arithmetic of an int8 graph in PyTorch, over the same int8 weights: what an int8 engine is held against.

Weights are rounded and activations are, so an int8 engine is far from the unquantised model however right it is. From
this one it is as far as fp32 rounding takes it: an activation at the edge of two steps may fall to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.backend import Floats, Forward, Proposal
from runtime.contract import Contract, GateSpec
from runtime.decode import Request
from train.checkpoint import Checkpoint
from train.model import KeyValueStore, Model
from train.torch_backend import TorchBackend

from .parity import BOUNDS, SEPARATE, compare
from .quantise import dequantise, quantise

DYNAMIC = "int8-dynamic"  # what parity calls this arithmetic, since not every int8 is it
STEPS = 255  # of an activation's range in uint8
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Int8Linear(nn.Module):
    """x @ weight.T + bias as `DynamicQuantizeMatMul` computes it; weight [out, in] in int8, one scale a row."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        values, scale = quantise(weight.float().numpy(), 0)
        self.values, self.scale, self.bias = torch.from_numpy(values).float(), torch.from_numpy(scale), bias

    def forward(self, x: Tensor) -> Tensor:
        """x fp32 [..., in] to fp32 [..., out]."""
        whole, step = rounded(x)
        y: Tensor = F.linear(whole, self.values) * (step * self.scale)
        return y if self.bias is None else y + self.bias


def arithmetic(dialect: str, precision: str) -> str:
    """Which numbers an engine computes with, as parity has to know it."""
    return DYNAMIC if (dialect, precision) == ("ort", "int8") else precision


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in whole steps, fp32, and the step, fp32 []: ONNX's DynamicQuantizeLinear, its zero point taken off again.

    The 256 steps span the whole tensor's range and zero, so a row's numbers depend on its neighbours.
    """
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    step = (high - low) / STEPS
    step = torch.where(step == 0, 1.0, step)
    zero = (-low / step).round().clamp(0, STEPS)
    return ((x / step).round() + zero).clamp(0, STEPS) - zero, step


def in_int8(module: ModuleT) -> ModuleT:
    """The module, its linear layers replaced in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            bias = None if child.bias is None else child.bias.detach()
            setattr(module, name, Int8Linear(child.weight.detach(), bias))
        else:
            in_int8(child)
    return module


def restored(rows: Tensor) -> Tensor:
    """Rows [n, hidden] of an embedding as they are looked up in its int8 table, fp32."""
    return torch.from_numpy(dequantise(*quantise(rows.float().numpy(), 0), 0))


class Int8Model(nn.Module):
    """A checkpoint's whole model, with the forward and the logits of `train.model.Model`."""

    def __init__(self, source: Checkpoint) -> None:
        super().__init__()
        model = source.build()
        table = model.embed_tokens.weight.detach()
        self.head = Int8Linear(table if source.model.tied else model.lm_head.weight.detach())
        model.embed_tokens.weight = nn.Parameter(restored(table), requires_grad=False)
        self.model = in_int8(model)

    def forward(
        self, input_ids: Tensor, visible: Tensor, positions: Tensor, cache: KeyValueStore | None, length: int
    ) -> Tensor:  # fmt: skip
        hidden: Tensor = self.model(input_ids, visible, positions, cache, length)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        return logits


class Int8Backend:
    """That model as an engine that `parity.compare` takes."""

    name = "int8 in torch"
    last_logits: Floats | None = None

    def __init__(self, source: Checkpoint, contract: Contract) -> None:
        model = cast(Model, Int8Model(source))  # as far as a backend asks
        self._inner, self.contract = TorchBackend(model, contract, barred=source.missing_ids()), contract

    @property
    def cache(self) -> Floats:
        """[2 * layers, batch, kv_heads, capacity, head_dim], keys and values in turn."""
        kept = self._inner.cache
        if kept is None:
            return np.zeros(0, np.float32)
        parts = [part for pair in zip(kept.keys, kept.values, strict=True) for part in pair]
        stacked: Floats = torch.stack(parts).numpy()
        return stacked

    def open(self, batch: int, capacity: int) -> None:
        self._inner.open(batch, capacity)

    def forward(self, forward: Forward) -> Proposal:
        return self._inner.forward(forward)

    def keep(self, rows: NDArray[np.int64]) -> None:
        self._inner.keep(rows)


def whole_bound(
    precision: str, reference: TorchBackend, source: Checkpoint, contract: Contract, requests: Sequence[Request],
    gate: GateSpec | None = None, separate: int = SEPARATE,
) -> float:  # fmt: skip
    """How far, in nats, an engine's log-probabilities may be from the unquantised `reference` over these requests.

    For dynamic int8 twice as far as its arithmetic in PyTorch is: by the triangle inequality an engine may then be as
    far from that arithmetic as that is from the model. No less, since in a deep model a single step that falls
    otherwise moves further ones in every layer behind it, until the two have but the size of their error in common.
    """
    if precision != DYNAMIC:
        return BOUNDS[precision]
    *_, lost = compare(reference, Int8Backend(source, contract), requests, gate=gate, separate=separate)
    return max(BOUNDS["fp32"], 2 * lost.distance.log_prob)
