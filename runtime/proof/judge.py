"""Judges an engine's replay of recorded forward passes by figures that separate a right engine from a wrong one.

Rounding, and activations of a quantized engine at the edge between two quantized values, move single numbers much but
their means hardly; a wrong weight, scale, position or KV cache moves the means. So the bounds are on means: of the
norms of new keys and values, which depend on everything but the head and the last layer's other products, and of
log-probabilities, which depend on these too. The largest difference of a top-1 token's log-probability has its
precision's loose bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backend import Backend, Floats, Inspectable
from ..bundle.reference import (
    ANSWERS,
    BEST,
    ENTROPY,
    KEYS,
    LARGEST,
    SPREAD_LEAST,
    TOP_MEAN,
    TOP_SPREAD,
    VALUES,
    RecordedAnswer,
    RecordedForward,
)
from ..contract import GateSpec
from ..decoding.loop import generate
from ..decoding.options import DecodeOptions, Request
from .replay import ReplayResult, replay

WORDS = {  # figure: what it is, with its unit
    KEYS: "mean norm of new keys, relative",
    VALUES: "mean norm of new values, relative",
    TOP_MEAN: "mean log p of the top tokens, nats",
    TOP_SPREAD: "mean spread of log p over the top tokens after the first, relative",
    BEST: "mean log p of the top-1 token, nats",
    ENTROPY: "mean entropy, nats",
    LARGEST: "largest |d log p| of the top-1 token, nats",
}


@dataclass(frozen=True, slots=True)
class Check:
    """Holds one check: its name, whether it passed, and what was found."""

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"[{'ok' if self.ok else 'x'}] {self.name}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Figure:
    """Holds how far an engine is from its reference in one respect. place: of norms, the layer that differs most."""

    value: float
    place: int | None = None


def compute_terms(forwards: Sequence[RecordedForward], replayed: ReplayResult) -> dict[str, NDArray[np.float64]]:
    """Returns, for each figure that is a mean, the terms that add up to it: one per logits row.

    fp64 [rows]. Norms have one per forward pass and layer: fp64 [forward passes, layers].
    """
    found = dict[str, NDArray[np.float64]]()
    if replayed.norms.shape[1]:
        widths = np.array([each.forward.input_ids.shape[1] for each in forwards], np.float64)[:, None, None]
        recorded = np.stack([each.norms for each in forwards]).astype(np.float64)  # [forward passes, layers, 2]
        whole = np.maximum(np.sum(widths * recorded, 0), np.finfo(np.float32).tiny)  # [layers, 2]
        apart = widths * (replayed.norms - recorded) / whole
        found |= {KEYS: apart[..., 0], VALUES: apart[..., 1]}
    top = np.concatenate([each.top_logprob for each in forwards])
    if replayed.top_logprob is not None:
        count = min(top.shape[1], replayed.top_logprob.shape[1])
        mine, theirs = replayed.top_logprob[:, :count], top[:, :count]
        found[TOP_MEAN] = (mine - theirs).mean(1, np.float64) / len(top)
        if count >= SPREAD_LEAST:
            found[TOP_SPREAD] = spread_terms(mine, theirs)
    best, entropy = replayed.log_prob - top[:, 0], replayed.entropy - np.concatenate([e.entropy for e in forwards])
    return {**found, **{name: part.astype(np.float64) / len(top) for name, part in ((BEST, best), (ENTROPY, entropy))}}


def spread_terms(mine: Floats, theirs: Floats) -> NDArray[np.float64]:
    """Returns what each row adds to the relative difference of spreads, which are standard deviations over tokens.

    Whatever moves all these log-probabilities of a row together leaves the spread as it is, such as a change of the
    top-1 token's by an activation that is rounded to another step. The top-1 token is left out of the spread, since it
    may or may not be far from the rest. mine, theirs: fp32 [rows, K]
    """
    with np.errstate(invalid="ignore"):  # the judge refuses NaN
        spread, recorded = (part[:, 1:].std(1, np.float64) for part in (mine, theirs))
    found: NDArray[np.float64] = (spread - recorded) / max(recorded.sum(), np.finfo(np.float32).tiny)
    return found


def measure(forwards: Sequence[RecordedForward], replayed: ReplayResult) -> dict[str, Figure]:
    """Returns every figure of a replay that the engine's outputs allow; a figure is NaN if one of its numbers is."""
    found = {}
    for name, parts in compute_terms(forwards, replayed).items():
        apart = np.abs(parts.sum(0))
        found[name] = Figure(float(apart.max()), int(apart.argmax()) if apart.ndim else None)
    best = replayed.log_prob - np.concatenate([each.top_logprob[:, 0] for each in forwards])
    return {**found, LARGEST: Figure(float(np.abs(best).max()))}


def judge(forwards: Sequence[RecordedForward], replayed: ReplayResult, bounds: Mapping[str, float]) -> list[Check]:
    """Returns a check per figure that has a bound, and a check of the top-1 tokens."""
    tokens = judge_tokens(forwards, replayed, 2 * bounds.get(LARGEST, np.inf))
    return [*judge_figures(forwards, replayed, bounds), tokens]


def judge_figures(
    forwards: Sequence[RecordedForward], replayed: ReplayResult, bounds: Mapping[str, float]
) -> list[Check]:
    """Returns a check per figure that has a bound."""
    checks = []
    for name, figure in measure(forwards, replayed).items():
        if name in bounds:
            where = "" if figure.place is None else f" in layer {figure.place}"
            detail = f"{WORDS[name]}: off by {figure.value:.1e}{where} (bound {bounds[name]:.1e})"
            checks.append(Check(name, bool(figure.value <= bounds[name]), detail))
    return checks


def judge_tokens(forwards: Sequence[RecordedForward], replayed: ReplayResult, lead: float) -> Check:
    """Checks that the engine's top-1 token differs only if PyTorch's led its second by at most `lead` nats."""
    token = np.concatenate([each.top_token[:, 0] for each in forwards])
    top = np.concatenate([each.top_logprob for each in forwards])
    leads = top[:, 0] - top[:, min(1, top.shape[1] - 1)]
    other = replayed.token != token
    largest = float(leads[other].max()) if other.any() else 0.0
    detail = f"{int(other.sum())} of {len(token)} top-1 tokens differ"
    if other.any():
        detail += f", of which PyTorch's led the second by {largest:.1e} nats at most (bound {lead:.0e})"
    return Check("tokens", largest <= lead, detail)


def judge_answers(
    backend: Backend, answers: Sequence[RecordedAnswer], gate: GateSpec, bounds: Mapping[str, float]
) -> list[Check]:
    """Generates the recorded answers; checks that one differs only if PyTorch's margin in it is within the bound."""
    if not answers:
        return []
    margins = []
    for each in answers:
        options = DecodeOptions(each.wanted, mode=backend.contract.plainest_mode)
        if generate(backend, Request(each.prompt, options), gate=gate).token_ids != each.tokens:
            margins.append(each.margin)
    detail = f"{len(margins)} of {len(answers)} whole answers differ"
    if ANSWERS not in bounds:
        return [Check(ANSWERS, True, f"{detail} (no bound: this precision is not exact)")]
    if margins:
        detail += f"; PyTorch decided by {max(margins):.1e} in one of them (bound {bounds[ANSWERS]:.0e})"
    return [Check(ANSWERS, all(margin <= bounds[ANSWERS] for margin in margins), detail)]


def prove(backend: Inspectable, forwards: Sequence[RecordedForward], bounds: Mapping[str, float]) -> list[Check]:
    """Replays recorded forward passes on an engine and judges it."""
    return judge(forwards, replay(backend, forwards), bounds)
