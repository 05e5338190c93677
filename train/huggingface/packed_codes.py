"""Unpacks quantized weights: integers of a few bits in 32-bit words, as GPTQ and AWQ store them.

From public code: GPTQ in AutoGPTQ 0.7.1 (`auto_gptq/nn_modules/qlinear/qlinear_cuda.py`, `pack` and `forward`) and
GPTQModel 7.7 (`gptqmodel/nn_modules/qlinear/__init__.py`, `dequantize_weight`; `gptqmodel/utils/model.py`,
`convert_gptq_v1_to_v2_format_module`); AWQ in AutoAWQ 0.2.9 (`awq/modules/linear/gemm.py` and `gemv.py`, `from_linear`;
`awq/utils/packing_utils.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 32  # bits
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # in AWQ's gemm, which nibble of a word each of eight outputs has
ROWS = 64  # outputs at a time, so that their fp32 numbers stay in the CPU's caches


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantized weight: (values - zeros) * scales, with the zeros and scales of each input's group.

    Attributes:
        values: uint8 [out, in].
        zeros: zero points, uint8 [out, groups].
        scales: fp32 [out, groups].
        group: the group of each input, int64 [in].
    """

    values: Tensor
    zeros: Tensor
    scales: Tensor
    group: Tensor

    def dequantize(self) -> Tensor:
        """Returns the weight, fp32 [out, in]; exact if the stored scales are fp16 or bf16."""
        made = torch.empty(self.values.shape)
        for first in range(0, len(made), ROWS):
            part = slice(first, first + ROWS)
            steps = self.values[part].T.float()  # [in, ROWS]: a group's numbers are one row, gathered as a whole
            steps -= self.zeros[part].T.float()[self.group]
            steps *= self.scales[part].T[self.group]
            made[part] = steps.T
        return made


def unpack(words: Tensor, bits: int) -> Tensor:
    """Unpacks words int32 [n, columns] into values uint8 [32 * n / bits, columns], from the lowest bits up.

    A value may begin in one word and end in the next, as some of 3 bits do.
    """
    shared = math.gcd(WORD, bits)
    width, count = bits // shared, WORD // shared  # `width` words hold `count` values
    whole = words.reshape(-1, width, words.shape[1])
    made = torch.empty((len(whole), count, words.shape[1]), dtype=torch.uint8)
    for i in range(count):
        word, shift = divmod(i * bits, WORD)
        value = (whole[:, word] >> shift) & ((1 << min(bits, WORD - shift)) - 1)
        if shift + bits > WORD:
            value = value | (whole[:, word + 1] << (WORD - shift))
        made[:, i] = (value & ((1 << bits) - 1)).to(torch.uint8)
    return made.flatten(0, 1)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """Unpacks words int32 [rows, n] into values uint8 [rows, 32 * n / bits]."""
    return unpack(words.T, bits).T.contiguous()


def unpack_interleaved(words: Tensor) -> Tensor:
    """Unpacks words int32 [rows, n], eight values each in the order of AWQ's gemm, into values uint8 [8 * n, rows]."""
    values = unpack(words.T, 4)
    return values.view(-1, 8, words.shape[0])[:, NIBBLES, :].flatten(0, 1)


def unpack_gptq_zeros(words: Tensor, bits: int, v1: bool, carries: bool) -> tuple[Tensor, bool]:
    """Unpacks words int32 [groups, n] into zero points uint8 [out, groups]; also returns whether they are certain.

    Args:
        words: as stored.
        bits: bits per value.
        v1: whether 1 was subtracted from each before it was stored, as AutoGPTQ does; version 2 subtracts nothing.
        carries: in version 1, whether that 1 was subtracted from whole words, as GPTQModel does except for 3 bits: then
            a zero point of 0 borrows from the next one. If not, a stored value with all bits set is uncertain: it means
            0 in AutoGPTQ's own product in PyTorch, but 2**bits in kernels (ExLlama, vLLM).
    """
    if not v1:
        return unpack_rows(words, bits).T.contiguous(), True
    if carries and bits != 3:
        ones = sum(1 << shift for shift in range(0, WORD, bits))
        wide = (words.to(torch.int64) + ones) & ((1 << WORD) - 1)
        signed = torch.where(wide >= 1 << (WORD - 1), wide - (1 << WORD), wide).to(torch.int32)
        return unpack_rows(signed, bits).T.contiguous(), True
    stored = unpack_rows(words, bits).T.contiguous()
    most = (1 << bits) - 1
    return ((stored.to(torch.int16) + 1) & most).to(torch.uint8), carries or not bool((stored == most).any())
