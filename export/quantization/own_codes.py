"""Stores in int4 the weights that a directory holds quantized (GPTQ, AWQ), with their own numbers: not rounded again.

In the dialect `ort` a product becomes `com.microsoft.MatMulNBits` with the directory's values, zero points and scales
(fp32, which loses nothing), and activations are rounded as in `ort_int4`. In `standard` the scales are fp16, and
activations are not rounded. TensorRT has no zero points, so its graphs take only symmetric weights.

A directory has one scale per group of inputs, an engine one per block. If a group has more inputs than a block, its
scale is repeated for each of its blocks. If a weight's inputs are not in the order of their groups (act-order), the
product's input is gathered in that order first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.huggingface.packed_weights import PackedWeight
from train.huggingface.weights import HEAD, DirectoryWeights

from .lazy_initializers import WeightParts, add_initializer
from .ort_int4 import pack_pairs, round_activations, unpack_pairs
from .ort_int8 import DOMAIN
from .trt_formats import TRT_FORMATS

BLOCKS = (128, 64, 32, 16)  # inputs per block; the first that divides a group is used
BITS = 4  # bits per stored value; weights of 2 and 3 bits are stored in 4
INSTEAD = "export it to fp16 or int8"
ORT_INSTEAD = f"{INSTEAD}, or to int4 for ONNX Runtime in the dialect ort, which holds the directory's own numbers"
FUSED = ("q_proj", "k_proj", "v_proj")  # a graph computes them as one product


@dataclass(frozen=True, slots=True)
class OwnCodes:
    """Describes how the weight of one product is stored.

    Attributes:
        parts: the directory's weights that together are this weight, in the order of their rows.
        block: inputs per block.
        order: indices of the inputs in the order of their groups, int64 [in]; None if they are in that order already.
    """

    parts: tuple[PackedWeight, ...]
    block: int
    order: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Returns the numbers of outputs and inputs."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def make_arrays(self) -> Mapping[str, NDArray[Any]]:
        """Returns MatMulNBits' arrays: `int4`, `scale` and `zero`.

        Values are uint8 [out, blocks, block / 2], two per byte; scales fp32 [out, blocks]; zero points uint8
        [out, half of blocks, rounded up], two per byte.
        """
        codes = [part.unpack() for part in self.parts]
        (outputs, inputs), group_size = self.shape, self.parts[0].group_size
        blocks = -(-inputs // self.block)
        group = torch.arange(blocks) * self.block // group_size  # the group of each block
        values, zeros = torch.cat([each.values for each in codes]), torch.cat([each.zeros for each in codes])
        zeros, scales = zeros[:, group], torch.cat([each.scales for each in codes])[:, group]
        padding = zeros[:, -1:].expand(-1, blocks * self.block - inputs)  # the zero point is the value that means 0
        values = torch.cat((values if self.order is None else values[:, self.order], padding), dim=1)
        packed = pack_pairs(values.view(outputs, blocks, self.block).numpy())
        return {"int4": packed, "scale": scales.contiguous().numpy(), "zero": pack_pairs(zeros.numpy())}

    def make_symmetric_arrays(self) -> Mapping[str, NDArray[Any]]:
        """Returns TensorRT's arrays: values int4 [in, out] around 0, scales fp16 [in / block, out]."""
        arrays, (outputs, inputs), int4 = self.make_arrays(), self.shape, TRT_FORMATS["int4"]
        values = unpack_pairs(arrays["int4"].reshape(outputs, -1), inputs).astype(np.int8) - (1 << (BITS - 1))
        return {"values": values.T.astype(int4.values), "scale": arrays["scale"].T.astype(int4.scale)}

    def store(self, graph: ir.Graph, weight: ir.Value, axis: int, scales: type = np.float32) -> tuple[ir.Value, ...]:
        """Adds initializers of the arrays of `make_arrays`, and of `order` unless it is None; returns them.

        axis: not used, because a directory's values are [out, in]. scales: type of the scales.
        """

        def make_parts() -> Mapping[str, NDArray[Any]]:
            arrays = self.make_arrays()
            return {**arrays, "scale": arrays["scale"].astype(scales, copy=False)}

        parts, (outputs, inputs) = WeightParts(str(weight.name), make_parts), self.shape
        blocks = -(-inputs // self.block)
        initializers = (
            parts.add(graph, "int4", np.uint8, (outputs, blocks, self.block // 2)),
            parts.add(graph, "scale", scales, (outputs, blocks)),
            parts.add(graph, "zero", np.uint8, (outputs, -(-blocks // 2))),
        )
        return initializers if self.order is None else (*initializers, self.add_order(graph, weight))

    def add_order(self, graph: ir.Graph, weight: ir.Value) -> ir.Value:
        """Adds an initializer of the inputs' order, int64 [in], and returns it."""
        if self.order is None:
            raise AssertionError(f"{weight.name} has its inputs in their own order")
        return add_initializer(graph, f"{weight.name}.order", ir.Tensor(self.order.numpy()))

    def make_product(
        self, node: ir.Node, stored: Sequence[ir.Value], round_activations: bool = True
    ) -> Sequence[ir.Node]:
        """Returns the nodes that replace MatMul (weight [in, out]).

        stored: the initializers that `store` added. round_activations: whether the product rounds its activations.
        """
        x, (outputs, inputs) = node.inputs[0], self.shape
        before = [ir.node("Gather", [x, stored[3]], {"axis": -1})] if self.order is not None else []
        sizes = {"K": inputs, "N": outputs, "bits": BITS, "block_size": self.block}
        sizes |= {"accuracy_level": 4} if round_activations else {}
        x = before[0].outputs[0] if before else x
        return [*before, ir.node("MatMulNBits", [x, *stored[:3]], sizes, domain=DOMAIN)]

    def make_linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """Returns a module with the product's arithmetic in PyTorch, for the dequantized weight, fp32 [out, in]."""
        return OwnCodesLinear(weight, bias, self.block, self.order)


class OwnCodesLinear(nn.Module):
    """Computes x @ weight.T + bias as `MatMulNBits` does on x86: with activations rounded per row and block.

    weight: dequantized, fp32 [out, in]. block, order: as in `OwnCodes`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, block: int, order: Tensor | None) -> None:
        super().__init__()
        weight = weight.float() if order is None else weight.float()[:, order]
        self.weight, self.bias = F.pad(weight, (0, -weight.shape[1] % block)), bias
        self.block, self.order = block, order

    def forward(self, x: Tensor) -> Tensor:
        """Maps x fp32 [..., in] to fp32 [..., out]."""
        x = x if self.order is None else x[..., self.order]
        return F.linear(
            round_activations(F.pad(x, (0, self.weight.shape[1] - x.shape[-1])), self.block), self.weight, self.bias
        )


def find_packed_weights(source: Checkpoint) -> Mapping[str, PackedWeight]:
    """Returns the weights that a checkpoint's directory holds quantized, by the checkpoint's names."""
    return source.weights.packed if isinstance(source.weights, DirectoryWeights) else {}


def is_quantized(source: Checkpoint) -> bool:
    """Returns whether a checkpoint's directory holds quantized weights, even if an adapter was merged into them."""
    weights = source.weights
    return isinstance(weights, DirectoryWeights) and bool(weights.packed or weights.merged)


def find_own_codes(source: Checkpoint) -> dict[str, OwnCodes]:
    """Returns how each quantized weight of a checkpoint is stored in int4, by the checkpoint's names.

    Raises UserError if int4 would have to round one of them again.
    """
    packed, codes = find_packed_weights(source), dict[str, OwnCodes]()
    if isinstance(source.weights, DirectoryWeights) and source.weights.merged:
        raise UserError(
            f"int4 would round {source.weights.merged[0]} a second time: an adapter is merged into quantized weights; "
            f"{INSTEAD}, or leave --adapter out"
        )
    if HEAD in packed:
        raise UserError(f"int4 would round the head a second time, which is quantized in its directory; {INSTEAD}")
    for name in packed:
        if name not in codes:
            names = list_fused_names(name)
            if missing := [each for each in names if each not in packed]:
                first = next(each for each in names if each in packed)
                raise UserError(f"{first} is quantized and {missing[0]} is not, which int4 stores as one; {INSTEAD}")
            codes |= dict.fromkeys(names, fuse_codes([packed[each] for each in names]))
    return codes


def list_fused_names(name: str) -> tuple[str, ...]:
    """Returns the names of the weights that a graph stores as one with weight `name`, in the order of their rows."""
    module, _, last = name.removesuffix(".weight").rpartition(".")
    return tuple(f"{module}.{each}.weight" for each in FUSED) if last in FUSED else (name,)


def fuse_codes(parts: Sequence[PackedWeight]) -> OwnCodes:
    """Returns how weights that share their inputs are stored as one weight. Raises UserError if they cannot be."""
    first, group = parts[0], parts[0].group()
    if any(not torch.equal(part.group(), group) for part in parts[1:]):
        raise UserError(f"{first.name} has its inputs in other groups than the keys or values have theirs; {INSTEAD}")
    if first.scheme.bits > BITS:
        raise UserError(
            f"{first.name} is quantized to {first.scheme.bits} bits, which int4 would round again; {INSTEAD}"
        )
    order, size = torch.argsort(group, stable=True), first.group_size
    if not torch.equal(group[order], torch.arange(len(group)) // size):
        raise UserError(f"{first.name} has groups of other than {size} inputs, which int4 cannot have; {INSTEAD}")
    block = next((each for each in BLOCKS if size % each == 0), None)
    if block is None and first.groups > 1:
        raise UserError(f"{first.name} has groups of {size} inputs; int4 takes multiples of {BLOCKS[-1]}: {INSTEAD}")
    if block is None:  # a single group: its last block is padded
        block = next((each for each in BLOCKS if each <= size), BLOCKS[-1])
    return OwnCodes(tuple(parts), block, None if torch.equal(order, torch.arange(len(order))) else order)


def find_own_codes_in_fp16(source: Checkpoint, dialect: str) -> dict[str, OwnCodes] | None:
    """Returns `find_own_codes` for a dialect whose products and scales are fp16; None if no weight is quantized.

    Raises UserError if a weight would have to be rounded again.
    """
    if not is_quantized(source):
        return None
    own_codes, checked = find_own_codes(source), set[str]()
    for name, codes in own_codes.items():
        if codes.parts[0].name not in checked:  # fused weights share their codes
            checked.add(codes.parts[0].name)
            if why := explain_inexact_in_fp16(codes, has_zero_points=dialect == "standard"):
                raise UserError(f"int4 of the dialect {dialect} would round {name} a second time: {why}; {ORT_INSTEAD}")
    return own_codes


def explain_inexact_in_fp16(codes: OwnCodes, has_zero_points: bool) -> str:
    """Returns why a weight cannot be stored exactly with fp16 scales, with or without zero points; "" if it can."""
    inputs, blocks = codes.shape[1], TRT_FORMATS["int4"].blocks
    for part in codes.parts:
        if not has_zero_points and not (part.scheme.symmetric and part.scheme.bits == BITS):
            return "it is not symmetric of 4 bits, and TensorRT's int4 holds nothing else"
        part.unpack_zeros()  # raises UserError for zero points that are uncertain or not as the directory states
        if not torch.equal((scales := part.parts["scales"].read().float()), scales.half().float()):
            return "its scales are not fp16 numbers"
    if not has_zero_points and (codes.block not in blocks or inputs % codes.block):
        return f"its groups of {codes.parts[0].group_size} of {inputs} inputs are not blocks of {blocks[-1]} or more"
    return ""


def refuse_rounding_again(source: Checkpoint, what: str) -> None:
    """Raises UserError if a checkpoint's weights are quantized: another format of 4 bits would round them again.

    what: names that format in the error.
    """
    if is_quantized(source):
        raise UserError(f"{what} would round weights again that are quantized in their directory; {ORT_INSTEAD}")
