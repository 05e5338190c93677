"""Dynamic int8 for ONNX Runtime on a CPU: weights are int8 in the file, activations are quantised as they come.

Each product with a weight becomes `com.microsoft.DynamicQuantizeMatMul`, which takes one scale an output channel for
the weight and one for the whole activation; an embedding is looked up in its int8 table, a tied head's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .quantise import quantise

DOMAIN = "com.microsoft"
CHANNELS = {
    "MatMul": (1, 1),
    "Gemm": (1, 0),
    "Gather": (0, 0),
}  # where the weight is an operand, and its channels' axis


class Quantised:
    """A weight's int8 values and scales, read together; the scales are kept, since they are written a little later."""

    def __init__(self, weight: ir.TensorProtocol, axis: int) -> None:
        self.weight, self.axis = weight, axis
        self._scale: NDArray[np.float32] | None = None

    def values(self) -> ir.TensorProtocol:
        values, self._scale = quantise(self.weight.numpy(), self.axis)
        return ir.Tensor(values)

    def scale(self) -> ir.TensorProtocol:
        scale = quantise(self.weight.numpy(), self.axis)[1] if self._scale is None else self._scale
        return ir.Tensor(scale)


def quantise_weights(model: ir.Model) -> None:
    """Makes every matrix that a product or an embedding takes from the checkpoint int8, in place.

    Expects an fp32 graph whose weights are read when they are written (`graph.trace`); the rest stays fp32.
    """
    graph = model.graph
    tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in tuple(graph):
        if node.op_type not in CHANNELS or node.domain:
            continue
        place, axis = CHANNELS[node.op_type]
        weight = node.inputs[place]
        if weight is None or not is_matrix(weight):
            continue
        if weight not in tables:
            tables[weight] = store(graph, weight, axis)
        new = looked_up(node, *tables[weight]) if node.op_type == "Gather" else multiplied(node, *tables[weight])
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)
    for weight in tables:
        if weight.uses():
            raise AssertionError(f"{weight.name} is used as fp32 too")
        del graph.initializers[str(weight.name)]
    model.opset_imports[DOMAIN] = 1


def is_matrix(value: ir.Value) -> bool:
    """Whether it is a weight of the checkpoint with two axes."""
    return isinstance(value.const_value, ir.LazyTensor) and len(value.const_value.shape) == 2


def store(graph: ir.Graph, weight: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    """Initializers of a weight's int8 values [rows, columns] and fp32 scales [its length along `axis`]."""
    if weight.const_value is None:
        raise AssertionError(f"{weight.name} has no content")
    shape, source = weight.const_value.shape.numpy(), Quantised(weight.const_value, axis)
    made = (
        ir.LazyTensor(source.values, ir.DataType.INT8, ir.Shape(shape), name=f"{weight.name}.int8"),
        ir.LazyTensor(source.scale, ir.DataType.FLOAT, ir.Shape([shape[axis]]), name=f"{weight.name}.scale"),
    )
    values = [ir.Value(name=t.name, shape=t.shape, type=ir.TensorType(t.dtype), const_value=t) for t in made]
    for value in values:
        graph.initializers.add(value)
    return values[0], values[1]


def multiplied(node: ir.Node, table: ir.Value, scale: ir.Value) -> Sequence[ir.Node]:
    """In the place of MatMul (weight [in, out]), or of Gemm (weight [out, in], and a bias)."""
    before: list[ir.Node] = []
    bias = None
    if node.op_type == "Gemm":
        if not node.attributes.get_int("transB", 0):
            raise AssertionError(f"{node} takes its weight as [in, out]")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        # ONNX Runtime does this once, when it loads the model.
        before.append(ir.node("Transpose", [table], {"perm": [1, 0]}))
        table = before[0].outputs[0]
    inputs = [node.inputs[0], table, scale, None, bias]
    return [*before, ir.node("DynamicQuantizeMatMul", inputs, domain=DOMAIN)]


def looked_up(node: ir.Node, table: ir.Value, scale: ir.Value) -> Sequence[ir.Node]:
    """In the place of Gather on the rows of an embedding [vocab, hidden]."""
    ids = node.inputs[1]  # [batch, width]
    rows = ir.node("Gather", [table, ids])  # int8 [batch, width, hidden]
    wide = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value})
    scales = ir.node("Gather", [scale, ids])  # [batch, width]
    last = ir.node("Constant", [], {"value_ints": [-1]})
    column = ir.node("Unsqueeze", [scales.outputs[0], last.outputs[0]])  # [batch, width, 1]
    return [rows, wide, scales, last, column, ir.node("Mul", [wide.outputs[0], column.outputs[0]])]
