"""Quantizes a `standard` graph's weights for `com.microsoft.MatMulNBits`, which ONNX Runtime has on CUDA and CPUs.

The quantized numbers are those of TensorRT's graphs in the same precision (`trt_formats`): symmetric, with fp16 scales.
Products are computed in fp16. Activations are not quantized, so the reference is PyTorch's model with the dequantized
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.lazy_weights import list_sources

from .lazy_initializers import QuantizedParts
from .ort_int4 import pack_pairs
from .ort_int8 import DOMAIN
from .own_codes import OwnCodes
from .trt_formats import TRT_FORMATS, StoredWeight, WeightArray
from .trt_qdq import find_products

BITS = {"int8": 8, "int4": 4}  # bits per value, by the format's name
BLOCK = 32  # inputs per block if the format has one scale per output, which is then repeated for each block


def quantize_for_nbits(model: ir.Model, name: str, own: Mapping[str, OwnCodes] | None = None) -> None:
    """Stores the layers' weights of a traced fp16 graph in the format `name` of `BITS`, in place.

    A weight stays in fp16 if no block size of the format divides its number of inputs, as in TensorRT's graphs. own: as
    in `quantize_for_trt`.
    """
    model.opset_imports[DOMAIN] = 1
    weight_format, bits = TRT_FORMATS[name], BITS[name]
    for node in [*find_products(model)]:
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            raise AssertionError(f"{node.name} has no weight")
        if own is not None:
            if codes := own.get(list_sources(str(weight.name), ())[0]):
                initializers = codes.store(model.graph, weight, 1, np.float16)
                replace_product(model.graph, node, codes.make_product(node, initializers, round_activations=False))
            continue
        inputs, outputs = weight.const_value.shape.numpy()
        format_block = weight_format.choose_block(inputs)
        if format_block is None:
            continue
        block = format_block or BLOCK

        def make_parts(
            numbers: WeightArray, format_block: int = format_block, block: int = block
        ) -> dict[str, NDArray[Any]]:
            return make_arrays(weight_format.quantize(numbers, format_block), bits, block)

        parts, blocks = QuantizedParts(weight, make_parts), -(-inputs // block)
        values = parts.add(model.graph, name, np.uint8, (outputs, blocks, block * bits // 8))
        scale = parts.add(model.graph, "scale", np.float16, (outputs, blocks))
        sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
        product = ir.node("MatMulNBits", [node.inputs[0], values, scale], sizes, domain=DOMAIN)
        replace_product(model.graph, node, [product])


def replace_product(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Replaces a product by nodes that take its weight in another form, and removes the weight's fp16 initializer."""
    weight = node.inputs[1]
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)
    if weight is not None:
        del graph.initializers[str(weight.name)]


def make_arrays(stored: StoredWeight, bits: int, block: int) -> dict[str, NDArray[Any]]:
    """Returns a weight's arrays for `MatMulNBits`: values uint8 [out, blocks, bytes], scales fp16 [out, blocks].

    Each value is shifted by half the range, which is the zero point that the operator assumes if none is given. The
    last block is padded with zero points.
    """
    values, zero_point = stored.values.astype(np.int16).T, 1 << (bits - 1)  # [out, in]
    outputs, inputs = values.shape
    blocks = -(-inputs // block)
    padded = np.full((outputs, blocks * block), zero_point, np.uint8)
    padded[:, :inputs] = (values + zero_point).astype(np.uint8)
    by_block = padded.reshape(outputs, blocks, block)
    scale = stored.scale.T if stored.block else np.repeat(stored.scale[:, None], blocks, axis=1)
    packed = by_block if bits == 8 else pack_pairs(by_block)
    return {f"int{bits}": packed, "scale": np.ascontiguousarray(scale, np.float16)}
