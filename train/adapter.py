"""LoRA adapters in PEFT's format, merged into a model's weights: W + scale * B A (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
import re
from pathlib import Path

from torch import Tensor

from runtime.errors import UserError

from .published_text import read_json
from .published_weights import Renames, check_tensor, read_file, renamed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PART = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
# What changes the formula, and would be silently wrong if it were ignored.
REFUSED = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save", "rank_pattern",
    "alpha_pattern", "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
    "arrow_config", "velora_config",
)  # fmt: skip


def merge(weights: dict[str, Tensor], folder: Path, renames: Renames) -> dict[str, Tensor]:
    """The weights with the adapter of `folder` merged; the changed ones in fp32, so that the sum is not rounded.

    Raises UserError for an adapter of another kind, and for a target that the model lacks.
    """
    rank, scale = _read_config(folder / CONFIG)
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{file} is missing; expected an adapter as PEFT saves it, in safetensors")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_file(file):
        match = PART.fullmatch(name)
        target = renamed(f"{match[1]}.weight", renames) if match else ""
        if match is None or target not in weights or target == "embed_tokens.weight" or weights[target].dim() != 2:
            raise UserError(f"{file}: {name} is a target the model lacks; expected LoRA on its linear layers alone")
        outer, inner = weights[target].shape
        check_tensor(file, name, tensor, (rank, inner) if match[2] == "A" else (outer, rank))
        parts.setdefault(target, {})[match[2]] = tensor
    merged = dict(weights)
    for target, pair in parts.items():
        if len(pair) < 2:
            raise UserError(f"{file} has lora_{next(iter(pair))} alone for {target}; expected lora_A and lora_B")
        merged[target] = weights[target].float() + scale * (pair["B"].float() @ pair["A"].float())  # [out, in]
    if not parts:
        raise UserError(f"{file} has no tensors; expected lora_A and lora_B of at least one layer")
    return merged


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
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise UserError(f"{path} has lora_alpha {alpha!r}; expected a number")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
