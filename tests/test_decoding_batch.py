"""Requests that take the places of those that have their answers: each as alone, in order, never out of bounds."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from tiny import BLOCK, Scripted, canvases, proposal
from trt_bundle import make_fake_backend

from runtime.backend import Backend, Forward, Ints, Proposal
from runtime.contract import ALIGNMENTS, Contract, GateSpec
from runtime.decoding import batch as batch_module
from runtime.decoding import block_layout, request_state
from runtime.decoding.batch import Batch
from runtime.decoding.gate import Gate
from runtime.decoding.loop import decode_answers, decode_steps, generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.request_state import Result
from runtime.engines.trt.chunked_prefill import check_bounds
from runtime.errors import UserError
from train.torch_backend import TorchBackend

LENGTHS = (1, 3 * BLOCK + 2, 2, BLOCK, 5 * BLOCK, BLOCK + 1, 9)


def told(result: Result) -> tuple[Any, ...]:
    return result.token_ids, result.finish, result.steps, result.commits, result.forwards, result.blocks


def requests(rng: random.Random, most: int = 3 * BLOCK) -> list[Request]:
    return [Request(tiny.prompt(rng, length), DecodeOptions(rng.randrange(1, most + 1))) for length in LENGTHS]


class Bounded:
    """A backend that refuses what would reach two blocks or more behind what it was opened for."""

    name = "bounded"

    def __init__(self, inner: Backend) -> None:
        self.inner, self.contract = inner, inner.contract
        self.batch = self.capacity = 0
        self.widths: list[tuple[int, int]] = []  # sequences and tokens of each forward

    def open(self, batch: int, capacity: int) -> None:
        self.batch, self.capacity = batch, capacity
        self.inner.open(batch, capacity)

    def keep(self, rows: NDArray[Any]) -> None:
        self.batch = len(rows)
        self.inner.keep(rows)

    def forward(self, forward: Forward) -> Proposal:
        if self.contract.attention != "full":  # in PyTorch, shorter sequences of a batch see less than its width
            check_bounds(forward, self.contract, self.batch, self.capacity + 2 * self.contract.block)
        self.widths.append(forward.input_ids.shape)
        return self.inner.forward(forward)


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_answers_of_a_stream_are_those_of_each_request_alone(alignment: str, shift: bool, attention: str) -> None:
    seed = tiny.choose_seed()
    rng, model = random.Random(seed), tiny.model(seed)
    contract = tiny.contract(alignment=alignment, shift=shift, attention=attention)
    backend = TorchBackend(model, contract)
    asked = requests(rng)
    for fused in (True, False):
        alone = [told(generate(backend, request, threshold=0.4, fused=fused)) for request in asked]
        for slots in (1, 2, 3):
            inner = Bounded(TorchBackend(model, contract))
            streamed = decode_answers(inner, iter(asked), slots, threshold=0.4, fused=fused)
            assert [told(result) for result in streamed] == alone, f"BLOCKSTEP_SEED={seed}"
            assert max(batch for batch, _ in inner.widths) == slots
        at_once = Bounded(TorchBackend(model, contract))
        batched = generate_batch(at_once, asked, threshold=0.4, fused=fused, slots=3)
        assert [told(result) for result in batched] == alone, f"BLOCKSTEP_SEED={seed}"


@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_places_of_a_tensorrt_engine_are_filled_again(dialect: str, tmp_path: Path) -> None:
    contract, model = tiny.contract(alignment="absolute"), tiny.model(22)
    profiles = ((4, 4), (8, 8), (1, 30))
    backend, _, _ = make_fake_backend(tmp_path, model, contract, dialect=dialect, batch=2, profiles=profiles)
    asked, solo = requests(random.Random(4)), TorchBackend(model, contract)
    expected = [told(generate(solo, request)) for request in asked]
    assert [told(result) for result in decode_answers(backend, asked, 2)] == expected


def test_a_place_is_filled_at_the_step_after_its_answer() -> None:
    short, long = ([9] * BLOCK, [0.9] * BLOCK), ([9] * BLOCK, [0.9, 0.1, 0.1, 0.1])

    def script(forward: Forward) -> Proposal:
        lines = [short if 5 in ids else long for ids in forward.input_ids]  # by a token of the prompt
        return proposal(*zip(*lines, strict=True))

    backend = Scripted(tiny.contract(), script)
    asked = [Request(np.array([first, 7]), DecodeOptions(BLOCK)) for first in (5, 6, 5, 5)]
    seen = [[(step.row, step.slot) for step in done] for done in decode_steps(backend, asked, slots=2)]
    assert seen[:3] == [[(0, 0), (1, 1)], [(2, 0), (1, 1)], [(3, 0), (1, 1)]]
    assert backend.opened == [(2, 2 + BLOCK)]


def test_a_request_is_taken_from_the_stream_when_the_one_before_it_has_its_place() -> None:
    taken = []

    def stream() -> Iterator[Request]:
        for number in range(5):
            taken.append(number)
            yield Request(np.array([5]), DecodeOptions(BLOCK))

    backend = Scripted(tiny.contract(), canvases(*[([9] * BLOCK, [0.9] * BLOCK)] * 5))
    found = decode_answers(backend, stream(), 1)
    next(found)
    assert taken == [0, 1]
    assert len(list(found)) == 4 and taken == [0, 1, 2, 3, 4]


def test_a_wide_prompt_waits_until_there_is_room_beside_the_others() -> None:
    """Its forward is as wide for all: behind a sequence that is far on, its padding would lie outside the cache."""
    contract, model, rng = tiny.contract(capacity=32), tiny.model(1), random.Random(1)
    sizes = ((8, DecodeOptions(24, threshold=1.0)), (2, DecodeOptions(1)), (20, DecodeOptions(4)))
    asked = [Request(tiny.prompt(rng, length), options) for length, options in sizes]
    inner = Bounded(TorchBackend(model, contract))
    alone = [generate(TorchBackend(model, contract), request).token_ids for request in asked]
    assert [result.token_ids for result in decode_answers(inner, asked, 2)] == alone
    wide = next(i for i, (_, width) in enumerate(inner.widths) if width == 20 + BLOCK)
    assert wide > 1 and inner.capacity == 32


def test_a_request_that_does_not_fit_ends_the_stream_where_it_stands() -> None:
    backend = TorchBackend(tiny.model(3), tiny.contract())
    stream = decode_answers(
        backend, [Request(np.array([5]), DecodeOptions(4)), Request(np.array([], np.int64), DecodeOptions(4))], 1
    )
    with pytest.raises(UserError, match="the prompt is empty"):
        list(stream)
    assert list(decode_answers(backend, [], 1)) == []
    with pytest.raises(UserError, match="slots is 0; expected at least 1"):
        next(decode_answers(backend, [], 0))
    with pytest.raises(UserError, match="slots is 0"):
        generate_batch(backend, [Request(np.array([5]), DecodeOptions(4))], slots=0)


def test_seconds_count_from_when_a_request_has_its_place() -> None:
    backend = TorchBackend(tiny.model(3), tiny.contract())
    asked = [Request(np.array([5, 6]), DecodeOptions(3 * BLOCK))] * 4
    found = generate_batch(backend, asked, threshold=1.0, slots=1)
    whole = sum(result.seconds for result in found)
    assert all(0 < result.seconds < 0.6 * whole for result in found)


def test_a_streams_gate_and_threshold_are_the_ones_given() -> None:
    backend, asked = TorchBackend(tiny.model(5), tiny.contract()), requests(random.Random(5))
    before = time.perf_counter()
    for options in ({}, {"gate": GateSpec(rule="count", min=2)}, {"threshold": 0.0}):
        made = list(decode_answers(backend, asked, 2, **options))  # type: ignore[arg-type]
        assert [told(result) for result in made] == [told(generate(backend, each, **options)) for each in asked]
        assert options == {} or made[4].steps < generate(backend, asked[4]).steps
    assert all(0 <= result.prefill_seconds <= result.seconds < time.perf_counter() - before for result in made)


def test_places_that_stay_free_are_given_up_from_a_quarter_of_them_on() -> None:
    short, long = ([9] * BLOCK, [0.9] * BLOCK), ([9] * BLOCK, [0.9, 0.1, 0.1, 0.1])
    batches = []

    def script(forward: Forward) -> Proposal:
        batches.append(len(forward.input_ids))
        return proposal(*zip(*[short if 5 in ids else long for ids in forward.input_ids], strict=True))

    asked = [Request(np.array([first, 7]), DecodeOptions(BLOCK)) for first in (6, 6, 6, 5, 5)]
    assert len(list(decode_answers(Scripted(tiny.contract(), script), asked, 4))) == 5
    assert batches == [4, 4, 3, 3]  # not while somebody waits


def test_a_place_is_taken_up_to_the_last_position_that_a_backend_pads_to() -> None:
    contract = tiny.contract(capacity=32)
    batch = Batch(TorchBackend(tiny.model(7), contract), Gate(contract.gate, contract.eos_ids), 2, 32)
    sequences = [SimpleNamespace(past=past, width=width) for past, width in ((30, 4), (0, 10))]
    one, other = (SimpleNamespace(sequence=sequence, result=None) for sequence in sequences)
    batch.add(one)  # type: ignore[arg-type]
    assert batch.takes(other)  # type: ignore[arg-type]
    sequences[1].width = 11
    assert not batch.takes(other)  # type: ignore[arg-type]


def test_a_requests_threshold_is_checked_against_the_vocabulary() -> None:
    gate = GateSpec(metric="entropy", comparator="<=", threshold=0.1)
    backend = TorchBackend(tiny.model(8), tiny.contract(gate=asdict(gate)))
    most = math.log(backend.contract.vocab)
    assert generate(backend, Request(np.array([5]), DecodeOptions(4, threshold=most))).token_ids
    with pytest.raises(UserError, match="threshold"):
        generate(backend, Request(np.array([5]), DecodeOptions(4, threshold=most + 1)))


def doubling(contract: Contract, prompt: int, answer: int) -> tuple[Ints, Ints]:
    """Blocks of 1, 2 and then 4 tokens from the prompt's end, as of a family with another rule."""
    limits = np.array([0, prompt, prompt + 1, prompt + 3, *range(prompt + 7, prompt + answer + 8, 4)])
    place = np.searchsorted(limits, np.arange(prompt + answer), side="right")
    return limits[place - 1], limits[place]


