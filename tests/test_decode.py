"""The decode loop: against full recomputation on random models, and by hand and at random on a scripted backend."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slow_decode import distributions, slow_decode
from tiny import BLOCK, END, MASK, VOCAB, Scripted, arbitrary, canvases, proposal

from runtime.backend import Forward, Proposal
from runtime.contract import ALIGNMENTS, ATTENTIONS, Contract, GateSpec
from runtime.decode import Request, generate, generate_batch, steps
from runtime.errors import NumericalError, UserError
from train.torch_backend import TorchBackend

LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2)
CLOSE = 1e-5


class Noisy:
    """A backend that runs every forward twice, a canvas of random tokens behind the committed ones in between."""

    name = "noisy"

    def __init__(self, inner: TorchBackend, seed: int, left_behind: float = 0.0) -> None:
        self.inner, self.contract, self.left_behind = inner, inner.contract, left_behind
        self.rng, self.worst = np.random.default_rng(seed), 0.0

    def open(self, batch: int, capacity: int) -> None:
        self.inner.open(batch, capacity)
        if self.inner.cache is not None:
            for part in (*self.inner.cache.keys, *self.inner.cache.values):
                part.fill_(self.left_behind)

    def keep(self, rows: NDArray[Any]) -> None:
        self.inner.keep(rows)

    def forward(self, forward: Forward) -> Proposal:
        before = self.inner.forward(forward)
        size, past = (len(forward.past_length), BLOCK), forward.past_length
        visible = np.broadcast_to(past[:, None] + BLOCK, size)
        self.inner.forward(
            Forward(self.rng.integers(0, VOCAB, size), past, visible.copy(), np.zeros((size[0], 1), np.int64))
        )
        after = self.inner.forward(forward)
        assert (before.token == after.token).all()
        self.worst = max(self.worst, np.abs(before.confidence - after.confidence).max())
        return after


def middling(model: torch.nn.Module, contract: Contract, prompt: list[int]) -> float:
    """About the median confidence on a first canvas, so that steps accept several tokens and some accept none."""
    sure = distributions(model, contract, [*prompt, *[MASK] * BLOCK], len(prompt))[len(prompt) :].max(dim=-1).values
    return min(0.99, sure.median().item() * 1.05)


def test_cached_decoding_equals_recomputing_everything() -> None:
    seed = tiny.fresh_seed()
    print(f"BLOCKSTEP_SEED={seed}")  # shown with any failure, one that is no assert too
    rng = random.Random(seed)
    excused, runs, several, forced, ends = [], 0, 0, 0, set()
    kinds = itertools.product(ALIGNMENTS, (False, True), ATTENTIONS, (False, True), LENGTHS * 2)
    for alignment, shift, attention, fused, length in kinds:
        contract = tiny.contract(alignment=alignment, shift=shift, attention=attention)
        model, prompt = tiny.model(rng.randrange(2**31)), tiny.prompt(rng, length)
        wanted, threshold = rng.randint(5, 3 * BLOCK), middling(model, contract, prompt.tolist())
        case = f"seed {seed}, run {runs}: {alignment}, shift {shift}, {attention}, fused {fused}, prompt {length}"
        answer, finish, moments = slow_decode(model, contract, prompt.tolist(), wanted, threshold)
        backend = Noisy(TorchBackend(model, contract), rng.randrange(2**31))
        got = [step for [step] in steps(backend, [Request(prompt, wanted)], threshold=threshold, fused=fused)]
        runs += 1
        assert backend.worst <= CLOSE, case
        trace = [(tuple(step.tokens), tuple(step.open)) for step in got]
        expected = [(moment.tokens, moment.open) for moment in moments]
        if trace != expected:
            first = next(i for i, (a, b) in enumerate(itertools.zip_longest(trace, expected)) if a != b)
            assert first < len(moments) and moments[first].closest < CLOSE, f"{case}, step {first}"
            excused.append(case)
            continue
        result = got[-1].result
        assert result is not None and list(result.token_ids) == answer and result.finish == finish, case
        several += sum(moment.accepted > 1 for moment in moments)
        forced += sum(moment.forced for moment in moments)
        ends.add(finish)
    print(f"BLOCKSTEP_SEED={seed}: {runs} answers, {len(excused)} excused")
    assert len(excused) <= runs // 100, excused
    assert several > runs / 2 and forced > runs / 2 and ends == {"eos", "length"}, (
        f"seed {seed}: the cases are too easy"
    )


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_rows_of_a_ragged_batch_equal_their_solo_runs(alignment: str, shift: bool, attention: str, fused: bool) -> None:
    contract = tiny.contract(alignment=alignment, shift=shift, attention=attention)
    rng, model = random.Random(5), tiny.model(11)
    requests = [
        Request(tiny.prompt(rng, length), wanted) for length, wanted in zip(LENGTHS, (12, 2, 9, 6, 11), strict=True)
    ]
    backend, options = TorchBackend(model, contract), {"threshold": 0.4, "fused": fused}
    together = generate_batch(backend, requests, **options)
    for request, row in zip(requests, together, strict=True):
        solo = generate(backend, request, **options)
        for count in ("token_ids", "finish", "steps", "commits", "forwards", "blocks", "cached"):
            assert getattr(row, count) == getattr(solo, count), (count, len(request.prompt))


@pytest.mark.parametrize("alignment", ["absolute", "end"])
def test_blocks_of_one_with_shift_are_plain_greedy_decoding(alignment: str) -> None:
    seed = tiny.fresh_seed()
    print(f"BLOCKSTEP_SEED={seed}")
    contract = tiny.contract(alignment=alignment, block=1, shift=True, gate={"rule": "count"})
    model, prompt = tiny.model(seed), tiny.prompt(random.Random(seed), 5)
    ids = prompt.tolist()
    with torch.no_grad():
        while len(ids) < 17 and (len(ids) == 5 or ids[-1] != END):
            hidden = model(torch.tensor([ids]), torch.arange(1, len(ids) + 1)[None])
            logits = model.logits(hidden[0, -1])
            logits[MASK] = float("-inf")
            ids.append(int(logits.argmax()))
    result = generate(TorchBackend(model, contract), Request(prompt, 12))
    assert list(result.token_ids) == ids[5:], f"seed {seed}"
    assert (result.steps, result.commits, result.forwards) == (0, len(ids) - 6, len(ids) - 6), f"seed {seed}"


TWO_BLOCKS = (
    ([3, 4, 5, 6], [0.9, 0.1, 0.9, 0.1]),
    ([9, 7, 9, 8], [0.1, 0.9, 0.1, 0.9]),
    ([10, 11, 12, 13], [0.9, 0.9, 0.9, 0.9]),
)  # fmt: skip


@pytest.mark.parametrize(("fused", "forwards", "calls"), [(False, 4, 5), (True, 3, 3)])
def test_counts_are_those_of_the_definition(fused: bool, forwards: int, calls: int) -> None:
    backend = Scripted(tiny.contract(), canvases(*TWO_BLOCKS))
    result = generate(backend, Request(np.array([5, 6, 7]), 8), fused=fused)
    assert result.token_ids == (3, 7, 5, 8, 10, 11, 12, 13)
    assert (result.steps, result.commits, result.blocks, result.forwards) == (3, 1, 2, forwards)
    assert result.tokens_per_forward == 8 / forwards
    assert len(backend.forwards) == calls  # the prefill of its own is run, but not counted
    assert result.cached and 0 <= result.prefill_seconds <= result.seconds


def test_counts_without_a_cache_know_no_commit() -> None:
    backend = Scripted(tiny.contract(attention="full"), canvases(*TWO_BLOCKS))
    result = generate(backend, Request(np.array([5, 6, 7]), 8))
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
    result = generate(backend, Request(np.arange(prompt) + 5, 4), fused=fused)
    assert (result.prefill_seconds >= 0.002) == prefill and (result.prefill_seconds == 0) != prefill
    assert result.seconds >= 0.002 * len(backend.forwards)


def test_no_requests_give_no_steps() -> None:
    backend = Scripted(tiny.contract(), arbitrary(0))
    assert list(steps(backend, [])) == [] and generate_batch(backend, []) == []
    assert not backend.opened and not backend.forwards


def test_a_canvas_whose_only_open_position_the_candidate_decides_needs_no_forward() -> None:
    script = iter([([[14]], [[0.1]]), ([[9, 4, 5, 6]], [[0.9, 0.9, 0.9, 0.9]])])
    backend = Scripted(tiny.contract(shift=True), lambda forward: proposal(*next(script)))
    seen = [step for [step] in steps(backend, [Request(np.array([5]), 4)], fused=False)]
    assert seen[-1].result is not None and seen[-1].result.token_ids == (14, 4, 5, 6)
    assert len(backend.forwards) == 2 and seen[-1].result.forwards == 1
    assert [step.slot for step in seen] == [0, -1]


def test_a_step_says_what_it_did() -> None:
    backend = Scripted(tiny.contract(alignment="absolute"), canvases(*TWO_BLOCKS[:2]))
    first, second = (step for [step] in steps(backend, [Request(np.array([8]), 3)]))
    assert (first.row, first.slot, first.block, first.given) == (0, 0, 0, 1)
    assert first.tokens.tolist() == [8, MASK, 5, MASK] and first.open.tolist() == [False, True, False, True]
    assert first.accepted.tolist() == [False, False, True, False] and first.result is None
    assert second.tokens.tolist() == [8, 7, 5, 8] and second.result is not None


def test_a_literal_mask_token_in_the_prompt_survives() -> None:
    for alignment, tail in (("prompt", 0), ("end", 0), ("absolute", 2)):
        backend = Scripted(tiny.contract(alignment=alignment), canvases(*TWO_BLOCKS))
        seen = [step for [step] in steps(backend, [Request(np.array([5, 6, 7, 8, MASK, MASK]), 2)])]
        assert backend.forwards[0].input_ids[0, :6].tolist() == [5, 6, 7, 8, MASK, MASK]
        assert [step.given for step in seen] == [tail] * len(seen)
        assert all(step.tokens[:tail].tolist() == [MASK] * tail and not step.open[:tail].any() for step in seen)
        assert MASK not in seen[-1].result.token_ids


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_an_end_token_in_the_prompt_does_not_end_the_answer(alignment: str) -> None:
    backend = Scripted(tiny.contract(alignment=alignment), canvases(([3, 4, 5, 6], [0.9] * 4), ([7] * 4, [0.9] * 4)))
    result = generate(backend, Request(np.array([END, 6, 7, 8, END]), 3))
    assert (result.finish, len(result.token_ids)) == ("length", 3)


def test_an_end_token_behind_an_open_position_does_not_end_the_answer() -> None:
    script = canvases(([9, 9, END, 9], [0.1, 0.1, 0.9, 0.1]), ([3, 4, 9, 9], [0.9, 0.9, 0.1, 0.1]))
    seen = [step for [step] in steps(Scripted(tiny.contract(), script), [Request(np.array([5]), 8)])]
    assert seen[0].result is None and seen[1].result is not None
    assert (seen[1].result.token_ids, seen[1].result.finish) == ((3, 4, END), "eos")
    assert seen[1].open.tolist() == [False, False, False, True]  # what lies behind it is not waited for


def test_what_lies_behind_the_end_token_is_dropped() -> None:
    backend = Scripted(tiny.contract(), canvases(([3, END, 4, END], [0.9] * 4)))
    result = generate(backend, Request(np.array([5]), 8))
    assert (result.token_ids, result.finish, result.blocks) == ((3, END), "eos", 1)


@pytest.mark.parametrize(("wanted", "finish", "answer"), [(2, "length", (3, 4)), (3, "eos", (3, 4, END))])
def test_the_answer_is_cut_at_max_new_tokens_and_the_canvas_stays_whole(
    wanted: int, finish: str, answer: tuple[int, ...]
) -> None:
    backend = Scripted(tiny.contract(), canvases(([3, 4, END, 6], [0.9] * 4)))
    result = generate(backend, Request(np.array([5]), wanted))
    assert (result.finish, result.token_ids) == (finish, answer)
    assert backend.forwards[0].input_ids.tolist() == [[5, *[MASK] * BLOCK]]


def test_the_threshold_is_read_at_every_step() -> None:
    values = iter([1.0, 0.75, 0.0])
    lines = [([3, 4, 5, 6, 7, 8, 9, 10], [0.5, 0.75, 0.9, 0.8, 0.3, 0.2, 0.1, 0.0])] * 3
    backend = Scripted(tiny.contract(block=8, canvas=8), canvases(*lines))
    seen = [step for [step] in steps(backend, [Request(np.array([5]), 8)], threshold=lambda: next(values))]
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
        generate(backend, Request(np.array([5]), 4), threshold=threshold)
    assert not backend.opened and not backend.forwards
    with pytest.raises(UserError, match="threshold"):
        generate(backend, Request(np.array([5]), 4), threshold=lambda: threshold)


def test_the_threshold_of_a_given_gate_is_checked_too() -> None:
    backend = Scripted(tiny.contract(), arbitrary(0))
    with pytest.raises(UserError, match="threshold 5"):
        generate(backend, Request(np.array([5]), 4), gate=GateSpec(threshold=5.0))
    assert not backend.opened


@pytest.mark.parametrize(
    ("prompt", "wanted", "said"),
    [([], 4, "empty"), ([5], 0, "at least 1"), ([5] * 61, 4, "room for 0"), ([5] * 57, 5, "room for 4")],
)
def test_a_request_that_does_not_fit_is_refused_before_any_work(prompt: list[int], wanted: int, said: str) -> None:
    backend = Scripted(tiny.contract(), arbitrary(0))
    with pytest.raises(UserError, match=said):
        generate_batch(backend, [Request(np.array([5]), 4), Request(np.array(prompt, np.int64), wanted)])
    assert not backend.opened and not backend.forwards


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["confidence", "entropy"])
def test_scores_that_are_not_numbers_stop_decoding(bad: float, place: str) -> None:
    def script(forward: Forward) -> Proposal:
        out = proposal([[3] * 4], [[0.9] * 4])
        getattr(out, place)[0, 2] = bad
        return out

    with pytest.raises(NumericalError, match="not finite"):
        generate(Scripted(tiny.contract(), script), Request(np.array([5]), 4))


def test_a_model_with_damaged_weights_stops_decoding_and_leaves_nothing_to_the_next_request() -> None:
    contract, model, request = tiny.contract(), tiny.model(3), Request(np.array([5, 6]), 8)
    backend = TorchBackend(model, contract)
    sound = generate(backend, request).token_ids
    weight = model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    weight.detach()[0, 0] = float("nan")
    with pytest.raises(NumericalError):
        generate(backend, request)
    weight.detach().copy_(kept)
    assert generate(backend, request).token_ids == sound


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_cache_full_of_nan_behind_what_is_visible_changes_nothing(fused: bool, alignment: str) -> None:
    """In a ragged batch, where the shorter rows' attention runs over what lies behind their ends."""
    contract, model, rng = tiny.contract(alignment=alignment), tiny.model(3), random.Random(1)
    requests = [Request(tiny.prompt(rng, length), 12) for length in (5, 1, 14)]
    clean = [generate(TorchBackend(model, contract), request, fused=fused) for request in requests]
    dirty = generate_batch(Noisy(TorchBackend(model, contract), 0, float("nan")), requests, fused=fused)
    assert [each.token_ids for each in dirty] == [each.token_ids for each in clean]
    assert max(len(each.token_ids) for each in clean) > BLOCK


