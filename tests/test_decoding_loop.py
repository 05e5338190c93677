"""The decode loop by hand, on a scripted backend: what it asks for, what it counts, what it refuses."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import tiny
from tiny import BLOCK, END, MASK, Scripted, arbitrary, canvases, proposal

from runtime.backend import Forward, Proposal
from runtime.contract import ALIGNMENTS, GateSpec
from runtime.decoding.loop import decode_steps, generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import NumericalError, UserError

TWO_BLOCKS = (
    ([3, 4, 5, 6], [0.9, 0.1, 0.9, 0.1]),
    ([9, 7, 9, 8], [0.1, 0.9, 0.1, 0.9]),
    ([10, 11, 12, 13], [0.9, 0.9, 0.9, 0.9]),
)  # fmt: skip


@pytest.mark.parametrize(("fused", "forwards", "calls"), [(False, 4, 5), (True, 3, 3)])
def test_counts_are_those_of_the_definition(fused: bool, forwards: int, calls: int) -> None:
    backend = Scripted(tiny.contract(), canvases(*TWO_BLOCKS))
    result = generate(backend, Request(np.array([5, 6, 7]), DecodeOptions(8)), fused=fused)
    assert result.token_ids == (3, 7, 5, 8, 10, 11, 12, 13)
    assert (result.steps, result.commits, result.blocks, result.forwards) == (3, 1, 2, forwards)
    assert result.tokens_per_forward == 8 / forwards
    assert len(backend.forwards) == calls  # the prefill of its own is run, but not counted
    assert result.cached and 0 <= result.prefill_seconds <= result.seconds


def test_counts_without_a_cache_know_no_commit() -> None:
    backend = Scripted(tiny.contract(attention="full"), canvases(*TWO_BLOCKS))
    result = generate(backend, Request(np.array([5, 6, 7]), DecodeOptions(8)))
    assert result.token_ids == (3, 7, 5, 8, 10, 11, 12, 13)
    assert (result.steps, result.commits, result.blocks, result.forwards, result.cached) == (3, 0, 2, 3, False)
    assert [forward.input_ids.shape[1] for forward in backend.forwards] == [3 + 3 * BLOCK] * 3


def slowly(script: tiny.Script) -> tiny.Script:
    """The same, each forward of it taking two milliseconds."""

    def slow(forward: Forward) -> Proposal:
        time.sleep(0.002)
        return script(forward)

    return slow


@pytest.mark.parametrize(
    ("contract", "prompt", "fused", "prefill"),
    [
        ({}, 3, False, True),
        ({}, 3, True, False),
        ({"attention": "full"}, 3, False, False),  # commits nothing, so there is nothing to separate
        ({"alignment": "absolute"}, 3, False, False),  # all of the prompt is in the first canvas
        ({"alignment": "absolute"}, 5, False, True),
    ],
)
def test_only_a_forward_that_was_no_step_is_called_prefill(
    contract: dict[str, Any], prompt: int, fused: bool, prefill: bool
) -> None:
    backend = Scripted(tiny.contract(**contract), slowly(canvases(*TWO_BLOCKS)))
    result = generate(backend, Request(np.arange(prompt) + 5, DecodeOptions(4)), fused=fused)
    assert (result.prefill_seconds >= 0.002) == prefill and (result.prefill_seconds == 0) != prefill
    assert result.seconds >= 0.002 * len(backend.forwards)


def test_no_requests_give_no_steps() -> None:
    backend = Scripted(tiny.contract(), arbitrary(0))
    assert list(decode_steps(backend, [])) == [] and generate_batch(backend, []) == []
    assert not backend.opened and not backend.forwards


def test_a_canvas_whose_only_open_position_the_candidate_decides_needs_no_forward() -> None:
    script = iter([([[14]], [[0.1]]), ([[9, 4, 5, 6]], [[0.9, 0.9, 0.9, 0.9]])])
    backend = Scripted(tiny.contract(shift=True), lambda forward: proposal(*next(script)))
    seen = [step for [step] in decode_steps(backend, [Request(np.array([5]), DecodeOptions(4))], fused=False)]
    assert seen[-1].result is not None and seen[-1].result.token_ids == (14, 4, 5, 6)
    assert len(backend.forwards) == 2 and seen[-1].result.forwards == 1
    assert [step.slot for step in seen] == [0, -1]


def test_a_step_says_what_it_did() -> None:
    backend = Scripted(tiny.contract(alignment="absolute"), canvases(*TWO_BLOCKS[:2]))
    first, second = (step for [step] in decode_steps(backend, [Request(np.array([8]), DecodeOptions(3))]))
    assert (first.row, first.slot, first.block, first.given) == (0, 0, 0, 1)
    assert first.tokens.tolist() == [8, MASK, 5, MASK] and first.open.tolist() == [False, True, False, True]
    assert first.accepted.tolist() == [False, False, True, False] and first.result is None
    assert second.tokens.tolist() == [8, 7, 5, 8] and second.result is not None


def test_a_literal_mask_token_in_the_prompt_survives() -> None:
    for alignment, tail in (("prompt", 0), ("end", 0), ("absolute", 2)):
        backend = Scripted(tiny.contract(alignment=alignment), canvases(*TWO_BLOCKS))
        seen = [
            step for [step] in decode_steps(backend, [Request(np.array([5, 6, 7, 8, MASK, MASK]), DecodeOptions(2))])
        ]
        assert backend.forwards[0].input_ids[0, :6].tolist() == [5, 6, 7, 8, MASK, MASK]
        assert [step.given for step in seen] == [tail] * len(seen)
        assert all(step.tokens[:tail].tolist() == [MASK] * tail and not step.open[:tail].any() for step in seen)
        assert MASK not in seen[-1].result.token_ids


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_an_end_token_in_the_prompt_does_not_end_the_answer(alignment: str) -> None:
    backend = Scripted(tiny.contract(alignment=alignment), canvases(([3, 4, 5, 6], [0.9] * 4), ([7] * 4, [0.9] * 4)))
    result = generate(backend, Request(np.array([END, 6, 7, 8, END]), DecodeOptions(3)))
    assert (result.finish, len(result.token_ids)) == ("length", 3)


def test_an_end_token_behind_an_open_position_does_not_end_the_answer() -> None:
    script = canvases(([9, 9, END, 9], [0.1, 0.1, 0.9, 0.1]), ([3, 4, 9, 9], [0.9, 0.9, 0.1, 0.1]))
    seen = [
        step for [step] in decode_steps(Scripted(tiny.contract(), script), [Request(np.array([5]), DecodeOptions(8))])
    ]
    assert seen[0].result is None and seen[1].result is not None
    assert (seen[1].result.token_ids, seen[1].result.finish) == ((3, 4, END), "eos")
    assert seen[1].open.tolist() == [False, False, False, True]  # what lies behind it is not waited for


def test_what_lies_behind_the_end_token_is_dropped() -> None:
    backend = Scripted(tiny.contract(), canvases(([3, END, 4, END], [0.9] * 4)))
    result = generate(backend, Request(np.array([5]), DecodeOptions(8)))
    assert (result.token_ids, result.finish, result.blocks) == ((3, END), "eos", 1)


@pytest.mark.parametrize(("wanted", "finish", "answer"), [(2, "length", (3, 4)), (3, "eos", (3, 4, END))])
def test_the_answer_is_cut_at_max_new_tokens_and_the_canvas_stays_whole(
    wanted: int, finish: str, answer: tuple[int, ...]
) -> None:
    backend = Scripted(tiny.contract(), canvases(([3, 4, END, 6], [0.9] * 4)))
    result = generate(backend, Request(np.array([5]), DecodeOptions(wanted)))
    assert (result.finish, result.token_ids) == (finish, answer)
    assert backend.forwards[0].input_ids.tolist() == [[5, *[MASK] * BLOCK]]


def test_requests_of_one_batch_have_thresholds_of_their_own_which_may_change_while_they_run() -> None:
    score = [0.5, 0.75, 0.9, 0.8, 0.3, 0.2, 0.1, 0.0]
    backend = Scripted(
        tiny.contract(block=8, canvas=8),
        lambda forward: proposal([[7] * 8] * len(forward.rows), [score] * len(forward.rows)),
    )
    falling, prompt = iter([1.0, 0.75, 0.0]), np.array([5])
    requests = [
        Request(prompt, DecodeOptions(8, threshold=0.0)),
        Request(prompt, DecodeOptions(8, threshold=0.75)),
        Request(prompt, DecodeOptions(8, lambda: next(falling))),
    ]
    taken: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for done in decode_steps(backend, requests):
        for step in done:
            taken[step.row].append(int(step.accepted.sum()))
    assert taken == {0: [8], 1: [3, 1, 1, 1, 1, 1], 2: [1, 2, 5]}
    assert [result.steps for result in generate_batch(backend, requests, threshold=0.75)] == [6, 6, 6]
    with pytest.raises(UserError, match="threshold 2 is outside"):
        next(
            iter(
                decode_steps(
                    backend, [Request(prompt, DecodeOptions(8)), Request(prompt, DecodeOptions(8, threshold=2))]
                )
            )
        )


def test_the_threshold_is_read_at_every_step() -> None:
    values = iter([1.0, 0.75, 0.0])
    lines = [([3, 4, 5, 6, 7, 8, 9, 10], [0.5, 0.75, 0.9, 0.8, 0.3, 0.2, 0.1, 0.0])] * 3
    backend = Scripted(tiny.contract(block=8, canvas=8), canvases(*lines))
    seen = [
        step
        for [step] in decode_steps(backend, [Request(np.array([5]), DecodeOptions(8))], threshold=lambda: next(values))
    ]
    assert [int(step.accepted.sum()) for step in seen] == [1, 2, 5]


@pytest.mark.parametrize(
    ("gate", "threshold"),
    [
        ({}, 1.01), ({}, -0.1), ({}, float("nan")), ({"metric": "entropy", "comparator": "<="}, 3.2),
        ({"rule": "factor"}, -1.0), ({"rule": "count"}, 0.5),
    ],
)  # fmt: skip
def test_a_threshold_outside_its_range_is_refused(gate: dict[str, Any], threshold: float) -> None:
    backend = Scripted(tiny.contract(gate=gate), arbitrary(0))
    with pytest.raises(UserError, match="threshold"):
        generate(backend, Request(np.array([5]), DecodeOptions(4)), threshold=threshold)
    assert not backend.opened and not backend.forwards
    with pytest.raises(UserError, match="threshold"):
        generate(backend, Request(np.array([5]), DecodeOptions(4)), threshold=lambda: threshold)


def test_the_threshold_of_a_given_gate_is_checked_too() -> None:
    backend = Scripted(tiny.contract(), arbitrary(0))
    with pytest.raises(UserError, match="threshold 5"):
        generate(backend, Request(np.array([5]), DecodeOptions(4)), gate=GateSpec(threshold=5.0))
    assert not backend.opened


@pytest.mark.parametrize(
    ("prompt", "wanted", "said"),
    [([], 4, "empty"), ([5], 0, "at least 1"), ([5] * 61, 4, "room for 0"), ([5] * 57, 5, "room for 4")],
)
def test_a_request_that_does_not_fit_is_refused_before_any_work(prompt: list[int], wanted: int, said: str) -> None:
    backend = Scripted(tiny.contract(), arbitrary(0))
    with pytest.raises(UserError, match=said):
        generate_batch(
            backend,
            [Request(np.array([5]), DecodeOptions(4)), Request(np.array(prompt, np.int64), DecodeOptions(wanted))],
        )
    assert not backend.opened and not backend.forwards


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["confidence", "entropy"])
def test_scores_that_are_not_numbers_stop_decoding(bad: float, place: str) -> None:
    def script(forward: Forward) -> Proposal:
        out = proposal([[3] * 4], [[0.9] * 4])
        getattr(out, place)[0, 2] = bad
        return out

    with pytest.raises(NumericalError, match="not finite"):
        generate(Scripted(tiny.contract(), script), Request(np.array([5]), DecodeOptions(4)))
