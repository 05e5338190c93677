"""Quantizes matrix products in standard ONNX, as TensorRT reads it.

A weight is stored quantized and followed by DequantizeLinear (DQ). A calibrated activation passes through
QuantizeLinear and DequantizeLinear (Q and DQ). Only the layers' products are quantized. Embedding and head stay as they
are, since a tied head is also the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.lazy_weights import list_sources

from .lazy_initializers import QuantizedParts, WeightParts, add_initializer
from .own_codes import OwnCodes
from .trt_formats import SMALLEST, TRT_FORMATS, TrtFormat


def quantize_for_trt(
    model: ir.Model, name: str, dense: bool = False, own: Mapping[str, OwnCodes] | None = None
) -> None:
    """Stores the layers' weights of a traced fp16 graph in the format `name` of `TRT_FORMATS`, in place.

    A weight stays in fp16 if no block size of the format divides its number of inputs.

    Args:
        model: the graph.
        name: the format's name.
        dense: whether to make the dequantized graph instead, for engines that lack the format: weights are rounded to
            the format and stored in fp16.
        own: how the weights that a directory holds quantized are stored, by the checkpoint's names; the other weights
            then stay in fp16. None to quantize the layers' weights.
    """
    weight_format = TRT_FORMATS[name]
    for node in [*find_products(model)]:
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            raise AssertionError(f"{node.name} has no weight")
        if own is not None:
            codes = own.get(list_sources(str(weight.name), ())[0])
            if codes is not None and not dense:  # a dense graph's weights have these numbers already
                replace_by_own_codes(model.graph, node, weight, codes)
            continue
        block = weight_format.choose_block(weight.const_value.shape.numpy()[0])
        if block is None:
            continue
        if dense:
            content = partial(dequantize_weight, weight.const_value, weight_format, block)
            shape = ir.Shape(weight.const_value.shape.numpy())
            weight.const_value = ir.LazyTensor(content, ir.DataType.FLOAT16, shape, name=weight.name)
        else:
            node.replace_input_with(1, insert_dequantization(model.graph, node, weight, weight_format, block))
            del model.graph.initializers[str(weight.name)]
    # Operators of the graph's older opset mean the same in the newer one.
    model.opset_imports[""] = max(model.opset_imports[""], weight_format.opset)


def find_products(model: ir.Model) -> Iterator[ir.Node]:
    """Yields the layers' products whose weight [in, out] is an initializer, in the order of the graph."""
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and weight.shape is not None and len(weight.shape) == 2:
            yield node


def replace_by_own_codes(graph: ir.Graph, node: ir.Node, weight: ir.Value, codes: OwnCodes) -> None:
    """Makes a product take a directory's own quantized numbers, through DequantizeLinear.

    If the weight's inputs are not in the order of their groups, the product's input is gathered in that order first.
    """
    if codes.order is not None:
        gathered = ir.node("Gather", [node.inputs[0], codes.add_order(graph, weight)], {"axis": -1})
        graph.insert_before(node, gathered)
        node.replace_input_with(0, gathered.outputs[0])
    parts = WeightParts(str(weight.name), codes.make_symmetric_arrays)
    (outputs, inputs), int4 = codes.shape, TRT_FORMATS["int4"]
    values = parts.add(graph, "values", int4.values, [inputs, outputs])
    scale = parts.add(graph, "scale", int4.scale, [inputs // codes.block, outputs])
    dequantization = ir.node("DequantizeLinear", [values, scale], {"axis": 0, "block_size": codes.block})
    graph.insert_before(node, dequantization)
    node.replace_input_with(1, dequantization.outputs[0])
    del graph.initializers[str(weight.name)]


def dequantize_weight(weight: ir.TensorProtocol, weight_format: TrtFormat, block: int) -> ir.TensorProtocol:
    """Quantizes a weight [in, out] and returns the dequantized weight, fp16 [in, out]."""
    return ir.Tensor(weight_format.quantize(weight.numpy().astype(np.float32), block).dequantize())


def insert_dequantization(
    graph: ir.Graph, before: ir.Node, weight: ir.Value, weight_format: TrtFormat, block: int
) -> ir.Value:
    """Stores a weight quantized and inserts, before a node, the nodes that dequantize it.

    Returns the dequantized value, fp16 [in, out].
    """

    def make_parts(numbers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        stored = weight_format.quantize(numbers, block)
        over = {} if stored.over is None else {"over": stored.over}
        return {"values": stored.values, "scale": stored.scale, **over}

    parts = QuantizedParts(weight, make_parts)
    inputs, outputs = parts.shape
    values = parts.add(graph, "values", weight_format.values, [inputs, outputs])
    scale = parts.add(graph, "scale", weight_format.scale, [inputs // block, outputs] if block else [outputs])
    attributes = {"axis": 0, "block_size": block} if block else {"axis": 1}
    nodes = []
    if weight_format.over:
        nodes.append(ir.node("DequantizeLinear", [scale, parts.add(graph, "over", np.float32, [])]))
        scale = nodes[0].outputs[0]
    nodes.append(ir.node("DequantizeLinear", [values, scale], attributes))
    if weight_format.over:
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": ir.DataType.FLOAT16.value}))
    for node in nodes:
        graph.insert_before(before, node)
    return nodes[-1].outputs[0]


def quantize_activations(model: ir.Model, ranges: Mapping[str, float]) -> None:
    """Inserts int8 Q and DQ nodes before the layers' products, in place, so that TensorRT multiplies in int8.

    ranges: the largest |x| of each product's input, by the name of the product's output; products without one stay as
    they are.
    """
    for node in [node for node in model.graph if node.outputs[0].name in ranges]:
        x, name = node.inputs[0], str(node.outputs[0].name)
        scale = np.float16(max(ranges[name] / 127, SMALLEST))
        constants: dict[str, NDArray[Any]] = {"scale": np.asarray(scale), "zero": np.asarray(0, np.int8)}
        parameters = [
            add_initializer(model.graph, f"{name}.{part}", ir.Tensor(array)) for part, array in constants.items()
        ]
        quantization = ir.node("QuantizeLinear", [x, *parameters])
        dequantization = ir.node("DequantizeLinear", [quantization.outputs[0], *parameters])
        for new in (quantization, dequantization):
            model.graph.insert_before(node, new)
        node.replace_input_with(0, dequantization.outputs[0])
