"""The gate, case by case and against a slow one written from its description."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backend import Bools
from runtime.contract import GateSpec
from runtime.decoding.gate import RULES, Gate, count_by_factor

END = 1


def gate(
    spec: GateSpec, scores: list[float], masked: str = "", token: list[int] | None = None, progress: float = 0.0
) -> str:
    """Which positions one canvas gets accepted, as a string of `x` and `.`; `masked` is one too, all open if empty."""
    score = np.array([scores], np.float32)
    open_ = np.array([[c == "x" for c in masked or "x" * len(scores)]])
    tokens = np.array([token or [7] * len(scores)])
    confidence, entropy = (
        (score, np.zeros_like(score)) if spec.metric == "confidence" else (np.zeros_like(score), score)
    )
    accepted = Gate(spec, (END,))(tokens, confidence, entropy, open_, np.array([progress], np.float32), spec.threshold)
    return "".join(".x"[int(flag)] for flag in accepted[0])


AT_LEAST, ABOVE = GateSpec(threshold=0.5), GateSpec(comparator=">", threshold=0.5)
AT_MOST, BELOW = (GateSpec(metric="entropy", comparator=c, threshold=0.5) for c in ("<=", "<"))
COUNT = GateSpec(rule="count", min=2)
FACTOR = GateSpec(rule="factor", threshold=1.0)
GUARDED = replace(AT_LEAST, eos_guard=0.5)


@pytest.mark.parametrize(
    ("spec", "scores", "masked", "accepted"),
    [
        (AT_LEAST, [0.5, 0.25, 0.75, 0.5], "", "x.xx"),
        (ABOVE, [0.5, 0.25, 0.75, 0.5], "", "..x."),
        (AT_MOST, [0.5, 0.25, 0.75, 0.5], "", "xx.x"),
        (BELOW, [0.5, 0.25, 0.75, 0.5], "", ".x.."),
        (ABOVE, [0.5, 0.5, 0.5], "", "x.."),  # nothing passes: the best, of ties the lowest position
        (BELOW, [0.5, 0.5, 0.5], "", "x.."),
        (AT_LEAST, [0.1, 0.3, 0.2], "", ".x."),
        (AT_MOST, [0.9, 0.7, 0.8], "", ".x."),
        (AT_LEAST, [0.9, 0.0, 0.9], ".x.", ".x."),  # one open position
        (AT_LEAST, [0.9, 0.1, 0.1, 0.9], ".xx.", ".x.."),
        (replace(AT_LEAST, threshold=0.9), [0.9, 0.9], "", "xx"),  # float32(0.9) < 0.9: equal as float32 alone
        (replace(ABOVE, threshold=0.3), [0.3, 0.3], "", "x."),  # float32(0.3) > 0.3: not above as float32 alone
        (COUNT, [0.1, 0.3, 0.2, 0.3], "", ".x.x"),
        (COUNT, [0.2, 0.2, 0.2, 0.2], "", "xx.."),
        (COUNT, [0.9, 0.3, 0.2, 0.3], "..x.", "..x."),
        (replace(COUNT, min=1), [0.9, 0.9, 0.9], "", "x.."),
        (replace(COUNT, metric="entropy", comparator="<="), [0.3, 0.1, 0.2, 0.9], "", ".xx."),
        # (n + 1)(1 - c) < 1: c above 1/2 for one, 2/3 for two, 3/4 for three
        (FACTOR, [0.5, 0.5, 0.5], "", "x.."),  # none: the forced one
        (FACTOR, [0.51, 0.4, 0.6], "", "..x"),
        (FACTOR, [0.7, 0.7, 0.7], "", "xx."),
        (FACTOR, [0.8, 0.8, 0.8], "", "xxx"),
        (FACTOR, [0.75, 0.75, 0.75], "", "xx."),  # 4 × 0.25 is not below 1
        (FACTOR, [0.8, 0.8, 0.8], "x.x", "x.x"),
        (replace(AT_LEAST, min=2), [0.1, 0.3, 0.2], "", ".xx"),
        (replace(AT_LEAST, sub_block=2), [0.1, 0.2, 0.9, 0.9], "", ".x.."),
        (replace(AT_LEAST, sub_block=2), [0.1, 0.2, 0.9, 0.9], "..xx", "..xx"),
        (replace(AT_LEAST, sub_block=2), [0.9, 0.9, 0.9, 0.9], ".xxx", ".x.."),
        (replace(COUNT, sub_block=2), [0.9, 0.9, 0.9, 0.9], ".xxx", ".x.."),
    ],
)
def test_a_gate_accepts(spec: GateSpec, scores: list[float], masked: str, accepted: str) -> None:
    assert gate(spec, scores, masked) == accepted


@pytest.mark.parametrize(
    ("token", "scores", "masked", "progress", "accepted"),
    [
        ([7, END, 7], [0.9, 0.9, 0.1], "", 0.0, "x.."),  # held back though it passes
        ([7, END, 7], [0.2, 0.9, 0.1], "", 0.0, "x.."),  # and ranks last, so another one is forced
        ([END, 7, END], [0.8, 0.1, 0.9], "x.x", 0.0, "..x"),  # only end tokens are open: the best of them is forced
        ([7, END, 7], [0.9, 0.9, 0.1], "", 0.49, "x.."),
        ([7, END, 7], [0.9, 0.9, 0.1], "", 0.5, "xx."),  # the share is out
        ([END, END, END], [0.9, 0.8, 0.7], "", 0.0, "x.."),  # nothing else: one of them, not all that pass
    ],
)
def test_end_tokens_are_held_back(
    token: list[int], scores: list[float], masked: str, progress: float, accepted: str
) -> None:
    assert gate(GUARDED, scores, masked, token, progress) == accepted


CAD = GateSpec(threshold=0.8, min=2, eos_guard=0.5)


@pytest.mark.parametrize(
    ("token", "scores", "masked", "progress", "accepted"),
    [
        ([7, 7, 7, 7, 7], [0.9, 0.81, 0.9, 0.95, 0.5], "", 0.0, "xxxx."),  # those that pass
        ([7, 7, 7, 7, 7], [0.1, 0.3, 0.9, 0.2, 0.1], "", 0.0, ".xx.."),  # the fewest: one below the threshold with it
        ([7, END, END, 7, 7], [0.9, 0.99, 0.99, 0.1, 0.2], "", 0.0, "x...x"),  # made up of others than end tokens
        ([7, END, END, 7, 7], [0.9, 0.99, 0.99, 0.1, 0.2], "xxx..", 0.0, "x...."),  # which may be fewer than the fewest
        ([7, END, END, 7, 7], [0.9, 0.99, 0.95, 0.1, 0.2], ".xx..", 0.0, ".xx.."),  # and without others it is of them
        ([7, END, END, 7, 7], [0.9, 0.99, 0.95, 0.1, 0.2], "", 0.5, "xxx.."),
    ],
)
def test_confidence_adaptive_decoding_keeps_its_bounds_and_holds_end_tokens_back(
    token: list[int], scores: list[float], masked: str, progress: float, accepted: str
) -> None:
    assert gate(CAD, scores, masked, token, progress) == accepted


@pytest.mark.parametrize("rule", ["threshold", "factor"])
def test_each_row_of_a_batch_may_have_a_threshold_of_its_own(rule: str) -> None:
    score = np.array([[0.9, 0.7, 0.5, 0.3]] * 3, np.float32)
    token, open_, progress = np.full(score.shape, 7), np.ones(score.shape, np.bool_), np.zeros(3, np.float32)
    limits = [0.9, 0.5, 0.0] if rule == "threshold" else [0.1, 1.0, 3.0]
    decide = Gate(GateSpec(rule=rule), (END,))
    together = decide(token, score, score, open_, progress, np.array(limits))
    for row, limit in enumerate(limits):
        part = slice(row, row + 1)
        alone = decide(token[part], score[part], score[part], open_[part], progress[part], limit)
        assert (alone == together[part]).all()
    assert together.sum(axis=1).tolist() == ([1, 3, 4] if rule == "threshold" else [1, 2, 3])


def test_a_factor_that_no_position_meets_counts_none() -> None:
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.1, 0.3]], np.float32)
    open_ = np.array([[True, True, True], [True, True, False]])
    assert count_by_factor(scores, open_, np.array([[1.0], [1.0]])).tolist() == [2, 0]


def test_a_factor_gate_does_not_count_held_back_end_tokens() -> None:
    spec = replace(FACTOR, eos_guard=0.5)
    assert gate(spec, [0.99, 0.99, 0.7, 0.1], "", [END, END, 7, 7]) == "..x."


@st.composite
def specs(draw: st.DrawFn) -> GateSpec:
    rule = draw(st.sampled_from(list(RULES)))
    metric = draw(st.sampled_from(list(RULES[rule].units)))
    comparator = draw(st.sampled_from([">=", ">"] if metric == "confidence" else ["<=", "<"]))
    least = draw(st.integers(1, 3))
    sub_block, guard = draw(st.none() | st.integers(1, 6)), draw(st.sampled_from([0.0, 0.5]))
    return GateSpec(
        rule, metric, comparator, draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])), least, sub_block, guard
    )


SCORES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32)


@st.composite
def canvases(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    """token, confidence, entropy, masked [batch, block], at least one position of each row open; progress [batch]."""
    batch, block = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    size = batch * block

    def grid(values: st.SearchStrategy[float], dtype: type) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype).reshape(batch, block)

    masked = grid(st.booleans(), np.bool_)
    masked[~masked.any(axis=1), draw(st.integers(0, block - 1))] = True
    progress = np.array(draw(st.lists(st.sampled_from([0.0, 0.5]), min_size=batch, max_size=batch)), np.float32)
    return (
        grid(st.sampled_from([END, 7]), np.int64),
        grid(SCORES, np.float32),
        grid(SCORES, np.float32),
        masked,
        progress,
    )


@given(specs(), canvases())
def test_accepted_positions_are_open_and_there_is_one_in_every_row(
    spec: GateSpec, canvas: tuple[np.ndarray, ...]
) -> None:
    accepted = Gate(spec, (END,))(*canvas, spec.threshold)
    assert not (accepted & ~canvas[3]).any()
    assert accepted.any(axis=1).all()


@given(specs(), canvases())
def test_a_row_of_a_batch_is_decided_as_alone(spec: GateSpec, canvas: tuple[np.ndarray, ...]) -> None:
    together = Gate(spec, (END,))(*canvas, spec.threshold)
    alone = [Gate(spec, (END,))(*(part[i : i + 1] for part in canvas), spec.threshold)[0] for i in range(len(together))]
    assert (together == np.stack(alone)).all()


@given(specs(), canvases())
def test_a_gate_equals_the_slow_one(spec: GateSpec, canvas: tuple[np.ndarray, ...]) -> None:
    accepted = Gate(spec, (END,))(*canvas, spec.threshold)
    for row, parts in zip(accepted, zip(*canvas, strict=True), strict=True):
        assert sorted(np.flatnonzero(row)) == sorted(slow_gate(spec, *parts))


def slow_gate(
    spec: GateSpec, token: np.ndarray, confidence: np.ndarray, entropy: np.ndarray, masked: Bools, progress: float
) -> list[int]:
    """One canvas, position by position, as `GateSpec` describes it."""
    places = [i for i in range(len(token)) if masked[i]]
    if spec.sub_block:
        places = [i for i in places if i // spec.sub_block == places[0] // spec.sub_block]
    held = {i for i in places if token[i] == END and progress < spec.eos_guard}
    score = confidence if spec.metric == "confidence" else -entropy
    ranking = sorted(places, key=lambda i: (i in held, -score[i], i))
    free, limit = [i for i in ranking if i not in held], np.float32(spec.threshold)
    if spec.rule == "count":
        return ranking[: spec.min]
    if spec.rule == "factor":
        runs = [n for n, i in enumerate(free, start=1) if (n + 1) * float(1 - confidence[i]) < spec.threshold]
        passed = free[: max(runs, default=0)]
    elif spec.rule == "threshold":
        compared = {">=": confidence >= limit, ">": confidence > limit, "<=": entropy <= limit, "<": entropy < limit}[
            spec.comparator
        ]
        passed = [i for i in free if compared[i]]
    else:
        raise NotImplementedError(f"the slow gate has no rule {spec.rule}")
    wanted = set(passed) | set((free or ranking)[: spec.min])
    return [i for i in ranking if i in wanted]
