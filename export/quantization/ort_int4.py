"""Implements int4 of the `ort` dialect: weights in blocks of inputs, activations in int8 per row and block.

A product becomes `com.microsoft.MatMulNBits` at its accuracy level 4, which quantizes activations. Every block has a
scale and a zero point of its own, so that its 16 levels span exactly its weights and zero. A weight takes 5.125 bits: 4
for its value, and 1/32 of the 36 bits for scale and zero point of its block of 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import NumericalError

from .lazy_initializers import QuantizedParts
from .ort_int8 import DOMAIN

BLOCK = 32  # inputs per scale
LARGEST = 15  # largest stored value
STEPS = 127  # quantization steps in the largest |activation| of a row and block; int8 without -128
ROWS = 1024  # rows quantized at a time, so that a large weight needs no second copy in fp32
Bytes = NDArray[np.uint8]


def quantize(weight: NDArray[np.float32]) -> tuple[Bytes, NDArray[np.float32], Bytes]:
    """Returns values [out, blocks, BLOCK / 2], scales fp32 [out, blocks], zero points [out, half the blocks].

    weight [out, in]. A byte holds two values, or two zero points, the first in its low half; the last block is padded
    with 0. A weight is (value - zero point) * scale to within half a scale; a weight of 0 is exact. Raises
    NumericalError if a weight is not a finite number.
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // BLOCK)
    values = np.empty((outputs, blocks, BLOCK // 2), np.uint8)
    scale, zero = np.empty((outputs, blocks), np.float32), np.empty((outputs, -(-blocks // 2)), np.uint8)
    for first in range(0, outputs, ROWS):
        part = slice(first, first + ROWS)
        padded = np.zeros((len(scale[part]), blocks * BLOCK), np.float32)
        padded[:, :inputs] = weight[part]
        levels, scale[part], zero_levels = round_to_nearest(padded.reshape(-1, blocks, BLOCK))
        values[part], zero[part] = pack_pairs(levels), pack_pairs(zero_levels)
    return values, scale, zero


def round_to_nearest(weight: NDArray[np.float32]) -> tuple[Bytes, NDArray[np.float32], Bytes]:
    """Returns values uint8 [out, blocks, BLOCK], scales fp32 and zero points uint8 [out, blocks], none of them packed.

    weight [out, blocks, BLOCK]. Raises NumericalError if a weight is not a finite number.
    """
    low, high = weight.min(-1).clip(max=0), weight.max(-1).clip(min=0)
    if not (np.isfinite(low) & np.isfinite(high)).all():
        raise NumericalError("a weight is not a finite number, so it has no int4; export it to fp32 to see which")
    scale = high / np.float32(LARGEST) - low / np.float32(LARGEST)
    scale[scale == 0] = 1  # else a block so small that its scale is 0 would be divided by 0
    zero = np.rint(-low / scale)
    values = np.rint(weight / scale[..., None]) + zero[..., None]
    return values.clip(0, LARGEST).astype(np.uint8), scale, zero.astype(np.uint8)


def pack_pairs(values: Bytes) -> Bytes:
    """Packs values below 16 [..., n], two per byte: [..., half of n, rounded up]."""
    first, second = values[..., 0::2], values[..., 1::2]
    packed = first.copy()
    packed[..., : second.shape[-1]] |= second << 4
    return packed


def unpack_pairs(packed: Bytes, count: int) -> Bytes:
    """Unpacks the first `count` values of the last axis, one per byte: [..., count]."""
    both = np.stack((packed & 15, packed >> 4), axis=-1)
    return both.reshape(*packed.shape[:-1], -1)[..., :count]


def dequantize(values: Bytes, scale: NDArray[np.float32], zero: Bytes) -> NDArray[np.float32]:
    """Returns the dequantized weights, fp32 [out, blocks * BLOCK]."""
    steps = unpack_pairs(values, BLOCK).astype(np.float32) - unpack_pairs(zero, scale.shape[1])[..., None]
    return (steps * scale[..., None]).reshape(len(scale), -1)


def store(graph: ir.Graph, weight: ir.Value, axis: int) -> tuple[ir.Value, ...]:
    """Adds initializers of a weight's values, scales and zero points, see `quantize`; returns them.

    axis: the weight's axis of outputs.
    """

    def make_parts(numbers: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        return dict(zip(("int4", "scale", "zero"), quantize(numbers if axis == 0 else numbers.T), strict=True))

    parts = QuantizedParts(weight, make_parts)
    outputs, blocks = parts.shape[axis], -(-parts.shape[1 - axis] // BLOCK)
    return (
        parts.add(graph, "int4", np.uint8, (outputs, blocks, BLOCK // 2)),
        parts.add(graph, "scale", np.float32, (outputs, blocks)),
        parts.add(graph, "zero", np.uint8, (outputs, -(-blocks // 2))),
    )


def make_product_nodes(node: ir.Node, stored: Sequence[ir.Value]) -> Sequence[ir.Node]:
    """Returns the node that replaces MatMul (weight [in, out]). stored: the initializers that `store` added."""
    weight = node.inputs[1]
    if node.op_type != "MatMul" or weight is None or weight.const_value is None:
        raise AssertionError(f"{node} is not a product with a weight [in, out]")
    inputs, outputs = weight.const_value.shape.numpy()
    sizes = {"K": inputs, "N": outputs, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    return [ir.node("MatMulNBits", [node.inputs[0], *stored], sizes, domain=DOMAIN)]


class Int4Linear(nn.Module):
    """Computes x @ weight.T + bias as `MatMulNBits` does on x86; weight [out, in] in int4."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = torch.from_numpy(dequantize(*quantize(weight.float().numpy()))), bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps x fp32 [..., in] to fp32 [..., out]."""
        return F.linear(round_activations(F.pad(x, (0, self.weight.shape[1] - x.shape[-1]))), self.weight, self.bias)


def round_activations(x: Tensor, block: int = BLOCK) -> Tensor:
    """Rounds x [..., blocks * block] to multiples of a step: 1/127 of the largest |x| in a row's block."""
    blocks = x.reshape(*x.shape[:-1], -1, block)
    largest = blocks.abs().amax(-1, keepdim=True)
    steps: Tensor = (blocks * (STEPS / torch.where(largest == 0, 1.0, largest))).round()
    return (steps * (largest / STEPS)).flatten(-2)
