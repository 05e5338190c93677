"""A running batch whose KV cache grows, or does not fit into memory: answers are solo ones, refusals by themselves."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from remembering import Growing, Remembering, make_remembering_contract
from test_decoding_running_batch import SLOTS, alone, drive, mixed, told
from tiny import BLOCK

from runtime.backend import Forward, Proposal
from runtime.contract import ALIGNMENTS, Contract
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.running_batch import RunningBatch
from runtime.errors import DeviceError, NumericalError, UserError


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_kv_cache_that_grows_changes_no_answer_and_no_schedule(alignment: str, attention: str) -> None:
    seed = tiny.choose_seed()
    rng = random.Random(seed)
    spec = make_remembering_contract(SLOTS, alignment=alignment, attention=attention, capacity=64)
    asked = [mixed(rng, spec, rng.choice((4, 40))) for _ in range(80)]
    backends = Remembering(spec), Growing(spec)
    runs = [drive(RunningBatch(each, None, SLOTS), asked, random.Random(seed), cancelled=0.2) for each in backends]
    came, grown = ({number: [told(s) for s in made] for number, made in run[0].items()} for run in runs)
    assert came == grown and not runs[1][1], f"BLOCKSTEP_SEED={seed}"
    assert backends[0].computed == backends[1].computed, f"BLOCKSTEP_SEED={seed}"
    assert backends[0].opened == 1 and len({*backends[1].lengths}) > 2, f"BLOCKSTEP_SEED={seed}"


def test_a_kv_cache_is_as_long_as_the_first_requests_need_it_and_short_again_when_nobody_is_at_work() -> None:
    spec, rng = make_remembering_contract(2, capacity=64), random.Random(1)
    backend = Growing(spec)
    batch = RunningBatch(backend, None, 2)
    for length, wanted in ((4, BLOCK), (8, 2 * BLOCK), (40, 2 * BLOCK), (4, BLOCK)):
        batch.add(Request(tiny.prompt(rng, length), DecodeOptions(wanted)))
        while batch.busy:
            batch.step()
    assert backend.lengths == [8, 16, 48, 8]


@pytest.mark.parametrize("error", [NumericalError("planted"), UserError("planted")])
def test_steps_of_each_alone_have_room_next_to_those_that_went_on(error: Exception) -> None:
    class Once(Growing):
        def forward(self, forward: Forward) -> Proposal:
            if len(self.computed) == 0:
                self.computed.append((0, 0))
                raise error
            return super().forward(forward)

    spec, rng = make_remembering_contract(2, capacity=64), random.Random(2)
    asked = [Request(tiny.prompt(rng, 24), DecodeOptions(2 * BLOCK, threshold=1.0)) for _ in range(2)]
    batch = RunningBatch(Once(spec, ends=False), None, 2)
    came, failed, _ = drive(batch, asked, random.Random(0))
    solo = Remembering(replace(spec, batch=1), ends=False)
    assert not failed
    assert [[told(s) for s in came[n]] for n in range(2)] == [[told(s) for s in alone(solo, each)] for each in asked]


def test_who_needs_a_kv_cache_that_there_is_no_memory_for_is_refused_alone() -> None:
    class Small(Growing):
        def grow(self, capacity: int) -> None:
            raise UserError("it does not fit into memory")

    batch = RunningBatch(Small(make_remembering_contract(2, capacity=64)), None, 2)
    short, long = (Request(np.full(length, 5), DecodeOptions(2 * BLOCK, threshold=1.0)) for length in (4, 40))
    batch.add(short)
    batch.step()
    batch.add(long)
    assert list(batch.step().failed) == [1] and batch.busy
    outcomes = [batch.step() for _ in range(20)]
    assert not batch.busy and [s.row for o in outcomes for s in o.steps if s.result] == [0]


class Small(Growing):
    """A device that holds a KV cache of `most` positions."""

    def __init__(self, spec: Contract, most: int) -> None:
        super().__init__(spec, ends=False)
        self.held, self.most_positions = 0, most

    def _hold(self, sequences: int, capacity: int) -> None:
        if sequences * capacity > self.most_positions:
            raise UserError(f"a KV cache of {sequences} times {capacity} positions does not fit into memory")

    def open(self, batch: int, capacity: int) -> None:
        self._hold(batch, capacity)
        super().open(batch, capacity)

    def grow(self, capacity: int) -> None:
        self._hold(len(self.ids), capacity)
        super().grow(capacity)

    def keep(self, rows: NDArray[Any]) -> None:
        self._hold(len(rows), self.lengths[-1])
        super().keep(rows)


@pytest.mark.parametrize("most", [64, 100, 200])
def test_what_does_not_fit_next_to_each_other_is_decoded_in_turn(most: int) -> None:
    seed = tiny.choose_seed()
    rng = random.Random(seed)
    spec = make_remembering_contract(SLOTS, capacity=64)
    requests = [mixed(rng, spec, rng.choice((4, 40))) for _ in range(60)]
    backend = Small(spec, most)
    batch = RunningBatch(backend, None, SLOTS)
    came, failed = dict[int, list[Any]](), dict[int, Exception]()
    for number, request in enumerate(requests):
        came[batch.add(request)] = []
        assert number == batch._count - 1
    while batch.busy:
        outcome = batch.step()
        failed.update(outcome.failed)
        for step in outcome.steps:
            came[step.row].append(told(step))
    solo = Remembering(replace(spec, batch=1), ends=False)
    for number, request in enumerate(requests):
        if number not in failed:
            assert came[number] == [told(s) for s in alone(solo, request)], f"{number}, BLOCKSTEP_SEED={seed}"
    assert all("does not fit" in str(error) for error in failed.values())
    assert len(failed) < 10 and backend.opened > 1, f"BLOCKSTEP_SEED={seed}"


def test_who_fits_by_itself_is_not_refused_because_others_wait() -> None:
    spec = make_remembering_contract(3, capacity=64)
    batch = RunningBatch(Small(spec, 48), None, 3)
    long = Request(np.full(40, 5), DecodeOptions(BLOCK, threshold=1.0))
    for _ in range(3):
        batch.add(long)
    batch.add(Request(np.full(50, 5), DecodeOptions(2 * BLOCK)))  # fits nowhere
    found, failed = set[int](), dict[int, Exception]()
    while batch.busy:
        outcome = batch.step()
        failed.update(outcome.failed)
        found |= {step.row for step in outcome.steps if step.result}
    assert found == {0, 1, 2} and list(failed) == [3]


def test_places_for_which_there_is_no_memory_cost_the_running_requests_nothing() -> None:
    class Tight(Growing):
        def keep(self, rows: NDArray[Any]) -> None:
            if len(rows) > 1:
                raise UserError("it does not fit into memory")
            super().keep(rows)

    short = Request(np.array([5, 6]), DecodeOptions(3 * BLOCK, threshold=1.0))
    batch = RunningBatch(Tight(make_remembering_contract(2, capacity=64), ends=False), None, 2)
    batch.add(short)
    for _ in range(10):
        batch.step()  # the free place is given up by now
    batch.add(short)
    outcomes = [batch.step() for _ in range(60)]
    assert not batch.busy and not any(outcome.failed for outcome in outcomes)


def test_who_is_refused_while_the_device_fails_is_reported_too() -> None:
    class Lost(Growing):
        def grow(self, capacity: int) -> None:
            raise UserError("it does not fit into memory")

        def forward(self, forward: Forward) -> Proposal:
            if len(self.computed) == 2:
                raise DeviceError("the GPU is gone")
            return super().forward(forward)

    batch = RunningBatch(Lost(make_remembering_contract(2, capacity=64), ends=False), None, 2)
    batch.add(Request(np.full(4, 5), DecodeOptions(2 * BLOCK, threshold=1.0)))
    batch.step()
    batch.step()
    batch.add(Request(np.full(40, 5), DecodeOptions(2 * BLOCK)))
    failed = batch.step().failed
    assert {number: type(error) for number, error in failed.items()} == {0: DeviceError, 1: UserError}
    assert not batch.busy