@st.composite
def gates(draw: st.DrawFn) -> dict[str, Any]:
    rule = draw(st.sampled_from(["threshold", "factor", "count"]))
    metric = "confidence" if rule == "factor" else draw(st.sampled_from(["confidence", "entropy"]))
    comparator = draw(st.sampled_from([">=", ">"] if metric == "confidence" else ["<=", "<"]))
    return {
        "rule": rule,
        "metric": metric,
        "comparator": comparator,
        "threshold": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "min": draw(st.integers(1, 2)),
        "max": draw(st.sampled_from([None, 2, 3])),
        "sub_block": draw(st.sampled_from([None, 2, 3])),
        "eos_guard": draw(st.sampled_from([0.0, 0.5, 1.0])),
    }


@given(
    gate=gates(), alignment=st.sampled_from(ALIGNMENTS), shift=st.booleans(), attention=st.sampled_from(ATTENTIONS),
    fused=st.booleans(), sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_whatever_the_scores_blocks_end_in_time(
    gate: dict[str, Any],
    alignment: str,
    shift: bool,
    attention: str,
    fused: bool,
    sizes: list[tuple[int, int]],
    seed: int,
) -> None:
    backend = Scripted(tiny.contract(gate=gate, alignment=alignment, shift=shift, attention=attention), arbitrary(seed))
    requests = [Request(np.full(length, MASK), wanted) for length, wanted in sizes]
    taken: dict[tuple[int, int], int] = {}
    results = {}
    for done in steps(backend, requests, fused=fused):
        for step in done:
            taken[step.row, step.block] = taken.get((step.row, step.block), 0) + 1
            assert step.accepted.any() and not (step.accepted & step.open).any()
            results[step.row] = step.result
    assert max(taken.values()) <= BLOCK
    for row, (_, wanted) in enumerate(sizes):
        ids = results[row].token_ids
        assert END not in ids[:-1]
        assert len(ids) == wanted if results[row].finish == "length" else ids[-1] == END and len(ids) <= wanted


def mask_first(seed: int, lead: float, levels: int) -> tiny.Script:
    """PyTorch's proposals of random logits with many ties, in which the mask token is `lead` above the best."""
    backend, rng = TorchBackend(tiny.model(0), tiny.contract()), np.random.default_rng(seed)

    def script(forward: Forward) -> Proposal:
        logits = rng.integers(0, levels + 1, (*forward.rows.shape, VOCAB)).astype(np.float32)
        logits[..., MASK] = logits.max(axis=-1) + lead
        return backend.propose(torch.from_numpy(logits))

    return script


@given(
    gate=gates(), alignment=st.sampled_from(ALIGNMENTS), shift=st.booleans(), attention=st.sampled_from(ATTENTIONS),
    fused=st.booleans(), lead=st.sampled_from([0.0, 1.0, 1e4]), levels=st.integers(0, 20), seed=st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=50)
def test_whatever_the_logits_no_mask_is_emitted(
    gate: dict[str, Any], alignment: str, shift: bool, attention: str, fused: bool, lead: float, levels: int, seed: int
) -> None:
    contract = tiny.contract(gate=gate, alignment=alignment, shift=shift, attention=attention)
    requests = [Request(np.full(length, MASK), 9) for length in (1, 6)]
    for result in generate_batch(Scripted(contract, mask_first(seed, lead, levels)), requests, fused=fused):
        assert MASK not in result.token_ids


def test_the_mask_token_is_never_proposed_even_where_it_scores_highest() -> None:
    model, contract = tiny.model(0), tiny.contract()
    backend = TorchBackend(model, contract)
    logits = torch.zeros(1, 3, VOCAB)
    logits[..., MASK] = 100.0
    logits[0, 1, 7] = 1.0
    out = backend.propose(logits)
    assert out.token[0, 1] == 7 and MASK not in out.token
    assert np.allclose(out.confidence[0, 0], 1 / (VOCAB - 1)) and np.allclose(out.entropy[0, 0], np.log(VOCAB - 1))
