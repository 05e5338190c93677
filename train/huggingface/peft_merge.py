"""Reads, writes and merges LoRA adapters in PEFT's format: W + scale * B A (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from runtime.errors import UserError

from .stored_tensor import StoredTensor, TensorShape, check_stored, read_header
from .tokenizer_files import read_json
from .weights import DirectoryWeights, Renames, rename

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PART = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
# PEFT computes W + scale * B A, with the base's own W, only if the adapter's config is so: a key in ALLOWED has one of
# the values there, a key in FREE any value, every other key, also one of a later PEFT, is null, false or empty.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "task_type": (None, "CAUSAL_LM", "FEATURE_EXTRACTION"), "bias": ("none",),
    "use_rslora": (False, True), "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva", "mica"),
}  # fmt: skip
FREE = (
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",  # checked below
    "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "runtime_config",
    "lora_dropout",  # used only in training
    "eva_config", "corda_config", "loftq_config", "lora_ga_config",  # read only with their own init_lora_weights
    "megatron_core", "qalora_group_size",  # read only with megatron_config and use_qalora
)  # fmt: skip
MERGE = "merge it into its base with PEFT (merge_and_unload, save_pretrained) and give --ckpt that directory"
# Values of init_lora_weights that change the base's weights; PEFT can convert such an adapter.
CONVERTED = re.compile(r"pissa.*|olora|corda|lora_ga", re.IGNORECASE)
Pairs = dict[str, dict[str, Tensor]]  # per weight [out, in] its "A" [rank, in] and "B" [out, rank]


def merge(weights: DirectoryWeights, folder: Path, renames: Renames) -> DirectoryWeights:
    """Returns the weights with the adapter of `folder`, merged on access; merged weights are fp32, not rounded.

    Raises UserError if the adapter is not plain LoRA, or has a target that the model lacks.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"no adapter at {folder}: it has no {CONFIG}; give the folder that PEFT wrote it to")
    config, file = read_json(folder / CONFIG), folder / WEIGHTS
    rank, scale = _read_config(folder / CONFIG, config)
    if not file.is_file():
        raise UserError(f"{file} is missing; expected an adapter as PEFT saves it, in safetensors")
    parts: dict[str, dict[str, StoredTensor]] = {}
    for stored in read_header(file):
        target, part, shape = _find_target(stored, config, weights.shapes, renames)
        if part in parts.setdefault(target, {}):
            raise UserError(f"{file} has {stored.name} a second time; expected each tensor once")
        check_stored(stored, (rank, shape[1]) if part == "A" else (shape[0], rank))
        parts[target][part] = stored
    for target, pair in parts.items():
        if len(pair) < 2:
            raise UserError(f"{file} has lora_{next(iter(pair))} alone for {target}; expected lora_A and lora_B")
    if not parts:
        raise UserError(f"{file} has no tensors; expected lora_A and lora_B of at least one layer")
    made = {target: partial(_read_merged, weights, target, pair, scale) for target, pair in parts.items()}
    packed = {name: each for name, each in weights.packed.items() if name not in made}
    changed = tuple(name for name in made if name in weights.packed)
    return DirectoryWeights({**weights.readers, **made}, weights.shapes, packed, changed)


def _find_target(
    stored: StoredTensor, config: Mapping[str, Any], shapes: Mapping[str, TensorShape], renames: Renames
) -> tuple[str, str, TensorShape]:
    """Returns the weight that a tensor belongs to, its part of the pair (A or B), and that weight's shape."""
    match = PART.fullmatch(stored.name)
    target = rename(f"{match[1]}.weight", renames) if match else ""
    shape = shapes.get(target, ())
    if match is None or target == "embed_tokens.weight" or len(shape) != 2:
        raise UserError(
            f"{stored.file}: {stored.name} is a target the model lacks; expected LoRA on its linear layers alone: "
            f"{MERGE}"
        )
    if not _selects(config, match[1]):
        raise UserError(f"{stored.file} has {stored.name}, which {CONFIG} does not target; PEFT ignores it, remove it")
    return target, match[2], shape


