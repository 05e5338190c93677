"""Converts arrays to ONNX Runtime's values and back; bf16, which numpy lacks, is held as its bits."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .no_telemetry import ort

BFLOAT16 = 16  # ONNX's number for the type; in numpy its bits are uint16


def choose_numpy_type(dtype: str) -> str:
    """Returns the numpy type of arrays that hold a KV cache of the type `dtype`."""
    return "uint16" if dtype == "bfloat16" else dtype


def make_value(array: NDArray[Any], dtype: str, device: str) -> ort.OrtValue:
    """Returns an array as a graph takes it: on the CPU in the same memory (bf16: as a copy), on a GPU as a copy."""
    if dtype != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array, device, 0)
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, BFLOAT16, device, 0)
    value.update_inplace(array)
    return value


def copy_to_host(value: ort.OrtValue, dtype: str) -> NDArray[Any]:
    """Returns a host copy of a value on a GPU, bf16 as its bits in uint16."""
    if dtype != "bfloat16":
        return value.numpy()  # type: ignore[no-any-return]
    copy = ort.OrtValue.ortvalue_from_shape_and_type(value.shape(), BFLOAT16, "cpu", 0)
    ort.copy_tensors([value], [copy])
    count = math.prod(value.shape())
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(copy.data_ptr()))
    return bits.reshape(value.shape()).copy()
