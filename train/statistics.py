"""Accuracies with their uncertainty, and paired differences between two models on the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def proportion(right: Sequence[bool]) -> Interval:
    """Share of right answers with Wilson's score interval (Wilson 1927), which stays inside [0, 1]."""
    n, share, z2 = len(right), sum(right) / len(right), NORMAL_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(share, centre - half, centre + half)


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool]) -> Interval:
    """Difference of two accuracies on the same problems, ours minus theirs, with a normal interval.

    Raises ValueError where the two are not equally long.
    """
    differences = [int(a) - int(b) for a, b in zip(ours, theirs, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / max(1, n - 1)
    half = NORMAL_95 * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies, nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
