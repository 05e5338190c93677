"""An ONNX model of one matrix product, written as protobuf by hand because the runtime does not depend on onnx.

Field numbers are those of onnx.proto, version 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

UINT8, INT8, INT32 = 2, 3, 6  # onnx.TensorProto.DataType


def product_model(operator: str, left: int, right: int, out: int, weight: NDArray[Any]) -> bytes:
    """Returns the model `left` [rows, inner] times the constant `weight` [inner, columns].

    left, right, out: ONNX's numbers of the element types of input, weight and output.
    """
    node = field(1, b"left") + field(1, b"right") + field(2, b"out") + field(4, operator.encode())
    tensor = b"".join(field(1, size) for size in weight.shape)
    tensor += field(2, right) + field(8, b"right") + field(9, weight.tobytes())
    graph = field(1, node) + field(2, b"product") + field(5, tensor)
    graph += field(11, value("left", left)) + field(12, value("out", out))
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13))


def value(name: str, kind: int) -> bytes:
    """Returns a ValueInfoProto of a tensor of that type with two open axes."""
    return field(1, name.encode()) + field(2, field(1, field(1, kind) + field(2, field(1, b"") * 2)))


def field(number: int, content: int | bytes) -> bytes:
    """Returns one protobuf field: a varint, or bytes with their length before them."""
    if isinstance(content, int):
        return bytes((*varint(number << 3), *varint(content)))
    return bytes((*varint(number << 3 | 2), *varint(len(content)))) + content


def varint(value: int) -> Iterator[int]:
    """Yields an unsigned number in groups of seven bits, the lowest first."""
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value
