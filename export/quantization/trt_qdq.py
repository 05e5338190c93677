"""Quantizes matrix products in standard ONNX: weights by DequantizeLinear, calibrated activations by Q and DQ nodes.

Only the layers' products are quantized. Embedding and head stay as they are, since a tied head is also the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.lazy_weights import list_sources

from .lazy_initializers import PartsOf, Quantized, add_initializer
from .own_codes import OwnCodes
from .trt_formats import SMALLEST, TRT_FORMATS, TrtFormat


def quantize_for_trt(
    model: ir.Model, name: str, dense: bool = False, own: Mapping[str, OwnCodes] | None = None
) -> None:
    """Stores the layers' weights of a traced fp16 graph in the format `name`, in place.

    A weight whose inputs no block size divides stays as it is. dense: makes the dequantized graph instead, its weights
    rounded to the format but stored in fp16, for engines that lack the format. own: how a directory's quantized weights
    are stored, by the checkpoint's names; if given, other weights stay as they are.
    """
    chosen = TRT_FORMATS[name]
    for node in [*find_products(model)]:
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            raise AssertionError(f"{node.name} has no weight")
        if own is not None:
            codes = own.get(list_sources(str(weight.name), ())[0])
            if codes is not None and not dense:  # dense: the weights are these numbers already
                store_own(model.graph, node, weight, codes)
            continue
        block = chosen.choose_block(weight.const_value.shape.numpy()[0])
        if block is None:
            continue
        if dense:
            content = partial(dequantize_weight, weight.const_value, chosen, block)
            shape = ir.Shape(weight.const_value.shape.numpy())
            weight.const_value = ir.LazyTensor(content, ir.DataType.FLOAT16, shape, name=weight.name)
        else:
            node.replace_input_with(1, insert_dequantization(model.graph, node, weight, chosen, block))
            del model.graph.initializers[str(weight.name)]
    # Operators of the graph's older opset mean the same in the newer one.
    model.opset_imports[""] = max(model.opset_imports[""], chosen.opset)


def find_products(model: ir.Model) -> Iterator[ir.Node]:
    """Yields the layers' products whose weight [in, out] is an initializer, in the order of the graph."""
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and weight.shape is not None and len(weight.shape) == 2:
            yield node


def store_own(graph: ir.Graph, node: ir.Node, weight: ir.Value, codes: OwnCodes) -> None:
    """Makes a product take a directory's own numbers by DequantizeLinear, its inputs gathered in the groups' order."""
    if codes.order is not None:
        gathered = ir.node("Gather", [node.inputs[0], codes.add_order(graph, weight)], {"axis": -1})
        graph.insert_before(node, gathered)
        node.replace_input_with(0, gathered.outputs[0])
    made, (outputs, inputs), int4 = (
        PartsOf(str(weight.name), codes.make_symmetric_arrays),
        codes.shape,
        TRT_FORMATS["int4"],
    )
    values = made.add(graph, "values", int4.values, [inputs, outputs])
    scale = made.add(graph, "scale", int4.scale, [inputs // codes.block, outputs])
    wide = ir.node("DequantizeLinear", [values, scale], {"axis": 0, "block_size": codes.block})
    graph.insert_before(node, wide)
    node.replace_input_with(1, wide.outputs[0])
    del graph.initializers[str(weight.name)]


def dequantize_weight(weight: ir.TensorProtocol, chosen: TrtFormat, block: int) -> ir.TensorProtocol:
    """Returns the dequantized weight, fp16 [in, out]."""
    return ir.Tensor(chosen.quantize(weight.numpy().astype(np.float32), block).dequantize())


def insert_dequantization(
    graph: ir.Graph, before: ir.Node, weight: ir.Value, chosen: TrtFormat, block: int
) -> ir.Value:
    """Inserts, before a node, nodes that dequantize a stored weight; returns the dequantized value, fp16 [in, out]."""

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
    """Inserts int8 Q and DQ nodes before the layers' products, in place, so that products of int8 weights run in int8.

    ranges: the largest |x| of each product's input, by the name of the product's output.
    """
    for node in [node for node in model.graph if node.outputs[0].name in ranges]:
        x, name = node.inputs[0], str(node.outputs[0].name)
        scale = np.float16(max(ranges[name] / 127, SMALLEST))
        constants: dict[str, NDArray[Any]] = {"scale": np.asarray(scale), "zero": np.asarray(0, np.int8)}
        made = [add_initializer(model.graph, f"{name}.{part}", ir.Tensor(array)) for part, array in constants.items()]
        narrow = ir.node("QuantizeLinear", [x, *made])
        wide = ir.node("DequantizeLinear", [narrow.outputs[0], *made])
        for added in (narrow, wide):
            model.graph.insert_before(node, added)
        node.replace_input_with(0, wide.outputs[0])
