"""Implements int8 of the `ort` dialect: weights with one scale per channel, activations quantized dynamically.

A product becomes `com.microsoft.DynamicQuantizeMatMul`, which uses one scale for the whole activation. An embedding is
looked up in an int8 table, which a tied head shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import NumericalError

from .lazy_initializers import QuantizedParts

DOMAIN = "com.microsoft"
LARGEST = 127  # -128 is left out, so that the range is symmetric
STEPS = 255  # quantization steps in an activation's range (uint8)
ROWS = 4096  # rows quantized at a time, so that a large table needs no second copy in fp32


def quantize(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns values int8 in the weight's shape [rows, columns] and scales fp32 [its length along `axis`].

    A scale is its channel's largest |w| / 127, and value * scale is within half a scale of w; a channel of zeros has
    the scale 1. Raises NumericalError if a weight is not a finite number.
    """
    largest = np.maximum(weight.max(1 - axis), -weight.min(1 - axis))  # largest |w|, without a copy of the weight
    if not np.isfinite(largest).all():
        raise NumericalError("a weight is not a finite number, so it has no int8; export it to fp32 to see which")
    scale = largest / np.float32(LARGEST)
    scale[scale == 0] = 1  # else a channel so small that its scale is 0 would be divided by 0
    values = np.empty(weight.shape, np.int8)
    for first in range(0, len(weight), ROWS):
        part = slice(first, first + ROWS)
        divisor = scale[part, None] if axis == 0 else scale
        np.clip(np.rint(weight[part] / divisor), -LARGEST, LARGEST, out=values[part], casting="unsafe")
    return values, scale


def dequantize(values: NDArray[np.int8], scale: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Returns the dequantized weights, fp32 [rows, columns]."""
    return values * (scale[:, None] if axis == 0 else scale)


def store(graph: ir.Graph, weight: ir.Value, axis: int) -> tuple[ir.Value, ...]:
    """Adds initializers of a weight's int8 values [rows, columns] and fp32 scales [its length along `axis`].

    Returns them. axis: the weight's axis of channels.
    """

    def make_parts(numbers: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        return dict(zip(("int8", "scale"), quantize(numbers, axis), strict=True))

    parts = QuantizedParts(weight, make_parts)
    shape = parts.shape
    return parts.add(graph, "int8", np.int8, shape), parts.add(graph, "scale", np.float32, shape[axis : axis + 1])


def make_product_nodes(node: ir.Node, stored: Sequence[ir.Value]) -> Sequence[ir.Node]:
    """Returns the nodes that replace MatMul (weight [in, out]), or Gemm (weight [out, in], and a bias).

    stored: the initializers that `store` added.
    """
    values, scale = stored
    before: list[ir.Node] = []
    bias = None
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        # ONNX Runtime transposes once, when it loads the model.
        before.append(ir.node("Transpose", [values], {"perm": [1, 0]}))
        values = before[0].outputs[0]
    inputs = [node.inputs[0], values, scale, None, bias]
    return [*before, ir.node("DynamicQuantizeMatMul", inputs, domain=DOMAIN)]


def make_lookup_nodes(node: ir.Node, stored: Sequence[ir.Value]) -> Sequence[ir.Node]:
    """Returns the nodes that replace Gather on the rows of an embedding [vocab, hidden].

    stored: the initializers that `store` added.
    """
    (values, scale), ids = stored, node.inputs[1]  # [batch, width]
    rows = ir.node("Gather", [values, ids])  # int8 [batch, width, hidden]
    wide = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value})
    scales = ir.node("Gather", [scale, ids])  # [batch, width]
    last = ir.node("Constant", [], {"value_ints": [-1]})
    column = ir.node("Unsqueeze", [scales.outputs[0], last.outputs[0]])  # [batch, width, 1]
    return [rows, wide, scales, last, column, ir.node("Mul", [wide.outputs[0], column.outputs[0]])]


def restore_rows(rows: Tensor) -> Tensor:
    """Quantizes embedding rows [n, hidden] to int8 and returns the dequantized rows, fp32 [n, hidden]."""
    return torch.from_numpy(dequantize(*quantize(rows.float().numpy(), 0), 0))


class Int8Linear(nn.Module):
    """Computes x @ weight.T + bias as `DynamicQuantizeMatMul` does; weight [out, in] in int8, one scale per row."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        values, scale = quantize(weight.float().numpy(), 0)
        self.values, self.scale, self.bias = torch.from_numpy(values).float(), torch.from_numpy(scale), bias
        self.round_activations: Callable[[Tensor], tuple[Tensor, Tensor]] = round_activations

    def forward(self, x: Tensor) -> Tensor:
        """Maps x fp32 [..., in] to fp32 [..., out]."""
        steps, step = self.round_activations(x)
        y: Tensor = F.linear(steps, self.values) * (step * self.scale)
        return y if self.bias is None else y + self.bias


def round_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x as whole numbers of quantization steps, fp32, and the size of a step, fp32 [].

    Rounds as DynamicQuantizeLinear does, and then subtracts its zero point. The 256 levels span the range of the whole
    tensor and zero, so a row's numbers depend on the other rows.
    """
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    step = (high - low) / STEPS
    step = torch.where(step == 0, 1.0, step)
    zero = (-low / step).round().clamp(0, STEPS)
    return (x / step).round_().add_(zero).clamp_(0, STEPS).sub_(zero), step


class Rounding:
    """Calls `round_activations` only once for an input of several products: keeps the latest input and its result."""

    def __init__(self) -> None:
        self._latest: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._latest is None or self._latest[0] is not x:
            self._latest = x, round_activations(x)
        return self._latest[1]
