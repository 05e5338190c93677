"""Drawing tokens on the host: how often each comes, what a draw depends on, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny

from runtime.backend import Proposal
from runtime.decoding.sampling import SEEDS, Sampler, check_sampling, make_sampler, sample_tokens, sample_uniforms
from runtime.errors import UserError

LOG_PROB = np.log(np.array([0.5, 0.25, 0.12, 0.08, 0.04], np.float32))  # the rest has another 0.01


def tempered(temperature: float) -> np.ndarray:
    """The probabilities that tokens should be drawn with, over these alone."""
    weight = np.exp(LOG_PROB.astype(np.float64) / temperature)
    return weight / weight.sum()


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0, 5.0])
def test_tokens_come_as_often_as_softmax_at_the_temperature_says(temperature: float) -> None:
    n = 40_000
    places = sample_tokens(np.tile(LOG_PROB, (n, 1)), temperature, sample_uniforms(11, 0, n, 0))
    expected = tempered(temperature)
    deviation = np.sqrt(n * expected * (1 - expected))
    assert (np.abs(np.bincount(places, minlength=5) - n * expected) < 4 * deviation + 1).all()


def test_other_temperatures_would_be_told_apart_by_that_test() -> None:
    n, deviation = 40_000, np.sqrt(40_000 * tempered(1.0)[0] * (1 - tempered(1.0)[0]))
    assert abs(n * tempered(1.0)[0] - n * tempered(0.95)[0]) > 4 * deviation + 1


def slow_draw(log_prob: np.ndarray, temperature: float, uniform: float) -> int:
    """The definition: the first token at which the probabilities so far are above the number drawn."""
    weights = [np.exp((float(each) - float(log_prob[0])) / temperature) for each in log_prob]
    reached, sought = 0.0, uniform * sum(weights)
    for place, weight in enumerate(weights):
        reached += weight
        if reached > sought:
            return place
    raise AssertionError("no token")


def test_a_draw_is_the_first_token_that_reaches_the_number() -> None:
    rng = np.random.default_rng(3)
    log_prob = -np.sort(rng.exponential(3, (500, 7)).astype(np.float32), axis=1)
    uniform = rng.random(500)
    for temperature in (0.2, 1.0, 3.0):
        slow = [slow_draw(row, temperature, u) for row, u in zip(log_prob, uniform, strict=True)]
        assert sample_tokens(log_prob, temperature, uniform).tolist() == slow and len(set(slow)) > 3


def test_the_ends_of_the_range_draw_the_best_and_the_last_token_and_never_an_impossible_one() -> None:
    least, most = np.zeros(1), np.full(1, 1 - 2.0**-53)
    alone, pair = np.array([0, -np.inf, -np.inf], np.float32), np.array([-9, -9, -1e30], np.float32)
    for log_prob in (LOG_PROB, alone, pair):
        possible = int(np.isfinite(log_prob[log_prob > -1e29]).sum())
        for temperature in (1e-300, 0.5, 5.0):
            place = int(sample_tokens(log_prob[None], temperature, most)[0])
            assert sample_tokens(log_prob[None], temperature, least)[0] == 0 and place < possible
            assert place == (possible - 1 if temperature > 0.1 or log_prob[1] == log_prob[0] else 0)


def test_numbers_are_a_function_of_seed_step_and_position_and_nothing_else() -> None:
    whole = sample_uniforms(5, 0, 40, 7)
    for first, count in ((0, 1), (3, 8), (39, 1), (16, 16)):
        np.testing.assert_array_equal(sample_uniforms(5, first, count, 7), whole[first : first + count])
    np.testing.assert_array_equal(sample_uniforms(5, -3, 8, 7), [0, 0, 0, *whole[:5]])
    every = np.concatenate([sample_uniforms(seed, 0, 40, step) for seed in (5, 6, -5) for step in range(20)])
    assert len(set(every.tolist())) == len(every)


def test_numbers_are_spread_evenly_over_0_to_1() -> None:
    drawn = np.concatenate([sample_uniforms(2, 0, 100, step) for step in range(200)])
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.bincount((drawn * 20).astype(int), minlength=20)
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared, 19 degrees of freedom, 0.1 %


def test_numbers_are_the_same_in_every_version() -> None:
    assert sample_uniforms(7, 0, 3, 3).tolist() == [0.43900223090044976, 0.36907145856967594, 0.8046038132895261]


def top(log_prob: Any = LOG_PROB, rows: int = 4) -> Proposal:
    """A canvas of one distribution: the K tokens are 20 and down from there, the entropy and confidence made up."""
    token = np.tile(20 - np.arange(len(log_prob)), (rows, 1))
    best = np.full(rows, 0.5, np.float32)
    return Proposal(token[:, 0], best, best + 1, token, np.tile(log_prob, (rows, 1)))


def test_a_drawn_token_has_its_own_probability_at_temperature_1_and_the_entropy_stays() -> None:
    given = top(rows=64)
    out = Sampler(3.0, 9)(given, 0, 0)
    assert out.top_token is None and out.top_logprob is None and len(set(out.token.tolist())) == 5
    np.testing.assert_allclose(out.confidence, np.exp(LOG_PROB)[20 - out.token], rtol=1e-6)
    assert out.confidence.dtype == np.float32 and out.token.dtype == np.int64
    np.testing.assert_array_equal(out.entropy, given.entropy)
    assert given.token.tolist() == [20] * 64  # what came in is as it was


def test_scores_that_are_no_numbers_stay_none() -> None:
    assert np.isnan(Sampler(1.0, 9)(top(np.full(5, np.nan, np.float32)), 0, 0).confidence).all()


def test_a_backend_that_gives_no_top_tokens_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no top tokens"):
        Sampler(1.0, 9)(Proposal(np.zeros(1, np.int64), np.zeros(1), np.zeros(1)), 0, 0)


def test_a_seed_is_drawn_where_none_is_given_and_none_without_a_temperature() -> None:
    assert make_sampler(0, 5) is None and make_sampler(0.5, 5) == Sampler(0.5, 5)
    assert make_sampler(0.5, np.int64(5)) == Sampler(0.5, 5)
    seeds = {each.seed for _ in range(8) if (each := make_sampler(1.0, None)) is not None}
    assert len(seeds) == 8 and all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("temperature", [-0.1, 5.1, float("nan"), float("inf")])
def test_a_temperature_outside_its_range_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature is {temperature:g}; expected 0, for the top-1 tokens, to 5"):
        check_sampling(tiny.contract(top_k=4), temperature, None)


@pytest.mark.parametrize("seed", [SEEDS, -SEEDS - 1, 10**400, 0.5])
def test_a_seed_that_is_no_whole_number_of_64_bits_is_refused(seed: Any) -> None:
    with pytest.raises(UserError, match="expected a whole number of 64 bits"):
        check_sampling(tiny.contract(top_k=4), 1.0, seed)


def test_an_engine_without_top_tokens_refuses_a_temperature_and_takes_a_seed() -> None:
    with pytest.raises(UserError, match=r"temperature is 0\.5, .* leave it out, or export with --top-k 32$"):
        check_sampling(tiny.contract(), 0.5, None)
    check_sampling(tiny.contract(), 0.0, 7)
    for seed in (None, 0, -1, SEEDS - 1, -SEEDS):
        check_sampling(tiny.contract(top_k=4), 5.0, seed)
