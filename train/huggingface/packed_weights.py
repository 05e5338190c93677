"""Reads quantized weights of a Hugging Face directory: several tensors each, dequantized to fp32 when they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.errors import UserError

from .packed_codes import WORD, Codes, unpack, unpack_gptq_zeros, unpack_interleaved, unpack_rows
from .quantization_config import GEMM, GEMV, KEY, V1, V2, Scheme
from .stored_tensor import FLOATS, StoredTensor, TensorShape

PART = re.compile(r"((?:layers\.\d+\..+_proj|lm_head)\.)(qweight|qzeros|scales|g_idx)")
WHOLE_NUMBERS = ("I32",)
INDICES = ("I32", "I64")


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] by the tensors that a directory stores it in; tensors are read on demand."""

    name: str
    shape: TensorShape
    scheme: Scheme
    parts: Mapping[str, StoredTensor]

    def read(self) -> Tensor:
        """Returns the weight, fp32 [out, in]. Raises UserError as `unpack` does."""
        return self.unpack().dequantize()

    def unpack(self) -> Codes:
        """Returns the unpacked weight. Raises UserError as `unpack_zeros` and `group` do."""
        scheme, part = self.scheme, {name: stored.read() for name, stored in self.parts.items()}
        if scheme.layout in (V1, V2):
            values, scales = unpack(part["qweight"], scheme.bits).T.contiguous(), part["scales"].T
        elif scheme.layout == GEMM:
            values, scales = unpack_interleaved(part["qweight"]), part["scales"].T
        else:
            values, scales = unpack_rows(part["qweight"], 4), part["scales"][:, : self.groups]
        return Codes(values, self.unpack_zeros(), scales.float().contiguous(), self.group())

    def unpack_zeros(self) -> Tensor:
        """Returns zero points, uint8 [out, groups]. Raises UserError if they are ambiguous or not as configured."""
        scheme, stored = self.scheme, self.parts["qzeros"]
        words, where = stored.read(), f"{stored.file}: {stored.name}"
        if scheme.layout == GEMM:
            return unpack_interleaved(words)
        if scheme.layout == GEMV:
            return unpack_rows(words, 4)[:, : self.groups].contiguous()
        zeros, certain = unpack_gptq_zeros(words, scheme.bits, scheme.layout == V1, scheme.carries)
        if not certain:
            raise UserError(
                f"{where} has zero points of {(1 << scheme.bits) - 1} in GPTQ's version 1, which is 0 to some "
                f"libraries and {1 << scheme.bits} to others; save it as gptq_v2 with GPTQModel"
            )
        half = 1 << (scheme.bits - 1)
        if scheme.symmetric and (odd := zeros[zeros != half]).numel():
            raise UserError(
                f"{where} has the zero point {odd[0]} by its layout {scheme.layout}, but {KEY} says sym, which is "
                f"{half}; correct checkpoint_format ({V1} or {V2}) or sym there"
            )
        return zeros

    def group(self) -> Tensor:
        """Returns the group of each input, int64 [in]. Raises UserError if out of range or not as in the config."""
        stored = self.parts.get("g_idx")
        if stored is None:
            return torch.arange(self.shape[1]) // self.group_size
        group = stored.read().to(torch.int64)
        if not ((group >= 0) & (group < self.groups)).all():
            raise UserError(
                f"{stored.file}: {stored.name} has groups outside 0 to {self.groups - 1}; download it again"
            )
        if not self.scheme.act_order and not torch.equal(group, torch.arange(self.shape[1]) // self.group_size):
            raise UserError(
                f"{stored.file}: {stored.name} has its inputs' groups in an order of their own, but {KEY} says "
                "desc_act false; correct it there"
            )
        return group

    @property
    def group_size(self) -> int:
        """Returns the number of inputs per group."""
        return self.scheme.group_size or self.shape[1]

    @property
    def groups(self) -> int:
        """Returns the number of groups."""
        return -(-self.shape[1] // self.group_size)


def read_packed_weight(name: str, shape: TensorShape, scheme: Scheme, parts: Iterable[StoredTensor]) -> PackedWeight:
    """Returns a weight after a look at its tensors' headers.

    Raises UserError for a tensor that is missing, or of another shape or type than the scheme's, and for a weight that
    the scheme cannot pack.
    """
    found = {stored.name.rpartition(".")[2]: stored for stored in parts}
    made = PackedWeight(name, shape, scheme, found)
    if any(size * scheme.bits % WORD for size in count_packed_sizes(made)):
        file = next(iter(found.values())).file
        raise UserError(
            f"{file}: {name} is {list(shape)} by its config, whose values of {scheme.bits} bits do not fill whole "
            f"words ({scheme.layout}); correct its sizes or {KEY} there"
        )
    for part, (expected, kinds) in list_expected_parts(made).items():
        stored = found.get(part)
        if stored is None:
            if part == "g_idx" and not scheme.act_order:
                continue
            there = next(iter(found.values()))
            raise UserError(f"{there.file} has {there.name} without {part}; download it again")
        if stored.shape != expected:
            raise UserError(
                f"{stored.file}: {stored.name} is {list(stored.shape)}; by its config ({scheme.layout}, {scheme.bits} "
                f"bits, groups of {made.group_size}) it should be {list(expected)}"
            )
        if stored.kind not in kinds:
            raise UserError(f"{stored.file}: {stored.name} is {stored.kind}; expected {' or '.join(kinds)}")
    return made


def count_packed_sizes(weight: PackedWeight) -> tuple[int, ...]:
    """Returns how many values words hold in sequence, of each kind: inputs, outputs or both."""
    outputs, inputs = weight.shape
    return {GEMM: (outputs,), GEMV: (inputs,)}.get(weight.scheme.layout, (inputs, outputs))


def list_expected_parts(weight: PackedWeight) -> dict[str, tuple[TensorShape, tuple[str, ...]]]:
    """Returns the shape and the possible types that each of a weight's tensors must have."""
    (outputs, inputs), groups, scheme = weight.shape, weight.groups, weight.scheme
    if scheme.layout in (V1, V2):
        words, zeros, scales = (
            (inputs * scheme.bits // WORD, outputs),
            (groups, outputs * scheme.bits // WORD),
            (groups, outputs),
        )
    elif scheme.layout == GEMM:
        words, zeros, scales = (inputs, outputs // 8), (groups, outputs // 8), (groups, outputs)
    else:
        width = count_padded_words(groups, weight.group_size)
        words, zeros, scales = (outputs, inputs // 8), (outputs, width), (outputs, 8 * width)
    found: dict[str, tuple[TensorShape, tuple[str, ...]]]
    found = {"qweight": (words, WHOLE_NUMBERS), "qzeros": (zeros, WHOLE_NUMBERS), "scales": (scales, FLOATS)}
    return {**found, "g_idx": ((inputs,), INDICES)} if scheme.layout in (V1, V2) else found


def count_padded_words(groups: int, group_size: int) -> int:
    """Returns how many words of zero points an output has in AWQ's gemv, which pads those of small groups.

    Follows `calculate_zeros_width` of AutoAWQ 0.2.9, which allows groups of 32, of 64, and of 128 or more.
    """
    multiple = {64: 2, 32: 4}.get(group_size, 1)
    words = -(-groups // 8)
    return -(-words // multiple) * multiple
