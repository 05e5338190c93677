"""Computes rotary frequencies, plain and scaled: linear, Llama 3's and YaRN's (arXiv 2309.00071) scaling of RoPE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.errors import UserError

LARGEST = 1 << 24  # upper bound of a factor or a context
SPAN = "original_max_position_embeddings"
QUERY_SCALE = "llama_4_scaling_beta"  # 1 + beta ln(1 + floor(position / SPAN)), so 1 before SPAN: see `find_longest`
NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", SPAN),
    "yarn": ("factor", SPAN),
}
OPTIONAL = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", QUERY_SCALE)}


def compute_frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Returns the angles that a position adds, fp64 [head_dim / 2], and the factor of their cosines and sines.

    scaling: empty for plain RoPE, else the result of `parse_scaling`. Source: the named papers and Llama 3's model
    code.
    """
    inverse: Tensor = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if not scaling:
        return inverse, 1.0
    factor = scaling["factor"]
    if scaling["rope_type"] == "linear":
        return inverse / factor, 1.0
    if scaling["rope_type"] == "llama3":
        return _scale_llama3(inverse, scaling), 1.0
    return _scale_yarn(inverse, head_dim, theta, scaling), scaling.get("attention_factor", _compute_magnitude(scaling))


def find_longest(scaling: Mapping[str, Any]) -> int | None:
    """Returns how many positions are computed exactly, None for all: QUERY_SCALE, if there, is not applied here."""
    return int(scaling[SPAN]) if QUERY_SCALE in scaling else None


def _compute_magnitude(scaling: Mapping[str, Any]) -> float:
    """Returns YaRN's factor of cosines and sines: the quotient of its two scales, if a config has both."""

    def scale(by: float) -> float:
        factor = scaling["factor"]
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "mscale" in scaling and "mscale_all_dim" in scaling:
        return scale(scaling["mscale"]) / scale(scaling["mscale_all_dim"])
    return scale(1.0)


def _scale_llama3(inverse: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns: Tensor = scaling[SPAN] * inverse / (2 * math.pi)  # full turns over the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # share of the plain frequency
    return inverse * (kept + (1 - kept) / scaling["factor"])


def _scale_yarn(inverse: Tensor, head_dim: int, theta: float, scaling: Mapping[str, Any]) -> Tensor:
    def place(turns: float) -> float:
        return head_dim * math.log(scaling[SPAN] / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(place(scaling.get("beta_fast", 32))), 0)
    high = min(math.ceil(place(scaling.get("beta_slow", 1))), head_dim - 1)
    span = high - low or 0.001  # as the reference does if both are equal
    stretched = ((torch.arange(len(inverse), dtype=torch.float64) - low) / span).clamp(0, 1)
    return inverse * (1 - stretched + stretched / scaling["factor"])


def parse_scaling(values: Any) -> dict[str, Any]:
    """Checks a config.json's `rope_scaling`; returns {} for none. Raises UserError for an unknown kind or key."""
    if not values:
        return {}
    if not isinstance(values, Mapping):
        raise UserError(f"rope_scaling is {values!r}; expected an object")
    kind = values.get("rope_type", values.get("type"))
    if kind == "default":
        return {}
    if not isinstance(kind, str) or kind not in NEEDED:
        raise UserError(f"rope_scaling {kind!r} is not supported; expected default, {', '.join(NEEDED)}")
    known = (*NEEDED[kind], *OPTIONAL.get(kind, ()))
    given = {key: value for key, value in values.items() if key not in ("rope_type", "type") and value is not None}
    if unknown := sorted(given.keys() - set(known)):
        raise UserError(f"rope_scaling {kind} has {', '.join(unknown)}, which is not supported; known: {known}")
    for key in NEEDED[kind]:
        if key not in given:
            raise UserError(f"rope_scaling {kind} lacks {key}; add it to config.json")
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
            raise UserError(f"rope_scaling has {key} {value!r}; expected a number above 0, up to {LARGEST}")
    return {"rope_type": kind, **given}
