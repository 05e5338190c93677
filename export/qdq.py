"""Quantised products in standard ONNX: weights behind DequantizeLinear, and calibrated activations behind Q and DQ.

The products of the layers are quantised; embedding and head stay as they are, since a tied head is both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .weight_formats import FORMATS, SMALLEST, Format, Stored


class Source:
    """A weight that is quantised when it is written; its scales, written a little later, are kept until then."""

    def __init__(self, weight: ir.TensorProtocol, chosen: Format, block: int) -> None:
        self.weight, self.chosen, self.block = weight, chosen, block
        self._kept: dict[str, NDArray[Any]] = {}

    def quantised(self) -> Stored:
        """The weight as it is stored. [in, out]"""
        return self.chosen.quantise(self.weight.numpy().astype(np.float32), self.block)

    def dense(self) -> ir.TensorProtocol:
        """The numbers that it stands for, fp16 [in, out]."""
        return ir.Tensor(self.quantised().dense())

    def read(self, part: str) -> ir.TensorProtocol:
        """`values`, `scale` or `over` of it."""
        if part not in self._kept:
            stored = self.quantised()
            parts = {name: getattr(stored, name) for name in ("values", "scale", "over")}
            self._kept = {name: array for name, array in parts.items() if name != "values"}
            return ir.Tensor(parts[part])
        return ir.Tensor(self._kept[part])


def quantise_weights(model: ir.Model, name: str, dense: bool = False) -> None:
    """Stores the layers' weights of a traced fp16 graph in that format, in place.

    A weight whose inputs no block size divides stays as it is. dense: the weights stay fp16, rounded to what the format
    stands for: the dense form of the quantised graph, which runs where the format does not.
    """
    chosen = FORMATS[name]
    for node in [*products(model)]:
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or weight.shape is None:
            raise AssertionError(f"{node.name} has no weight")
        block = chosen.block_of(size(weight.shape[0]))
        if block is None:
            continue
        source = Source(weight.const_value, chosen, block)
        if dense:
            weight.const_value = ir.LazyTensor(source.dense, ir.DataType.FLOAT16, weight.shape, name=weight.name)
        else:
            node.replace_input_with(1, dequantised(model.graph, node, source))
            del model.graph.initializers[str(weight.name)]
    # What the graph uses of an older opset means the same in the newer.
    model.opset_imports[""] = max(model.opset_imports[""], chosen.opset)


def products(model: ir.Model) -> Iterator[ir.Node]:
    """The products of the layers with a weight [in, out] as it is, in the order of the graph."""
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and weight.shape is not None and len(weight.shape) == 2:
            yield node


def dequantised(graph: ir.Graph, before: ir.Node, source: Source) -> ir.Value:
    """The weight fp16 [in, out] that a stored one stands for, put in front of a node."""
    chosen, (inputs, outputs) = source.chosen, source.weight.shape
    scale_shape = [size(inputs) // source.block, outputs] if source.block else [outputs]
    values = lazily(graph, source, "values", chosen.values, [inputs, outputs])
    scale = lazily(graph, source, "scale", chosen.scale, scale_shape)
    attributes = {"axis": 0, "block_size": source.block} if source.block else {"axis": 1}
    nodes = []
    if chosen.over:
        nodes.append(ir.node("DequantizeLinear", [scale, lazily(graph, source, "over", np.float32, [])]))
        scale = nodes[0].outputs[0]
    nodes.append(ir.node("DequantizeLinear", [values, scale], attributes))
    if chosen.over:
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.FLOAT16.value}))
    for node in nodes:
        graph.insert_before(before, node)
    return nodes[-1].outputs[0]


def size(axis: object) -> int:
    """The length of an axis of a weight, which is never open."""
    if not isinstance(axis, int):
        raise AssertionError(f"{axis} is no length")
    return axis


def lazily(graph: ir.Graph, source: Source, part: str, dtype: type, shape: list[Any]) -> ir.Value:
    """An initializer of a part of a stored weight."""
    name, kind = f"{source.weight.name}.{part}", ir.DataType.from_numpy(np.dtype(dtype))
    tensor = ir.LazyTensor(partial(source.read, part), kind, ir.Shape(shape), name=name)
    return initializer(graph, name, tensor)


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new constant of the graph."""
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
    graph.initializers.add(value)
    return value


def quantise_activations(model: ir.Model, ranges: Mapping[str, float]) -> None:
    """Puts int8 Q and DQ in front of the layers' products, in place, so that those with int8 weights may run in int8.

    ranges: the largest |x| of a product's input, by the name of its output.
    """
    for node in [node for node in model.graph if node.outputs[0].name in ranges]:
        x, name = node.inputs[0], str(node.outputs[0].name)
        scale = np.float16(max(ranges[name] / 127, SMALLEST))
        constants: dict[str, NDArray[Any]] = {"scale": np.asarray(scale), "zero": np.asarray(0, np.int8)}
        made = [initializer(model.graph, f"{name}.{part}", ir.Tensor(array)) for part, array in constants.items()]
        narrow = ir.node("QuantizeLinear", [x, *made])
        wide = ir.node("DequantizeLinear", [narrow.outputs[0], *made])
        for added in (narrow, wide):
            model.graph.insert_before(node, added)
        node.replace_input_with(0, wide.outputs[0])
