"""Quantizes the weights of a `standard` graph with `com.microsoft.MatMulNBits`, which both CUDA and the CPU have.

The numbers are those of TensorRT's graphs in the same precision (`trt_formats`): symmetric, with fp16 scales, and
multiplied in fp16. Activations are not rounded, so the reference is PyTorch's model with these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.lazy_weights import list_sources

from .lazy_initializers import Quantized
from .ort_int4 import pack_pairs
from .ort_int8 import DOMAIN
from .own_codes import OwnCodes
from .trt_formats import TRT_FORMATS, StoredWeight, WeightArray
from .trt_qdq import find_products

BITS = {"int8": 8, "int4": 4}  # bits per value, by the format's name
BLOCK = 32  # inputs per block, for formats with one scale per output: the operator has only scales per block


def quantize_for_nbits(model: ir.Model, name: str, own: Mapping[str, OwnCodes] | None = None) -> None:
    """Stores the layers' weights of a traced fp16 graph in the format `name` of `BITS`, in place.

    A weight whose inputs no block size divides stays as it is, as in TensorRT's graphs. own: as in `quantize_for_trt`.
    """
    model.opset_imports[DOMAIN] = 1
    chosen, bits = TRT_FORMATS[name], BITS[name]
    for node in [*find_products(model)]:
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            raise AssertionError(f"{node.name} has no weight")
        if own is not None:
            if codes := own.get(list_sources(str(weight.name), ())[0]):
                stored = codes.store(model.graph, weight, 1, np.float16)
                replace_product(model.graph, node, codes.make_product(node, stored, rounded_activations=False))
            continue
        inputs, outputs = weight.const_value.shape.numpy()
        stored_block = chosen.choose_block(inputs)
        if stored_block is None:
            continue
        block = stored_block or BLOCK

        def parts(
            numbers: WeightArray, stored_block: int = stored_block, block: int = block
        ) -> dict[str, NDArray[Any]]:
            return make_arrays(chosen.quantize(numbers, stored_block), bits, block)

        made, blocks = Quantized(weight, parts), -(-inputs // block)
        values = made.add(model.graph, name, np.uint8, (outputs, blocks, block * bits // 8))
        scale = made.add(model.graph, "scale", np.float16, (outputs, blocks))
        sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
        new = ir.node("MatMulNBits", [node.inputs[0], values, scale], sizes, domain=DOMAIN)
        replace_product(model.graph, node, [new])


def replace_product(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Replaces a product by nodes that hold its weight in another form, and removes the weight."""
    weight = node.inputs[1]
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)
    if weight is not None:
        del graph.initializers[str(weight.name)]


def make_arrays(stored: StoredWeight, bits: int, block: int) -> dict[str, NDArray[Any]]:
    """Returns a weight as the operator takes it: values uint8 [out, blocks, bytes], scales fp16 [out, blocks].

    Values are shifted by half their range, the operator's default zero point.
    """
    values, half = stored.values.astype(np.int16).T, 1 << (bits - 1)  # [out, in]
    outputs, inputs = values.shape
    blocks = -(-inputs // block)
    padded = np.full((outputs, blocks * block), half, np.uint8)
    padded[:, :inputs] = (values + half).astype(np.uint8)
    in_blocks = padded.reshape(outputs, blocks, block)
    scale = stored.scale.T if stored.block else np.repeat(stored.scale[:, None], blocks, axis=1)
    packed = in_blocks if bits == 8 else pack_pairs(in_blocks)
    return {f"int{bits}": packed, "scale": np.ascontiguousarray(scale, np.float16)}