@pytest.mark.parametrize("shift", [False, True])
def test_blocks_of_different_sizes_side_by_side_are_their_solo_runs(
    shift: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (block_layout, request_state):
        monkeypatch.setattr(module, "compute_block_bounds", doubling)
    monkeypatch.setattr(block_layout, "round_up_to_blocks", lambda *layout: int(doubling(*layout)[1][-1]))
    model, asked = tiny.model(1), requests(random.Random(1))
    alone = TorchBackend(model, tiny.contract(shift=shift))
    solo = [generate(alone, request).token_ids for request in asked]
    side_by_side = TorchBackend(model, tiny.contract(shift=shift, batch=len(asked)))
    assert [result.token_ids for result in generate_batch(side_by_side, asked)] == solo
    assert [generate(alone, request, fused=False).token_ids for request in asked] == solo
    assert {len(step.tokens) for done in decode_steps(alone, asked[:1]) for step in done} <= {1, 2, 4}
    assert len({len(step.tokens) for done in decode_steps(side_by_side, asked) for step in done}) == 3


def test_canvases_of_several_sizes_stand_under_one_another_with_zeros_behind() -> None:
    one, other = np.array([5, 6, 7]), np.array([8])
    assert batch_module._stack([one, other]).tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch_module._stack([one, one]).tolist() == [[5, 6, 7]] * 2
    assert np.shares_memory(batch_module._stack([one]), one)


def test_places_are_given_up_once_they_were_free_for_as_many_calls_in_turn() -> None:
    kept = []
    backend = SimpleNamespace(
        contract=tiny.contract(), open=lambda *_: None, keep=lambda rows: kept.append(rows.tolist())
    )
    batch = Batch(backend, Gate(tiny.contract().gate, (tiny.END,)), 4, 32)  # type: ignore[arg-type]
    for _ in range(4):
        batch.add(SimpleNamespace(result=None))  # type: ignore[arg-type]
    for _ in range(5):
        batch.fit(patience=2)
    assert kept == []
    batch._slots[0] = batch._slots[2] = None
    batch.fit(patience=2)
    batch.fit(waiting=2, patience=2)  # somebody wants them: counting begins anew
    assert kept == []
    for _ in range(3):
        batch.fit(patience=2)
    assert kept == [[1, 3]]
