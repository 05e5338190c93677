"""Implements the gate, which decides which predicted tokens of a block a step accepts. Pure numpy, on the host.

Sources: confidence threshold as CDLM and Fast-dLLM decode, entropy as dParallel does, the factor rule of Fast-dLLM
(arXiv 2505.22618), bounds and end-token guard of CD4LM's CAD (arXiv 2601.02236), sub-blocks of Fast-dLLM v2.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the contract reads the table below
    from ..backend import Bools, Floats, Ints
    from ..contract import GateSpec

    Ranked = Callable[[], Ints]

COMPARE: dict[str, Callable[[Floats, Floats], Bools]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Unit:
    """Describes the unit of a threshold, whose range begins at 0.

    highest: returns the range's end for a vocabulary size; strict: whether a higher threshold accepts less; grid: the
    thresholds that calibration tries; shown: the end of a slider, if that is not the range's end.
    """

    highest: Callable[[int], float]
    strict: bool
    grid: tuple[float, ...]
    shown: float | None = None


PROBABILITY = Unit(
    lambda vocab: 1.0, strict=True, grid=(0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
)
NATS = Unit(math.log, strict=False, grid=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0))
FACTOR = Unit(lambda vocab: math.inf, strict=False, grid=(0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0), shown=4.0)


def select_by_threshold(spec: GateSpec, metric: Floats, free: Bools, ranked: Ranked, threshold: Floats) -> Bools:
    """Returns the positions in `free` whose score passes the comparison with the threshold. [batch, block]"""
    return COMPARE[spec.comparator](metric, threshold.astype(metric.dtype)) & free  # 0.9 in fp32 is not 0.9 in fp64


def select_longest_run(spec: GateSpec, metric: Floats, free: Bools, ranked: Ranked, threshold: Floats) -> Bools:
    """Returns the n most confident positions, for the largest n that `count_by_factor` finds. [batch, block]"""
    return ranked() < count_by_factor(metric, free, threshold)[:, None]


def select_fixed_count(spec: GateSpec, metric: Floats, free: Bools, ranked: Ranked, threshold: Floats) -> Bools:
    """Returns the `spec.min` best positions, held-back end tokens only if there are too few others. [batch, block]"""
    return ranked() < spec.min


@dataclass(frozen=True, slots=True)
class Rule:
    """Describes a rule of the gate.

    accept: returns the positions that the rule accepts, bool [batch, block]; the gate then adds the best others until
    there are `min`. Its arguments: the spec; metric, the scores [batch, block]; free, the masked positions that the
    end-token guard does not hold back [batch, block]; ranked, a function that returns `rank_positions`, computed at its
    first call; the threshold [batch or 1, 1].
    units: the metrics that the rule takes, each with its threshold's unit, None for a rule without a threshold.
    compares: whether the spec's comparator compares each score with the threshold.
    """

    accept: Callable[[GateSpec, Floats, Bools, Ranked, Floats], Bools]
    units: Mapping[str, Unit | None]
    compares: bool = False


RULES = {
    "threshold": Rule(select_by_threshold, {"confidence": PROBABILITY, "entropy": NATS}, compares=True),
    "factor": Rule(select_longest_run, {"confidence": FACTOR}),
    "count": Rule(select_fixed_count, {"confidence": None, "entropy": None}),
}


@dataclass(frozen=True, slots=True)
class Gate:
    """Accepts masked positions, at least the best one per step; of positions with equal scores, the first is best."""

    spec: GateSpec
    eos_ids: tuple[int, ...] = ()

    def __call__(
        self,
        token: Ints,
        confidence: Floats,
        entropy: Floats,
        masked: Bools,
        progress: Sequence[float] | Floats,
        threshold: float | Sequence[float] | Floats,
    ) -> Bools:
        """Returns accepted positions, bool [batch, block], a subset of `masked`.

        token, confidence, entropy, masked [batch, block]: predictions and which positions are masked; progress [batch]:
        the share of the answer that is unmasked; threshold: one for all or [batch], ignored by the rule `count`.
        """
        spec, guard = self.spec, self.spec.eos_guard
        metric = confidence if spec.metric == "confidence" else entropy
        held = np.isin(token, self.eos_ids) & (np.asarray(progress, np.float32)[:, None] < guard) if guard else None
        eligible = masked if spec.sub_block is None else keep_first_sub_block(masked, spec.sub_block)
        free = eligible if held is None else eligible & ~held
        ranked = cache(lambda: rank_positions(metric if spec.metric == "confidence" else -metric, eligible, held))
        accepted = RULES[spec.rule].accept(spec, metric, free, ranked, np.asarray(threshold).reshape(-1, 1))
        fewest = np.count_nonzero(accepted) if len(accepted) == 1 else accepted.sum(axis=1).min()
        if fewest < spec.min:  # rare; otherwise the rule `threshold` needs no ranks
            # As in CAD, held-back end tokens do not count for the minimum, unless nothing else is masked.
            accepted |= (ranked() < spec.min) & (free | ~free.any(axis=1, keepdims=True))
        return accepted & eligible


def keep_first_sub_block(masked: Bools, size: int) -> Bools:
    """Returns `masked` in the first sub-block of `size` positions that has a masked one, else False. [batch, block]"""
    place = np.arange(masked.shape[1]) // size  # [block]
    here: Bools = masked & (place == place[masked.argmax(axis=1)][:, None])
    return here


def rank_positions(score: Floats, eligible: Bools, held: Bools | None) -> Ints:
    """Ranks positions, 0 the best: eligible ones, then held-back eligible ones, then others. int64 [batch, block]"""
    keys = (-score, ~eligible) if held is None else (-score, held, ~eligible)
    order = np.lexsort(keys)  # stable, so ties keep the lowest position first
    return order.argsort()


def count_by_factor(confidence: Floats, eligible: Bools, factor: Floats) -> Ints:
    """Returns the largest n with (n + 1)(1 - c_n) < factor [batch, 1], c_n the n-th best confidence, or 0. [batch]"""
    best = -np.sort(-np.where(eligible, confidence, -np.inf))
    n = np.arange(1, best.shape[1] + 1)
    longest: Ints = np.where((n + 1) * (1 - best) < factor, n, 0).max(axis=1)
    return longest
