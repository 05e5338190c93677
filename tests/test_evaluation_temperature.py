"""The temperature of decisions: the one of the least likelihood loss, found the slow way too; what it leaves alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny

from runtime.errors import UserError
from train.evaluation.temperature import (
    HIGHEST,
    LOWEST,
    apply_temperature,
    collect,
    fit_temperature,
    measure_calibration,
    negative_log_likelihood,
)


def decisions(rng: random.Random, count: int, heat: float) -> tuple[list[list[float]], list[int]]:
    """Decisions whose right value is sampled from the given probabilities, which are then reported `heat` too cold."""
    rows, right = list[list[float]](), list[int]()
    for _ in range(count):
        scores = [rng.gauss(0, 2) for _ in range(rng.randint(2, 6))]
        true, said = ([math.exp(score * by) for score in scores] for by in (1.0, heat))
        right.append(rng.choices(range(len(scores)), true)[0])
        rows.append([share / sum(said) for share in said])
    return rows, right


def slow_loss(rows: Sequence[Sequence[float]], right: Sequence[int], temperature: float) -> float:
    """Mean negative log-likelihood, decision by decision."""
    total = 0.0
    for row, index in zip(rows, right, strict=True):
        heated = [share ** (1 / temperature) for share in row]
        total -= math.log(heated[index] / sum(heated))
    return total / len(rows)


@pytest.mark.parametrize("heat", [0.4, 1.0, 2.5])
def test_the_fitted_temperature_is_that_of_the_least_loss_and_undoes_overconfidence(heat: float) -> None:
    seed = tiny.choose_seed()
    rows, right = decisions(random.Random(seed), 1500, heat)
    decided = collect(rows, right)
    found = fit_temperature(decided)
    assert found == pytest.approx(heat, rel=0.25), f"seed {seed}"
    for temperature in (found, 1.0, 3.0):
        assert negative_log_likelihood(decided, temperature) == pytest.approx(slow_loss(rows, right, temperature))
    least = min((slow_loss(rows, right, found * (0.7 + 0.01 * i)), found * (0.7 + 0.01 * i)) for i in range(61))
    assert least[1] == pytest.approx(found, rel=0.011), f"seed {seed}"
    before, after = measure_calibration(decided, 1.0), measure_calibration(decided, found)
    assert after.likelihood <= before.likelihood
    if heat == 2.5:
        assert after.error < before.error / 2, f"seed {seed}"
    assert sum(each.count for each in after.bins) == 1500


def test_a_temperature_changes_no_choice_and_a_value_that_is_not_there_stays_away() -> None:
    decided = collect([[0.7, 0.3], [0.1, 0.2, 0.7], [0.0, 1.0]], [0, 1, 1])
    for temperature in (LOWEST, 0.5, 1.0, HIGHEST):
        shares = apply_temperature(decided, temperature)
        assert shares.argmax(-1).tolist() == [0, 2, 1] and shares.sum(-1) == pytest.approx(1)
        assert shares[0, 2] == shares[2, 2] == 0
    assert apply_temperature(decided, 1.0)[1] == pytest.approx([0.1, 0.2, 0.7])
    assert apply_temperature(decided, 2.0)[0] == pytest.approx(np.sqrt([0.7, 0.3, 0]) / np.sqrt([0.7, 0.3]).sum())


def test_at_the_ends_of_the_range() -> None:
    assert fit_temperature(collect([[0.9, 0.1]] * 5, [0] * 5)) == pytest.approx(LOWEST, rel=1e-3)  # all right
    assert fit_temperature(collect([[0.9, 0.1]] * 5, [1] * 5)) == pytest.approx(HIGHEST, rel=1e-3)  # all wrong
    certain = collect([[1.0, 0.0], [0.6, 0.4]], [1, 0])  # a right value that was given no probability at all
    assert math.isfinite(negative_log_likelihood(certain, 1.0)) and fit_temperature(certain) > 1


def test_the_closed_form_of_equal_decisions() -> None:
    """Of n decisions p against 1 - p, k right: the share k/n is what the fitted temperature gives."""
    decided = collect([[0.95, 0.05]] * 10, [0] * 8 + [1] * 2)
    found = fit_temperature(decided)
    assert found == pytest.approx(math.log(0.95 / 0.05) / math.log(0.8 / 0.2), rel=1e-6)
    after = measure_calibration(decided, found)
    assert after.error == pytest.approx(0, abs=1e-6) and measure_calibration(decided, 1.0).error == pytest.approx(0.15)
    assert after.as_dict() == {
        "temperature": round(found, 4), "negative_log_likelihood": 0.5004, "expected_calibration_error": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "right"), [([[0.5, 0.5]], [2]), ([[0.5, 0.5]], [-1]), ([[0.5, 0.4]], [0]), ([[1.5, -0.5]], [0]), ([], [0])]
)
def test_what_are_no_decisions_is_refused(rows: Any, right: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        collect(rows, right)


@pytest.mark.parametrize("rows", [[], [[1.0], [1.0]]])
def test_nothing_to_decide_is_told_in_one_line(rows: list[list[float]]) -> None:
    with pytest.raises(UserError, match="no decisions between values") as caught:
        fit_temperature(collect(rows, [0] * len(rows)))
    assert "\n" not in str(caught.value)
