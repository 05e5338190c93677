"""Makes initializers from a weight only when they are written, so that an export never holds the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class PartsOf:
    """The parts that a weight is stored in, made together when one of them is written.

    make: returns the parts by name, the largest first. The largest is never kept; the others, written a little later,
    are until then.
    """

    def __init__(self, name: str, make: Callable[[], Arrays]) -> None:
        self.name, self._make = name, make
        self._kept: dict[str, NDArray[Any]] = {}

    def add(self, graph: ir.Graph, part: str, dtype: Any, shape: Sequence[int]) -> ir.Value:
        """Adds a part as an initializer of the graph, named by the weight's name and its own; returns it."""
        name, kind = f"{self.name}.{part}", ir.DataType.from_numpy(np.dtype(dtype))
        return initializer(graph, name, ir.LazyTensor(partial(self._read, part), kind, ir.Shape(shape), name=name))

    def _read(self, part: str) -> ir.TensorProtocol:
        if part in self._kept:
            return ir.Tensor(self._kept.pop(part))
        parts = self._make()
        largest = next(iter(parts))
        self._kept = {name: parts[name] for name in parts if name not in (largest, part)}
        return ir.Tensor(parts[part])


class Quantized(PartsOf):
    """The parts of a weight that is rounded; quantize: from its numbers, fp32 in its shape, to `PartsOf.make`'s."""

    def __init__(self, weight: ir.Value, quantize: Callable[[NDArray[np.float32]], Arrays]) -> None:
        content = weight.const_value
        if content is None:
            raise AssertionError(f"{weight.name} has no content")
        self.shape = content.shape.numpy()
        super().__init__(str(weight.name), lambda: quantize(content.numpy().astype(np.float32, copy=False)))


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Adds a constant to the graph and returns it."""
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
    graph.initializers.add(value)
    return value
