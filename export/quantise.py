"""Symmetric int8 of weights, one scale a channel, in numpy: the reference for what quantised graphs store."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.errors import NumericalError

LARGEST = 127  # -128 is left out, so that the range is symmetric
ROWS = 4096  # quantised at a time, so that a large table takes no second copy in fp32


def quantise(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Values int8 in the weight's shape [rows, columns] and scales fp32 [its length along `axis`].

    A scale is its channel's largest |w| / 127, and value * scale lies within half a scale of w; a channel of zeros has
    the scale 1. Raises NumericalError where a weight is not a finite number.
    """
    largest = np.maximum(weight.max(1 - axis), -weight.min(1 - axis))  # of |weight|, without making that
    if not np.isfinite(largest).all():
        raise NumericalError("a weight is not a finite number, so it has no int8; export it to fp32 to see where")
    scale = largest / np.float32(LARGEST)
    scale[scale == 0] = 1  # a channel so small that its scale is no number would be divided by it
    values = np.empty(weight.shape, np.int8)
    for first in range(0, len(weight), ROWS):
        part = slice(first, first + ROWS)
        divisor = scale[part, None] if axis == 0 else scale
        np.clip(np.rint(weight[part] / divisor), -LARGEST, LARGEST, out=values[part], casting="unsafe")
    return values, scale


def dequantise(values: NDArray[np.int8], scale: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The weights fp32 [rows, columns] that quantised ones stand for."""
    restored: NDArray[np.float32] = values * (scale[:, None] if axis == 0 else scale)
    return restored
