"""The gate: which proposed tokens of a canvas a step finalises. Pure numpy, decided on the host.

Sources: confidence threshold as CDLM and Fast-dLLM decode, entropy as dParallel does, the factor rule of Fast-dLLM
(arXiv 2505.22618), bounds and end-token guard of CD4LM's CAD (arXiv 2601.02236), sub-blocks of Fast-dLLM v2.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Bools, Floats, Ints
from ..contract import GateSpec

COMPARE: dict[str, Callable[[Floats, Floats], Any]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Gate:
    """An accept rule. Every step finalises at least one open position, the best; ties break to the lowest position."""

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
        """Accepted positions, bool [batch, block], a subset of `masked`.

        token, confidence, entropy, masked [batch, block]: proposals and which positions are open; progress [batch]: the
        share of the answer that is out; threshold: one for all or [batch], compared as the spec says (unused by the
        `count` rule).
        """
        spec = self.spec
        metric = confidence if spec.metric == "confidence" else entropy
        held = self._held_back(token, np.asarray(progress, np.float32)) if spec.eos_guard else None
        eligible = masked if spec.sub_block is None else first_sub_block(masked, spec.sub_block)
        free = eligible if held is None else eligible & ~held
        if spec.rule == "threshold":
            limits = np.asarray(threshold, metric.dtype).reshape(-1, 1)  # [batch or 1, 1]; in fp64 0.9 is not 0.9
            accepted: Bools = COMPARE[spec.comparator](metric, limits) & free
            fewest = np.count_nonzero(accepted) if len(accepted) == 1 else accepted.sum(axis=1).min()
            if fewest >= spec.min:
                return accepted  # the usual case, in which nothing has to be ranked
        held = np.zeros_like(masked) if held is None else held
        rank = ranks(metric if spec.metric == "confidence" else -metric, eligible, held)
        if spec.rule == "count":
            return eligible & (rank < spec.min)
        if spec.rule == "factor":
            accepted = rank < factor_count(confidence, free, np.asarray(threshold).reshape(-1, 1))[:, None]
        # As in CAD, the minimum is not made up of held-back end tokens, unless nothing else is open.
        accepted |= (rank < spec.min) & (free | ~free.any(axis=1, keepdims=True))
        return accepted & eligible

    def _held_back(self, token: Ints, progress: Floats) -> Bools:
        return np.isin(token, self.eos_ids) & (progress < self.spec.eos_guard)[:, None]


def first_sub_block(masked: Bools, size: int) -> Bools:
    """`masked` confined to the first sub-block of `size` positions that has an open one. [batch, block]"""
    place = np.arange(masked.shape[1]) // size  # [block]
    here: Bools = masked & (place == place[masked.argmax(axis=1)][:, None])
    return here


def ranks(score: Floats, eligible: Bools, held: Bools) -> Ints:
    """Each position's place, best first: eligible ones, then held-back ones, then the rest. int64 [batch, block]"""
    order = np.lexsort((-score, held, ~eligible), axis=-1)  # stable, so ties keep the lowest position first
    return order.argsort(axis=-1)


def factor_count(confidence: Floats, eligible: Bools, factor: Floats) -> Ints:
    """The largest n with (n + 1)(1 - c_n) < factor [batch, 1], c_n the n-th best confidence; 0 without any. [batch]"""
    best = -np.sort(-np.where(eligible, confidence, -np.inf), axis=1)
    n = np.arange(1, best.shape[1] + 1)
    longest: Ints = np.where((n + 1) * (1 - best) < factor, n, 0).max(axis=1).astype(np.int64)
    return longest
