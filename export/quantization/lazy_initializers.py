"""Makes a weight's initializers only when they are written, so that an export never holds the whole model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class WeightParts:
    """Makes the parts that a weight is stored in, such as values and scales, all when the first of them is written.

    name: the weight's name. make: returns the parts by name, the largest first. The largest part is never kept in
    memory; the others are kept until they are written, a little later.
    """

    def __init__(self, name: str, make: Callable[[], Arrays]) -> None:
        self.name, self._make = name, make
        self._unwritten: dict[str, NDArray[Any]] = {}

    def add(self, graph: ir.Graph, part: str, dtype: Any, shape: Sequence[int]) -> ir.Value:
        """Adds a part to the graph as the initializer `WEIGHT.PART`; returns the initializer."""
        name, kind = f"{self.name}.{part}", ir.DataType.from_numpy(np.dtype(dtype))
        return add_initializer(graph, name, ir.LazyTensor(partial(self._read, part), kind, ir.Shape(shape), name=name))

    def _read(self, part: str) -> ir.TensorProtocol:
        if part in self._unwritten:
            return ir.Tensor(self._unwritten.pop(part))
        parts = self._make()
        largest = next(iter(parts))
        self._unwritten = {name: parts[name] for name in parts if name not in (largest, part)}
        return ir.Tensor(parts[part])


class QuantizedParts(WeightParts):
    """Makes the parts of a weight that is quantized. quantize: maps its numbers, fp32 in its shape, to its parts."""

    def __init__(self, weight: ir.Value, quantize: Callable[[NDArray[np.float32]], Arrays]) -> None:
        content = weight.const_value
        if content is None:
            raise AssertionError(f"{weight.name} has no content")
        self.shape = content.shape.numpy()
        super().__init__(str(weight.name), lambda: quantize(content.numpy().astype(np.float32, copy=False)))


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Adds a constant to the graph and returns it."""
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
    graph.initializers.add(value)
    return value
