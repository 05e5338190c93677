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

from .lazy_initializers import Quantized, initializer
from .trt_formats import SMALLEST, TRT_FORMATS, TrtFormat


def quantize_for_trt(model: ir.Model, name: str, dense: bool = False) -> None:
    """Stores the layers' weights of a traced fp16 graph in that format, in place.

    A weight whose inputs no block size divides stays as it is. dense: the weights stay fp16, rounded to what the format
    stands for: the dense form of the quantised graph, which runs where the format does not.
    """
    chosen = TRT_FORMATS[name]
    for node in [*products(model)]:
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            raise AssertionError(f"{node.name} has no weight")
        block = chosen.block_of(weight.const_value.shape.numpy()[0])
        if block is None:
            continue
        if dense:
            content = partial(dense_form, weight.const_value, chosen, block)
            shape = ir.Shape(weight.const_value.shape.numpy())
            weight.const_value = ir.LazyTensor(content, ir.DataType.FLOAT16, shape, name=weight.name)
        else:
            node.replace_input_with(1, dequantized(model.graph, node, weight, chosen, block))
            del model.graph.initializers[str(weight.name)]
    # What the graph uses of an older opset means the same in the newer.
    model.opset_imports[""] = max(model.opset_imports[""], chosen.opset)


def products(model: ir.Model) -> Iterator[ir.Node]:
    """The products of the layers with a weight [in, out] as it is, in the order of the graph."""
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and weight.shape is not None and len(weight.shape) == 2:
            yield node


def dense_form(weight: ir.TensorProtocol, chosen: TrtFormat, block: int) -> ir.TensorProtocol:
    """The numbers that a stored weight stands for, fp16 [in, out]."""
    return ir.Tensor(chosen.quantize(weight.numpy().astype(np.float32), block).dense())


def dequantized(graph: ir.Graph, before: ir.Node, weight: ir.Value, chosen: TrtFormat, block: int) -> ir.Value:
    """The weight fp16 [in, out] that a stored one stands for, put in front of a node."""

    def parts(numbers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        stored = chosen.quantize(numbers, block)
        over = {} if stored.over is None else {"over": stored.over}
        return {"values": stored.values, "scale": stored.scale, **over}

    made = Quantized(weight, parts)
    inputs, outputs = made.shape
    values = made.add(graph, "values", chosen.values, [inputs, outputs])
    scale = made.add(graph, "scale", chosen.scale, [inputs // block, outputs] if block else [outputs])
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1}
    nodes = []
    if chosen.over:
        nodes.append(ir.node("DequantizeLinear", [scale, made.add(graph, "over", np.float32, [])]))
        scale = nodes[0].outputs[0]
    nodes.append(ir.node("DequantizeLinear", [values, scale], attributes))
    if chosen.over:
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.FLOAT16.value}))
    for node in nodes:
        graph.insert_before(before, node)
    return nodes[-1].outputs[0]


def quantize_activations(model: ir.Model, ranges: Mapping[str, float]) -> None:
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
