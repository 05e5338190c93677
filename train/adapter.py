"""LoRA adapters in PEFT's format, read and written; merged: W + scale * B A (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from runtime.errors import UserError

from .published_text import read_json
from .published_weights import Renames, Stored, Weights, check_stored, read_header, renamed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PART = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
# What changes the formula, and would be silently wrong if it were ignored.
REFUSED = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save", "rank_pattern",
    "alpha_pattern", "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
    "arrow_config", "velora_config",
)  # fmt: skip
Pairs = dict[str, dict[str, Tensor]]  # of each weight [out, in] its "A" [rank, in] and "B" [out, rank]


def merge(weights: Weights, folder: Path, renames: Renames) -> Weights:
    """The weights with the adapter of `folder` merged when they are read; the changed ones come in fp32, not rounded.

    Raises UserError for an adapter of another kind, and for a target that the model lacks.
    """
    rank, scale = _read_config(folder / CONFIG)
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{file} is missing; expected an adapter as PEFT saves it, in safetensors")
    parts: dict[str, dict[str, Stored]] = {}
    for stored in read_header(file):
        match = PART.fullmatch(stored.name)
        target = renamed(f"{match[1]}.weight", renames) if match else ""
        shape = weights.shapes.get(target, ())
        if match is None or target == "embed_tokens.weight" or len(shape) != 2:
            raise UserError(
                f"{file}: {stored.name} is a target the model lacks; expected LoRA on its linear layers alone"
            )
        check_stored(stored, (rank, shape[1]) if match[2] == "A" else (shape[0], rank))
        parts.setdefault(target, {})[match[2]] = stored
    for target, pair in parts.items():
        if len(pair) < 2:
            raise UserError(f"{file} has lora_{next(iter(pair))} alone for {target}; expected lora_A and lora_B")
    if not parts:
        raise UserError(f"{file} has no tensors; expected lora_A and lora_B of at least one layer")
    made = {target: partial(_read_merged, weights, target, pair, scale) for target, pair in parts.items()}
    return Weights({**weights.readers, **made}, weights.shapes)


def _read_merged(weights: Weights, target: str, pair: Mapping[str, Stored], scale: float) -> Tensor:
    return _sum(weights[target], pair["A"].read(), pair["B"].read(), scale)


def merged(weights: Mapping[str, Tensor], pairs: Pairs, scale: float) -> dict[str, Tensor]:
    """The weights with these pairs merged, in fp32; the others as they are."""
    return {**weights, **{name: _sum(weights[name], pair["A"], pair["B"], scale) for name, pair in pairs.items()}}


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """fp32 [out, in] of a weight [out, in], A [rank, in] and B [out, rank]."""
    return (b.float() @ a.float()).mul_(scale).add_(weight)


def write(folder: Path, pairs: Pairs, alpha: float, names: Mapping[str, str], teacher: Path) -> None:
    """Writes an adapter that PEFT reads too, in fp32; names: what `teacher`, its base, calls each weight."""
    tensors, targets = dict[str, Tensor](), []
    for name, pair in pairs.items():
        # Whole paths, not their last parts: LLaDA calls both an MLP's layer and its head ff_out.
        targets.append(names[name].removesuffix(".weight"))
        for part, tensor in pair.items():
            tensors[f"base_model.model.{targets[-1]}.lora_{part}.weight"] = tensor.detach().float().contiguous()
    rank = len(next(iter(pairs.values()))["A"])
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": str(teacher), "inference_mode": True,
        "r": rank, "lora_alpha": int(alpha) if alpha.is_integer() else alpha, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "target_modules": targets,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _read_config(path: Path) -> tuple[int, float]:
    """Rank and scale: alpha / r, or alpha / sqrt(r) where rank-stabilised (arXiv 2312.03732)."""
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path} has peft_type {config.get('peft_type')!r}; expected LORA")
    if config.get("bias", "none") != "none":
        raise UserError(f"{path} has bias {config['bias']!r}; only none can be merged")
    if used := [name for name in REFUSED if config.get(name)]:
        raise UserError(f"{path} has {used[0]}, which is not supported; expected plain LoRA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{path} has r {rank!r}; expected a whole number of at least 1")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= 1e6:
        raise UserError(f"{path} has lora_alpha {alpha!r}; expected a number of at most a million")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
