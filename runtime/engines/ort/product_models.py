"""Contains ONNX models of one matrix product: `left` [rows, inner] times an initializer `right` that the host gives.

tests/support/product_models.py writes them with the package onnx, on which the runtime does not depend; a test checks
that both are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

PRODUCT_MODELS = {
    "probe": (
        b'\x08\x08:w\n!\n\x04left\n\x05right\x12\x03out"\rMatMulInteger\x12\x07product'
        b'*"\x08\x04\x08 \x10\x03B\x05rightj\x11\n\x08location\x12\x05givenp\x01'
        b"Z\x12\n\x04left\x12\n\n\x08\x08\x02\x12\x04\n\x00\n\x00b\x11\n\x03out\x12\n\n\x08\x08\x06\x12\x04\n\x00\n\x00B\x04\n\x00\x10\r"
    ),
    "fp32": (
        b'\x08\x08:r\n\x1a\n\x04left\n\x05right\x12\x03out"\x06MatMul\x12\x07product'
        b"*$\x08\x80\x10\x08\x80\x10\x10\x01B\x05rightj\x11\n\x08location\x12\x05givenp\x01"
        b"Z\x12\n\x04left\x12\n\n\x08\x08\x01\x12\x04\n\x00\n\x00b\x11\n\x03out\x12\n\n\x08\x08\x01\x12\x04\n\x00\n\x00B\x04\n\x00\x10\r"
    ),
    "fp16": (
        b'\x08\x08:r\n\x1a\n\x04left\n\x05right\x12\x03out"\x06MatMul\x12\x07product'
        b"*$\x08\x80\x10\x08\x80\x10\x10\nB\x05rightj\x11\n\x08location\x12\x05givenp\x01"
        b"Z\x12\n\x04left\x12\n\n\x08\x08\n\x12\x04\n\x00\n\x00b\x11\n\x03out\x12\n\n\x08\x08\n\x12\x04\n\x00\n\x00B\x04\n\x00\x10\r"
    ),
    "int8": (
        b'\x08\x08:y\n!\n\x04left\n\x05right\x12\x03out"\rMatMulInteger\x12\x07product'
        b"*$\x08\x80\x10\x08\x80\x10\x10\x03B\x05rightj\x11\n\x08location\x12\x05givenp\x01"
        b"Z\x12\n\x04left\x12\n\n\x08\x08\x02\x12\x04\n\x00\n\x00b\x11\n\x03out\x12\n\n\x08\x08\x06\x12\x04\n\x00\n\x00B\x04\n\x00\x10\r"
    ),
}


def make_product(name: str, right: NDArray[Any], options: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Returns a function that multiplies a matrix by the constant `right`, in ONNX Runtime on the CPU.

    right: in the shape of the model `name`.
    """
    from .no_telemetry import ort

    options.add_external_initializers(["right"], [ort.OrtValue.ortvalue_from_numpy(right)])
    session = ort.InferenceSession(PRODUCT_MODELS[name], options, providers=["CPUExecutionProvider"])
    return lambda left: session.run(None, {"left": left})[0]
