"""Quantizes weights for TensorRT, in numpy; defines the numbers that a quantized graph holds.

Every format is symmetric, without zero points, as TensorRT requires. Weights are [in, out], as MatMul takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from runtime.errors import NumericalError

WeightArray = NDArray[np.float32]  # [in, out]
SMALLEST = 2.0**-14  # the least scale: below it fp16 loses digits
FP4_LARGEST, FP8_LARGEST = 6.0, 448.0  # largest numbers of e2m1 and e4m3


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """Holds a weight as a graph stores it: its numbers are `values * scale`, or `values * scale * over`.

    Attributes:
        values: the quantized values, [in, out].
        scale: fp16 [out]; with blocks [in / block, out], fp16, or e4m3 if there is `over`.
        block: inputs per block; 0 for one scale per output.
        over: scale of the scales, fp32 []; None if they have none.
    """

    values: NDArray[Any]
    scale: NDArray[Any]
    block: int = 0
    over: NDArray[np.float32] | None = None

    def dequantize(self) -> NDArray[np.float16]:
        """Returns the dequantized weight, as a graph computes it. [in, out]"""
        if self.over is not None:
            block_scale = self.scale.astype(np.float32) * self.over  # [in / block, out]
            product = self.values.astype(np.float32) * np.repeat(block_scale, self.block, axis=0)
            return product.astype(np.float16)
        scale = np.repeat(self.scale, self.block, axis=0) if self.block else self.scale
        return (self.values.astype(np.float32) * scale.astype(np.float32)).astype(np.float16)


@dataclass(frozen=True, slots=True)
class TrtFormat:
    """Describes a format of weights.

    Attributes:
        name: the format's name, which is also a precision's.
        opset: the first ONNX opset that has its types.
        values: type of `StoredWeight.values`.
        scale: type of `StoredWeight.scale`.
        blocks: sizes that a block may have, in inputs; the first that divides a weight's inputs is used. Empty for one
            scale per output.
        over: whether the scales have a common fp32 scale.
        quantize: quantizes a weight, fp32 [in, out], in blocks of so many inputs, 0 without blocks.
    """

    name: str
    opset: int
    values: type
    scale: type
    blocks: tuple[int, ...]
    over: bool
    quantize: Callable[[WeightArray, int], StoredWeight]

    def choose_block(self, inputs: int) -> int | None:
        """Returns the block size for a weight with so many inputs: 0 without blocks, None if no size divides them."""
        if not self.blocks:
            return 0
        return next((block for block in self.blocks if inputs % block == 0), None)


def quantize_to_int8(weight: WeightArray, block: int) -> StoredWeight:
    """Quantizes with one scale per output, its largest |w| / 127; -128 is not used, so the range is symmetric."""
    scale = compute_scales(find_largest(weight), 127)
    return StoredWeight(np.clip(np.rint(weight / scale.astype(np.float32)), -127, 127).astype(np.int8), scale)


def quantize_to_int4(weight: WeightArray, block: int) -> StoredWeight:
    """Quantizes with one scale per output and block of inputs, its largest |w| / 7."""
    scale = compute_scales(find_largest(split_blocks(weight, block)), 7)  # [in / block, out]
    values = np.rint(weight / np.repeat(scale, block, axis=0).astype(np.float32))
    return StoredWeight(np.clip(values, -7, 7).astype(np.int8).astype(ml_dtypes.int4), scale, block)


def quantize_to_fp8(weight: WeightArray, block: int) -> StoredWeight:
    """Quantizes to e4m3, one scale per output."""
    scale = compute_scales(find_largest(weight), FP8_LARGEST)
    quotient = np.clip(weight / scale.astype(np.float32), -FP8_LARGEST, FP8_LARGEST)
    return StoredWeight(quotient.astype(ml_dtypes.float8_e4m3fn), scale)


def quantize_to_nvfp4(weight: WeightArray, block: int) -> StoredWeight:
    """Quantizes to e2m1 in blocks of 16 inputs with e4m3 scales, which one fp32 scale brings into e4m3's range."""
    largest = find_largest(split_blocks(weight, block))  # [in / block, out]
    over = np.float32(max(largest.max() / (FP4_LARGEST * FP8_LARGEST), np.finfo(np.float32).tiny))
    scale = (largest / FP4_LARGEST / over).astype(ml_dtypes.float8_e4m3fn)
    stored_scale = scale.astype(np.float32)  # as rounded to e4m3
    stored_scale[stored_scale == 0] = 1  # a block whose scale rounds to zero
    quotient = weight / np.repeat(stored_scale * over, block, axis=0)
    values = np.clip(quotient, -FP4_LARGEST, FP4_LARGEST).astype(ml_dtypes.float4_e2m1fn)
    return StoredWeight(values, stored_scale.astype(ml_dtypes.float8_e4m3fn), block, np.asarray(over))


TRT_FORMATS = {
    each.name: each
    for each in (
        TrtFormat("int8", 19, np.int8, np.float16, (), False, quantize_to_int8),
        TrtFormat("int4", 21, ml_dtypes.int4, np.float16, (128, 64, 32), False, quantize_to_int4),
        TrtFormat("fp8", 19, ml_dtypes.float8_e4m3fn, np.float16, (), False, quantize_to_fp8),
        TrtFormat("nvfp4", 23, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn, (16,), True, quantize_to_nvfp4),
    )
}


def split_blocks(weight: WeightArray, block: int) -> WeightArray:
    """Reshapes [in, out] to [in / block, block, out]."""
    return weight.reshape(-1, block, weight.shape[1])


def find_largest(weight: WeightArray) -> WeightArray:
    """Returns the largest |w| per column of the last two axes. Raises NumericalError if one is not a finite number."""
    largest: WeightArray = np.abs(weight).max(axis=-2)
    if not np.isfinite(largest).all():
        raise NumericalError("a weight is not a finite number, so it cannot be quantized; export it to fp16 instead")
    return largest


def compute_scales(largest: WeightArray, largest_value: float) -> NDArray[np.float16]:
    """Returns the scales with which the weights `largest` are stored as `largest_value`.

    They are rounded to fp16 here already, since weights must be divided by the scales that are stored.
    """
    scale: NDArray[np.float16] = np.maximum(largest / largest_value, SMALLEST).astype(np.float16)
    return scale
