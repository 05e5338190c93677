"""Packs weights as GPTQ and AWQ directories have them, written from the layouts' descriptions, bit by bit.

A word's bits are its values' bits one after another, the lowest first (GPTQ, AWQ's gemv), and AWQ's gemm puts outputs
0, 2, 4, 6, 1, 3, 5, 7 of eight in a word from its lowest nibble on. The reader is not used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

GEMM_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Made:
    """A weight's whole numbers: values [out, in], zeros [out, groups], scales fp16 [out, groups], group [in]."""

    values: Numbers
    zeros: Numbers
    scales: NDArray[np.float16]
    group: Numbers

    def dense(self) -> NDArray[np.float32]:
        """The weight, number by number. fp32 [out, in]"""
        made = np.zeros(self.values.shape, np.float32)
        for i, j in np.ndindex(*made.shape):
            k = self.group[j]
            made[i, j] = np.float32(self.values[i, j] - self.zeros[i, k]) * np.float32(self.scales[i, k])
        return made


@dataclass(frozen=True)
class Packing:
    """How a directory is packed. least: of a zero point; version 1 of GPTQ has no certain 0."""

    layout: str
    bits: int = 4
    size: int = 16
    order: bool = False
    symmetric: bool = False
    least: int = 1
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def is_gptq(self) -> bool:
        return self.layout.startswith("gptq")

    def config(self) -> dict[str, Any]:
        """As the libraries write it into config.json."""
        shared = {"bits": self.bits, "group_size": self.size}
        if self.is_gptq:
            own: dict[str, Any] = {"quant_method": "gptq", "desc_act": self.order, "sym": self.symmetric}
            return {**shared, **own, "checkpoint_format": self.layout, **self.more}
        return {**shared, "quant_method": "awq", "zero_point": True, "version": self.layout, **self.more}


def words(values: Numbers, bits: int) -> NDArray[np.int32]:
    """Words [rows, columns * bits / 32] of values [rows, columns], bit by bit."""
    each = (values[:, :, None] >> np.arange(bits)) & 1  # [rows, columns, bits]
    stream = each.reshape(len(values), -1, 32).astype(np.uint64)
    return (stream << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32).view(np.int32)


def shuffle(values: Numbers) -> Numbers:
    """Columns in the order in which AWQ's gemm has them in words."""
    return values.reshape(len(values), -1, 8)[:, :, GEMM_ORDER].reshape(values.shape)


def pack(made: Made, packing: Packing) -> dict[str, Tensor]:
    """The tensors of a weight by their last names."""
    values, zeros, scales, bits = made.values, made.zeros, made.scales, packing.bits
    if packing.is_gptq:
        stored = zeros - 1 if packing.layout == "gptq" else zeros
        found = {"qweight": words(values, bits).T, "qzeros": words(stored.T, bits), "scales": scales.T}
        found["g_idx"] = made.group.astype(np.int32)
    elif packing.layout == "gemm":
        found = {"qweight": words(shuffle(values.T), 4), "qzeros": words(shuffle(zeros.T), 4), "scales": scales.T}
    else:
        multiple = {64: 2, 32: 4}.get(packing.size, 1)  # of words of zero points
        wide = 8 * multiple
        width = -(-zeros.shape[1] // wide) * wide
        room = ((0, 0), (0, width - zeros.shape[1]))
        found = {"qweight": words(values, 4), "qzeros": words(np.pad(zeros, room), 4), "scales": np.pad(scales, room)}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def quantize(weight: Tensor, packing: Packing, rng: np.random.Generator, group: Numbers | None = None) -> Made:
    """Whole numbers near a weight [out, in]; zero points are random, so that a wrong reading is far off."""
    outputs, inputs = weight.shape
    size = packing.size if packing.size > 0 else inputs
    groups, most = -(-inputs // size), (1 << packing.bits) - 1
    half = np.full((outputs, groups), 1 << (packing.bits - 1))
    zeros = half if packing.symmetric else rng.integers(packing.least, most + 1, (outputs, groups))
    if group is None:
        group = np.arange(inputs) // size
        group = group[rng.permutation(inputs)] if packing.order else group
    scales = (rng.uniform(0.7, 1.3, (outputs, groups)) * 0.5 / most).astype(np.float16)
    values = np.rint(weight.numpy() / scales[:, group].astype(np.float32)) + zeros[:, group]
    return Made(values.clip(0, most).astype(np.int64), zeros.astype(np.int64), scales, group)


def pack_directory(folder: Path, packing: Packing, kept: tuple[str, ...] = (), seed: int = 9) -> dict[str, Tensor]:
    """Quantizes the projections of a directory's layers in place and returns all its tensors as they now count, fp32.

    kept: parts of names of projections that stay as they are. Queries, keys and values share the order of their inputs.
    """
    file, rng = folder / "model.safetensors", np.random.default_rng(seed)
    stored, dense = dict[str, Tensor](), dict[str, Tensor]()
    groups: dict[str, Numbers] = {}
    for name, tensor in sorted(load_file(file).items()):
        module = name.removesuffix(".weight")
        if tensor.dim() != 2 or not is_projection(module) or any(part in name for part in kept):
            stored[name] = dense[name] = tensor
            continue
        shared = module.rpartition(".")[0] if module.endswith(("q_proj", "k_proj", "v_proj")) else module
        made = quantize(tensor, packing, rng, groups.get(shared))
        groups[shared] = made.group
        stored |= {f"{module}.{part}": each for part, each in pack(made, packing).items()}
        dense[name] = torch.from_numpy(made.dense())
    save_file(stored, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": packing.config()}))
    return dense


def is_projection(module: str) -> bool:
    """Whether a module is a linear layer of a transformer layer."""
    return module.endswith("_proj") and ".layers." in module
