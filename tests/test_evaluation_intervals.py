"""Intervals against published values and against their definition, worked out the slow way."""

from __future__ import annotations

import math
import random

import pytest
import tiny

from train.evaluation import intervals
from train.evaluation.intervals import NORMAL_95, estimate_paired_difference, estimate_proportion


def pairs(both: int, won: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Outcomes with these counts: right in both, in ours alone, in theirs alone, in none."""
    table = [(True, True)] * both + [(True, False)] * won + [(False, True)] * lost + [(False, False)] * neither
    return [ours for ours, _ in table], [theirs for _, theirs in table]


def slow_score(difference: float, won: int, lost: int, n: int) -> float:
    """Tango's statistic with the likeliest nuisance parameter found by trying 20,000 of them."""

    def likelihood(losing: float) -> float:
        cells = ((won, losing + difference), (lost, losing), (n - won - lost, 1 - 2 * losing - difference))
        if any(p < 0 or (count and p == 0) for count, p in cells):
            return -math.inf
        return sum(count * math.log(p) for count, p in cells if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    losing = max((low + (high - low) * i / 20_000 for i in range(20_001)), key=likelihood)
    variance = n * (2 * losing + difference - difference**2)
    return (won - lost - n * difference) / math.sqrt(variance)


def test_wilsons_interval_is_that_of_the_published_formula() -> None:
    """Agresti and Coull 1998 give [0, 0.2775] for none of 10; the others are the formula's with z = 1.959964."""
    none, some, all_ = (
        estimate_proportion([False] * 10),
        estimate_proportion([True] * 8 + [False] * 2),
        estimate_proportion([True] * 10),
    )
    assert (none.mean, none.low, none.high) == pytest.approx((0, 0, 0.27753), abs=1e-4)
    assert (some.mean, some.low, some.high) == pytest.approx((0.8, 0.49016, 0.94332), abs=1e-4)
    assert (all_.mean, all_.low, all_.high) == pytest.approx((1, 1 - 0.27753, 1), abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "level", "mean", "low", "high"),
    [
        ((1, 1, 7, 12), NORMAL_95, -0.286, -0.517, -0.026),  # airway hyper-responsiveness: Fagerland et al. 2014
        ((43, 0, 1, 0), 1.644854, -0.023, -0.096, 0.037),  # contact lens disinfection, 90 %: Tango 1998
    ],
)
def test_the_paired_interval_is_the_published_one(
    counts: tuple[int, int, int, int], level: float, mean: float, low: float, high: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(intervals, "NORMAL_95", level)
    found = estimate_paired_difference(*pairs(*counts))
    assert (found.mean, found.low, found.high) == pytest.approx((mean, low, high), abs=5e-4)


def test_models_that_never_differ_are_not_known_to_be_equal() -> None:
    same = [True] * 390 + [False] * 10
    found, z2 = estimate_paired_difference(same, same), NORMAL_95**2
    assert found.mean == 0  # the closed form of this case: z² / (n + z²), nearly one point of 400 problems
    assert (found.low, found.high) == pytest.approx((-z2 / (400 + z2), z2 / (400 + z2)), abs=1e-9)
    wider = estimate_paired_difference(same[380:], same[380:])
    assert wider.low < found.low and wider.high > found.high


def test_at_its_ends_the_interval_is_what_the_score_test_just_rejects() -> None:
    seed = tiny.choose_seed()
    rng = random.Random(seed)
    for _ in range(4):
        both, won, lost, neither = (rng.randrange(1, 30) for _ in range(4))
        found, n = estimate_paired_difference(*pairs(both, won, lost, neither)), both + won + lost + neither
        for end, score in ((found.low, NORMAL_95), (found.high, -NORMAL_95)):
            assert slow_score(end, won, lost, n) == pytest.approx(score, abs=2e-3), f"seed {seed}"


def test_a_paired_difference_turns_with_its_sides_and_stays_inside_minus_one_and_one() -> None:
    ours, theirs = pairs(3, 4, 1, 2)
    there, back = estimate_paired_difference(ours, theirs), estimate_paired_difference(theirs, ours)
    assert there.mean == pytest.approx(0.3)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    always = estimate_paired_difference([True] * 4, [False] * 4)
    assert always.mean == always.high == 1 and 0 < always.low < 1
    with pytest.raises(ValueError, match="shorter"):
        estimate_paired_difference(ours, theirs[:2])
