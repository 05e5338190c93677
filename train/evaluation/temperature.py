"""Fits the temperature that calibrates the probabilities of decisions, and measures what it changes.

A decision's probabilities p become p^(1/T), divided by their sum, so the scores of its values are divided by T; the
top-1 value stays. T minimizes the negative log-likelihood of the right values (Guo et al. 2017, arXiv 1706.04599),
which is convex in 1/T: its derivative is the mean of expected less right score, and is 0 at the one minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backend import Bools, Floats, Ints
from runtime.errors import UserError

from .reliability import Bin, compute_expected_error, compute_reliability

LOWEST, HIGHEST = 0.05, 20.0  # temperatures; if all decisions are right, colder is always better
HALVINGS = 60
LEAST = 1e-38  # least probability of a right value, so that its logarithm is finite


@dataclass(frozen=True, slots=True)
class LabelledDecisions:
    """Decisions with their right values.

    Attributes:
        log_probability: [n, values], float64; -inf after the last value of a decision that has fewer than others.
        right: [n], index of the right value.
    """

    log_probability: Floats
    right: Ints


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well probabilities are calibrated at a temperature: mean negative log-likelihood in nats, error, bins."""

    temperature: float
    likelihood: float
    error: float
    bins: list[Bin]

    def as_dict(self) -> dict[str, Any]:
        """Returns rounded figures for a report."""
        return {
            "temperature": round(self.temperature, 4),
            "negative_log_likelihood": round(self.likelihood, 5),
            "expected_calibration_error": round(self.error, 5),
        }


def collect(probabilities: Sequence[Sequence[float]], right: Sequence[int]) -> LabelledDecisions:
    """Makes decisions from the probabilities of each and the index of its right value.

    Raises ValueError for an index out of range, probabilities that are negative or do not sum to 1 within 1e-3, and
    arguments of different lengths.
    """
    if len(probabilities) != len(right):
        raise ValueError(f"{len(probabilities)} rows of probabilities, {len(right)} right values; expected as many")
    rows = np.zeros((len(right), max(map(len, probabilities), default=1)))
    for row, values, index in zip(rows, probabilities, right, strict=True):
        if not 0 <= index < len(values) or abs(sum(values) - 1) > 1e-3 or min(values) < 0:
            raise ValueError(f"right value {index} of probabilities {values!r}; expected one of them, and a sum of 1")
        row[: len(values)] = values
        row[index] = max(row[index], LEAST)
    with np.errstate(divide="ignore"):
        return LabelledDecisions(np.log(rows), np.array(right, np.int64))


def apply_temperature(decided: LabelledDecisions, temperature: float) -> Floats:
    """Returns the probabilities [n, values] at a temperature."""
    scores = decided.log_probability / temperature
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def negative_log_likelihood(decided: LabelledDecisions, temperature: float) -> float:
    """Returns the mean of -log p of the right values, in nats."""
    scores = decided.log_probability / temperature
    best = scores.max(-1)
    total = best + np.log(np.exp(scores - best[:, None]).sum(-1))
    return float((total - scores[np.arange(len(scores)), decided.right]).mean())


def fit_temperature(decided: LabelledDecisions) -> float:
    """Returns the temperature from LOWEST to HIGHEST with the least negative log-likelihood, to 1e-6 of its value.

    Decisions with only one value have no influence. Raises UserError if there are no others.
    """
    if not np.isfinite(decided.log_probability).sum(-1).max(initial=0) > 1:
        raise UserError("there are no decisions between values to fit a temperature to; give more problems")
    finite = np.where(np.isfinite(decided.log_probability), decided.log_probability, 0.0)
    right = decided.log_probability[np.arange(len(finite)), decided.right]

    def slope(cold: float) -> float:  # derivative of the negative log-likelihood by 1/T, which rises
        return float(((apply_temperature(decided, 1 / cold) * finite).sum(-1) - right).mean())

    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) <= 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def measure_calibration(decided: LabelledDecisions, temperature: float) -> Calibration:
    """Returns likelihood, reliability and expected error of the chosen values at a temperature."""
    shares = apply_temperature(decided, temperature)
    verdict: Bools = shares.argmax(-1) == decided.right
    bins = compute_reliability(shares.max(-1), verdict)
    return Calibration(temperature, negative_log_likelihood(decided, temperature), compute_expected_error(bins), bins)