def _selects(config: Mapping[str, Any], module: str) -> bool:
    """Returns whether PEFT would load this module's tensors, by the lists of names in its config."""

    def matches(names: Any) -> bool:
        return any(module == name or module.endswith(f".{name}") for name in names)

    targets, excluded, layers = (
        config.get(key) for key in ("target_modules", "exclude_modules", "layers_to_transform")
    )
    if matches(excluded or []):
        return False
    if targets is not None and module in targets:
        return True
    layer = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    chosen = layers if isinstance(layers, list) else [layers]
    return matches(targets) and (layers in (None, []) or (layer is not None and int(layer[1]) in chosen))


def _read_merged(weights: DirectoryWeights, target: str, pair: Mapping[str, StoredTensor], scale: float) -> Tensor:
    return _sum(weights[target], pair["A"].read(), pair["B"].read(), scale)


def merge_pairs(weights: Mapping[str, Tensor], pairs: Pairs, scale: float) -> dict[str, Tensor]:
    """Returns all weights: those with a pair merged, in fp32, the others unchanged."""
    return {**weights, **{name: _sum(weights[name], pair["A"], pair["B"], scale) for name, pair in pairs.items()}}


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Returns weight + scale * B A, fp32 [out, in]. weight [out, in]; a [rank, in]; b [out, rank]."""
    return (b.float() @ a.float()).mul_(scale).add_(weight)


def write(folder: Path, pairs: Pairs, alpha: float, names: Mapping[str, str], teacher: Path) -> None:
    """Writes an adapter in fp32 that PEFT can read. names: each weight's name in `teacher`, the adapter's base."""
    tensors, targets = dict[str, Tensor](), []
    for name, pair in pairs.items():
        # Whole paths, not their last parts: in LLaDA both an MLP's layer and the head are named ff_out.
        targets.append(names[name].removesuffix(".weight"))
        for part, tensor in pair.items():
            tensors[f"base_model.model.{targets[-1]}.lora_{part}.weight"] = tensor.detach().float().contiguous()
    rank = len(next(iter(pairs.values()))["A"])
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": str(teacher),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": targets,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _read_config(path: Path, config: Mapping[str, Any]) -> tuple[int, float]:
    """Returns rank and scale: alpha / r, or alpha / sqrt(r) if rank-stabilized (arXiv 2312.03732)."""
    if "peft_type" not in config:
        raise UserError(f"{path} has no peft_type; expected LORA, in a config that PEFT wrote")
    for name, value in config.items():
        _check_value(path, name, value)
    _check_names(path, "target_modules", config.get("target_modules"))
    _check_names(path, "exclude_modules", config.get("exclude_modules") or [])
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{path} has r {rank!r}; expected a whole number of at least 1")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= 1e6:
        raise UserError(f"{path} has lora_alpha {alpha!r}; expected a number of at most a million")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_names(path: Path, name: str, value: Any) -> None:
    """Raises UserError unless the value is a list of names.

    Without targets PEFT takes them from its own table. A pattern selects the tensors that PEFT loads, but patterns from
    strangers are not run here, so the selection is unknown.
    """
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise UserError(f"{path} has {name} {reprlib.repr(value)}; expected a list of module names: {MERGE}")


def _check_value(path: Path, name: str, value: Any) -> None:
    """Raises UserError for a value with which PEFT may compute anything other than W + scale * B A."""
    got = f"{path} has {name} {reprlib.repr(value)}"
    if name in ALLOWED:
        allowed = ALLOWED[name]
        if any(type(value) is type(each) and value == each for each in allowed):
            return
        if name == "init_lora_weights" and isinstance(value, str) and CONVERTED.fullmatch(value):
            raise UserError(
                f"{got}, so it was trained on other weights than its base's; convert it with PEFT: save_pretrained("
                f"..., path_initial_model_for_weight_conversion=...), or {MERGE}"
            )
        raise UserError(f"{got}; expected {' or '.join(map(repr, allowed))}: {MERGE}")
    if name not in FREE and value not in (None, False, "", [], {}):
        raise UserError(f"{got}, which is not known to be plain LoRA; {MERGE}")
