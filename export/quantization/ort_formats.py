"""Quantizes the weights of an `ort` graph: defines the formats, and which weight has which format in a precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from torch import Tensor, nn

from export.graph.lazy_weights import list_sources
from train.checkpoint import Checkpoint

from . import ort_int4, ort_int8
from .own_codes import find_own_codes, is_quantized

LAYER = re.compile(r"layers\.(\d+)\.")
CHANNELS = {"MatMul": (1, 1), "Gemm": (1, 0), "Gather": (0, 0)}  # index of the input that is the weight, channel axis


@dataclass(frozen=True, slots=True)
class OrtFormat:
    """Describes how the weight of a product is stored, and what the product then computes.

    Attributes:
        store: adds a weight's initializers to a graph and returns them, given the axis of its channels, which are the
            rows of the checkpoint's weight.
        make_product: returns the nodes that replace a product, given these initializers.
        make_linear: returns a module that repeats the product's arithmetic in PyTorch, given weight [out, in] and bias
            [out].
    """

    store: Callable[[ir.Graph, ir.Value, int], tuple[ir.Value, ...]]
    make_product: Callable[[ir.Node, Sequence[ir.Value]], Sequence[ir.Node]]
    make_linear: Callable[[Tensor, Tensor | None], nn.Module]


@dataclass(frozen=True, slots=True)
class OrtFormats:
    """Holds the formats of the layers' weights: `ends` for the first and the last layer, `inner` for those between.

    Embedding and head are always int8, in one table if they are tied. own: formats of single weights, by the
    checkpoint's names; they take precedence.
    """

    inner: OrtFormat
    ends: OrtFormat
    own: Mapping[str, OrtFormat] = field(default_factory=dict)

    def choose_format(self, name: str, layers: int) -> OrtFormat:
        """Returns the format of a layer's weight, given the checkpoint's name for it and the model's layers."""
        match = LAYER.match(name)
        if match is None:
            raise AssertionError(f"{name} is not a weight of a layer")
        return self.own.get(name) or (self.ends if int(match[1]) in (0, layers - 1) else self.inner)

    def bind_layer(self, i: int, layers: int) -> Callable[[str], OrtFormat]:
        """Returns a function that maps a module's name in layer i, such as `mlp.up_proj`, to its format."""
        return lambda module: self.choose_format(f"layers.{i}.{module}.weight", layers)


INT8 = OrtFormat(ort_int8.store, ort_int8.make_product_nodes, ort_int8.Int8Linear)
INT4 = OrtFormat(ort_int4.store, ort_int4.make_product_nodes, ort_int4.Int4Linear)
# int8 in the first and last layer halves what int4 loses, for a few per cent more bytes of a deep model (LOG.md).
ORT_FORMATS = {"int8": OrtFormats(INT8, INT8), "int4": OrtFormats(INT4, INT8)}


def choose_formats(dialect: str, precision: str, source: Checkpoint | None = None) -> OrtFormats | None:
    """Returns how an engine's weights are stored; None if they are not quantized, or not in one of these formats.

    source: the checkpoint of the weights. If its directory holds quantized weights, the precision int4 stores the
    directory's own numbers, and the weights that it left unquantized in int8. Raises UserError if they cannot be stored
    so.
    """
    formats = ORT_FORMATS.get(precision) if dialect == "ort" else None
    if formats is None or precision != "int4" or source is None or not is_quantized(source):
        return formats
    own = {
        name: OrtFormat(codes.store, codes.make_product, codes.make_linear)
        for name, codes in find_own_codes(source).items()
    }
    return OrtFormats(INT8, INT8, own)


def quantize_for_ort(model: ir.Model, formats: OrtFormats, layers: int) -> None:
    """Stores the matrices of an fp32 graph's products and embeddings in their formats, in place.

    Everything else stays fp32. Expects a graph of `layers` layers whose weights are read only when they are written
    (`step_graph.trace`).
    """
    graph, initializers = model.graph, dict[ir.Value, tuple[ir.Value, ...]]()
    for node in tuple(graph):
        if node.op_type not in CHANNELS or node.domain:
            continue
        index, axis = CHANNELS[node.op_type]
        weight = node.inputs[index]
        content = None if weight is None else weight.const_value
        if weight is None or not isinstance(content, ir.LazyTensor) or len(content.shape) != 2:
            continue  # not a matrix of the checkpoint
        name = str(weight.name)
        weight_format = formats.choose_format(list_sources(name, ())[0], layers) if LAYER.match(name) else INT8
        if weight not in initializers:
            initializers[weight] = weight_format.store(graph, weight, axis)
        make_nodes = ort_int8.make_lookup_nodes if node.op_type == "Gather" else weight_format.make_product
        new = make_nodes(node, initializers[weight])
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)
    for weight in initializers:
        if weight.uses():
            raise AssertionError(f"{weight.name} is used as fp32 too")
        del graph.initializers[str(weight.name)]
    model.opset_imports[ort_int8.DOMAIN] = 1
