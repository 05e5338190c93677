"""Computes 95 % intervals of accuracies, and of paired differences between two models on the same problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def estimate_proportion(right: Sequence[bool]) -> Interval:
    """Returns the share of right answers with Wilson's score interval (Wilson 1927), which stays inside [0, 1]."""
    return estimate_wilson(sum(right) / len(right), len(right))


def estimate_wilson(share: float, n: int) -> Interval:
    """Returns Wilson's score interval of a share of n trials."""
    z2 = NORMAL_95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(share, center - half, center + half)


def estimate_paired_difference(ours: Sequence[int], theirs: Sequence[int]) -> Interval:
    """Returns the difference of two accuracies on the same problems, ours minus theirs, with Tango's score interval.

    The interval has the differences that a score test does not reject (McNemar's test, at 0). It does not shrink to a
    point if the two never differ. Source: Tango 1998, Stat Med 17:891. Raises ValueError if the lengths differ.
    """
    differences = [int(a) - int(b) for a, b in zip(ours, theirs, strict=True)]
    n, won, lost = len(differences), differences.count(1), differences.count(-1)
    mean = (won - lost) / n
    low = _find_crossing(lambda d: _score(d, won, lost, n) > NORMAL_95, -1.0, mean)
    high = _find_crossing(lambda d: _score(d, won, lost, n) >= -NORMAL_95, mean, 1.0)
    return Interval(mean, low, high)


def _score(difference: float, won: int, lost: int, n: int) -> float:
    """Returns Tango's statistic of a supposed difference: about normal if that is the true one; falls as it rises."""
    # the most likely probability, given the difference, that theirs is right and ours is not
    b = (2 * n - won + lost) * difference - won - lost
    losing = (math.sqrt(max(0.0, b * b + 8 * n * lost * difference * (1 - difference))) - b) / (4 * n)
    variance = n * (2 * losing + difference * (1 - difference))
    apart = won - lost - n * difference
    return apart / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, apart) if apart else 0.0


def _find_crossing(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Returns the point between `low` and `high` up to which `holds` is true, bisected down to the last bits."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2
