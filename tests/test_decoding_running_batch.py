"""Requests that join and leave a running batch: each answer its solo one, in their order, failures by themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from remembering import TOP, Remembering, make_remembering_contract
from tiny import BLOCK

from runtime.backend import Backend, Forward, Proposal
from runtime.contract import ALIGNMENTS, Contract
from runtime.decoding.batch import Step
from runtime.decoding.loop import decode_steps
from runtime.decoding.options import DecodeOptions, Request, complete_options
from runtime.decoding.running_batch import PATIENCE, RunningBatch
from runtime.errors import DeviceError, NumericalError, UserError
from runtime.model import Model

SLOTS = 5
BAD = 23  # a prompt that begins with it is one that a planted fault is about


def mixed(rng: random.Random, contract: Contract, longest: int = 20) -> Request:
    """A request of any length, threshold, temperature and seed, some fused, some with a suffix."""
    prompt = tiny.prompt(rng, rng.randint(1, longest))
    prompt[0] = rng.randrange(BAD)
    options = DecodeOptions(
        rng.randint(1, 3 * BLOCK),
        threshold=rng.choice([None, 0.0, 0.4, 0.7, 1.0]),
        fused=rng.random() < 0.7,
        temperature=rng.choice([0.0, 0.0, 0.8, 2.0]) if contract.top_k else 0.0,
        seed=rng.randrange(-(2**63), 2**63),
    )
    filled = replace(options, max_new_tokens=rng.randint(1, 3), suffix=(5,) * rng.randint(0, 2))
    try:
        return Request(prompt, complete_options(contract, prompt, filled))
    except UserError:  # no room for that suffix
        return Request(prompt, complete_options(contract, prompt, options))


def alone(backend: Backend, request: Request) -> list[Step]:
    """The slow way: the request by itself."""
    return [step for done in decode_steps(backend, [request]) for step in done]


def told(step: Step) -> tuple[Any, ...]:
    """What a step did, without its number, its place in the batch and times."""
    result = step.result and replace(step.result, seconds=0, prefill_seconds=0)
    arrays = (step.tokens, step.open, step.accepted, step.targets)
    return step.slot >= 0, step.block, step.given, *(tuple(part.tolist()) for part in arrays), result


def drive(
    batch: RunningBatch, requests: list[Request], rng: random.Random, cancelled: float = 0.0
) -> tuple[dict[int, list[Step]], dict[int, Exception], set[int]]:
    """Lets requests in at random moments and gives some up at random ones: steps, failures, and which were given up."""
    came: dict[int, list[Step]] = {}
    failed: dict[int, Exception] = {}
    dropped, waiting = set[int](), list(enumerate(requests))
    while waiting or batch.busy:
        for _ in range(rng.randrange(4) if rng.random() < 0.5 or not batch.busy else 0):
            if waiting:
                number, request = waiting.pop(0)
                assert batch.add(request) == number
                came[number] = []
        outcome = batch.step()
        for step in outcome.steps:
            came[step.row].append(step)
        failed.update(outcome.failed)
        alive = [n for n, made in came.items() if n not in {*failed, *dropped} and not (made and made[-1].result)]
        if alive and rng.random() < cancelled:
            dropped.add(rng.choice(alive))
            for number in dropped:
                batch.drop(number)
    return came, failed, dropped


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_hundreds_of_mixed_requests_are_their_solo_runs_step_by_step(
    alignment: str, shift: bool, attention: str
) -> None:
    seed = tiny.choose_seed()
    for block, slots in ((BLOCK, SLOTS), (1, 3)):
        rng = random.Random(seed)
        spec = make_remembering_contract(slots, alignment=alignment, shift=shift, attention=attention, block=block)
        asked = [mixed(rng, spec) for _ in range(120)]
        batch = RunningBatch(Remembering(spec), None, slots)
        came, failed, dropped = drive(batch, asked, rng, cancelled=0.3)
        assert not failed and dropped and len(came) == len(asked), f"{failed}, BLOCKSTEP_SEED={seed}"
        backend = Remembering(replace(spec, batch=1))
        for number, request in enumerate(asked):
            solo, ours = [told(s) for s in alone(backend, request)], [told(s) for s in came[number]]
            whole = solo[: len(ours)] if number in dropped else solo
            assert ours == whole, f"request {number}, BLOCKSTEP_SEED={seed}"


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_answers_of_a_real_model_are_its_solo_ones(alignment: str) -> None:
    from train.torch_backend import TorchBackend

    seed = tiny.choose_seed()
    rng, model = random.Random(seed), tiny.model(seed)
    spec = make_remembering_contract(SLOTS, alignment=alignment, shift=alignment == "absolute")
    asked = [mixed(rng, spec) for _ in range(30)]
    came, failed, dropped = drive(RunningBatch(TorchBackend(model, spec), None, SLOTS), asked, rng, cancelled=0.1)
    backend = TorchBackend(model, spec)
    for number, request in enumerate(asked):
        solo, ours = [told(s) for s in alone(backend, request)], [told(s) for s in came[number]]
        assert ours == (solo[: len(ours)] if number in dropped else solo), f"{number}, BLOCKSTEP_SEED={seed}"
    assert not failed


@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_places_of_a_tensorrt_engine_come_and_go(dialect: str, tmp_path: Path) -> None:
    from trt_bundle import make_fake_backend

    from train.torch_backend import TorchBackend

    contract, model, rng = tiny.contract(alignment="absolute"), tiny.model(22), random.Random(4)
    backend, _, _ = make_fake_backend(
        tmp_path, model, contract, dialect=dialect, batch=3, profiles=((4, 4), (8, 8), (1, 30))
    )
    asked = [mixed(rng, contract) for _ in range(9)]
    came, failed, _ = drive(RunningBatch(backend, None, 3), asked, rng)
    solo = TorchBackend(model, contract)
    assert not failed
    for number, request in enumerate(asked):
        assert [told(s) for s in came[number]] == [told(s) for s in alone(solo, request)]


def test_each_enters_in_its_order_as_soon_as_there_is_a_place_and_is_in_every_forward() -> None:
    """The schedule is that of `slots` counters and one line of people, each of whom is served without a pause."""
    rng, spec = random.Random(3), make_remembering_contract(SLOTS)
    asked = [mixed(rng, spec) for _ in range(60)]
    asked = [replace(request, options=replace(request.options, fused=True)) for request in asked]
    batch, backend = RunningBatch(Remembering(spec), None, SLOTS), Remembering(replace(spec, batch=1))
    counters, arrived, seen = [0] * SLOTS, [0] * 30 + [20] * 30, list[list[int]]()
    for number, request in enumerate(asked):
        needed = len(alone(backend, request))
        counter = min(range(SLOTS), key=counters.__getitem__)
        begins = max(counters[counter], arrived[number])
        counters[counter] = begins + needed
        seen.append(list(range(begins, begins + needed)))
    served: list[list[int]] = [[] for _ in asked]
    for forward in range(max(counters)):
        for number, at in enumerate(arrived):
            if at == forward:
                assert batch.add(asked[number]) == number
        for step in batch.step().steps:
            served[step.row].append(forward)
    assert served == seen and not batch.busy


def test_a_wide_prompt_that_waits_for_room_is_not_overtaken() -> None:
    spec, rng = make_remembering_contract(2, capacity=32), random.Random(1)
    sizes = ((8, 24), (2, 1), (20, 4), (1, 1))
    asked = [Request(tiny.prompt(rng, n), DecodeOptions(wanted, threshold=1.0)) for n, wanted in sizes]
    batch, first = RunningBatch(Remembering(spec, ends=False), None, 2), dict[int, int]()
    for request in asked[:2]:
        batch.add(request)
    for forward in range(100):
        if forward == 16:  # the first is too far on for a width of 24
            assert [batch.add(request) for request in asked[2:]] == [2, 3] and batch.free == 0
        for step in batch.step().steps:
            first.setdefault(step.row, forward)
    assert 16 < first[2] <= first[3] and not batch.busy


def test_an_engine_computes_as_many_sequences_as_are_at_work_and_fewer_once_places_stay_free() -> None:
    spec, long = make_remembering_contract(4), DecodeOptions(24, threshold=1.0)
    backend = Remembering(spec, ends=False)
    batch = RunningBatch(backend, None, 4)

    def add(count: int) -> list[int]:
        return [batch.add(Request(np.array([number + 3]), long)) for number in range(count)]

    made = add(2)
    batch.step()
    made += add(2)
    batch.step()
    for number in made[2:]:
        batch.drop(number)
    for _ in range(PATIENCE + 1):
        batch.step()
    batch.drop(made[0])
    batch.step()
    add(1)
    batch.step()
    assert [sequences for sequences, _ in backend.computed] == [2, 4, *[4] * PATIENCE, 2, 2, 2]
    assert backend.opened == 1 and batch.free == 2
    for _ in range(40):
        batch.step()
    assert backend.computed[-1][0] == 1 and batch.free == 4


Fault = Callable[["Faulty", Forward, Proposal], Proposal]


class Faulty(Remembering):
    """What `fault` does to a forward and its proposal, on top. poisoned: slots whose cache holds what is no number."""

    def __init__(self, spec: Contract, fault: Fault, ends: bool = True) -> None:
        super().__init__(spec, ends)
        self.fault, self.poisoned = fault, set[int]()

    def open(self, batch: int, capacity: int) -> None:
        super().open(batch, capacity)
        self.poisoned.clear()

    def forward(self, forward: Forward) -> Proposal:
        return self.fault(self, forward, super().forward(forward))


def not_numbers(backend: Faulty, forward: Forward, out: Proposal) -> Proposal:
    """Scores of a sequence that begins with BAD are no numbers, nor what its slot gives after it."""
    backend.poisoned |= {*np.flatnonzero(backend.ids[:, 0] == BAD).tolist()}
    out.entropy[[*backend.poisoned]] = np.nan
    return out


def refused(backend: Faulty, forward: Forward, out: Proposal) -> Proposal:
    """A prompt that begins with BAD is refused at its second forward."""
    begun = (backend.ids[:, 0] == BAD) & (forward.past_length > 0)
    if (forward.visible[begun] > 1).any():  # not where it is another one's turn
        raise UserError("too wide")
    return out


@pytest.mark.parametrize(("fault", "error"), [(not_numbers, NumericalError), (refused, UserError)])
def test_a_request_that_fails_ends_alone(fault: Any, error: type[Exception]) -> None:
    rng, spec = random.Random(8), make_remembering_contract(SLOTS)
    asked = [mixed(rng, spec) for _ in range(40)]
    bad = Request(np.array([BAD, 5, 6]), DecodeOptions(3 * BLOCK, threshold=1.0, fused=False))
    for number in (3, 4, 20, 39):
        asked[number] = bad
    backend = Faulty(spec, fault)
    came, failed, _ = drive(RunningBatch(backend, None, SLOTS), asked, rng)
    assert sorted(failed) == [3, 4, 20, 39] and all(type(each) is error for each in failed.values())
    solo = Remembering(replace(spec, batch=1))
    for number, request in enumerate(asked):
        if number not in failed:
            assert [told(s) for s in came[number]] == [told(s) for s in alone(solo, request)]
    assert 1 < backend.opened <= 5  # anew when those beside it have left


def test_what_a_failed_request_left_costs_the_others_nothing_and_nobody_takes_its_place() -> None:
    spec, long = make_remembering_contract(3), DecodeOptions(2 * BLOCK, threshold=1.0)
    backend = Faulty(spec, not_numbers, ends=False)
    batch = RunningBatch(backend, None, 3)
    for first in (BAD, 5, 6):
        batch.add(Request(np.array([first]), long))
    assert list(batch.step().failed) == [0] and len(backend.computed) == 1 + 3  # together, then each by itself
    batch.add(Request(np.array([7]), long))
    for forward in range(5, 100):
        outcome = batch.step()
        assert not outcome.failed and len(backend.computed) == forward
        if 3 in {step.row for step in outcome.steps}:
            break
    assert forward > 4 + BLOCK and backend.opened == 2


def test_two_that_an_engine_takes_one_after_the_other_alone_both_get_their_answers() -> None:
    def narrow(backend: Faulty, forward: Forward, out: Proposal) -> Proposal:
        if (forward.visible[:, 0] > BLOCK).sum() > 1:
            raise UserError("these tokens see each other")
        return out

    spec = make_remembering_contract(2)
    batch = RunningBatch(Faulty(spec, narrow), None, 2)
    asked = [Request(tiny.prompt(random.Random(n), 9), DecodeOptions(2 * BLOCK, threshold=0.5)) for n in range(2)]
    came, failed, _ = drive(batch, asked, random.Random(0))
    solo = Remembering(replace(spec, batch=1))
    assert not failed
    assert [[told(s) for s in came[n]] for n in range(2)] == [[told(s) for s in alone(solo, each)] for each in asked]


@pytest.mark.parametrize("error", [DeviceError("the GPU is gone"), KeyError("a bug")])
def test_a_device_that_fails_ends_all_of_the_batch_and_the_next_ones_get_a_new_one(error: Exception) -> None:
    left = [error]

    def lost(backend: Faulty, forward: Forward, out: Proposal) -> Proposal:
        if len(backend.computed) == 3 and left:
            raise left.pop()
        return out

    spec, long = make_remembering_contract(2), DecodeOptions(2 * BLOCK, threshold=1.0)
    backend = Faulty(spec, lost)
    batch = RunningBatch(backend, None, 2)
    asked = [Request(np.array([n + 3]), long) for n in range(4)]
    for request in asked:
        batch.add(request)
    outcomes = [batch.step() for _ in range(3)]
    assert outcomes[2].failed == {0: error, 1: error} and not outcomes[0].failed
    rest = [step for _ in range(20) for step in batch.step().steps]
    solo = Remembering(replace(spec, batch=1))
    for number in (2, 3):
        assert [told(s) for s in rest if s.row == number] == [told(s) for s in alone(solo, asked[number])]
    assert backend.opened == 2 and not batch.busy


def test_a_batch_that_cannot_be_opened_ends_those_that_wait() -> None:
    class Closed(Remembering):
        def open(self, batch: int, capacity: int) -> None:
            raise DeviceError("no memory")

    batch = RunningBatch(Closed(make_remembering_contract(2)), None, 2)
    for _ in range(3):
        batch.add(Request(np.array([5]), DecodeOptions(4)))
    assert list(batch.step().failed) == [0, 1, 2] and not batch.busy


def test_a_request_that_does_not_fit_is_refused_when_it_comes() -> None:
    batch = RunningBatch(Remembering(make_remembering_contract(2)), None, 2)
    for wrong in (
        Request(np.array([], np.int64), DecodeOptions(4)),
        Request(np.array([99]), DecodeOptions(4)),
        Request(np.array([5]), DecodeOptions(4, threshold=1.5)),
        Request(np.array([5]), DecodeOptions(400)),
    ):
        with pytest.raises(UserError):
            batch.add(wrong)
    assert not batch.busy and batch.add(Request(np.array([5]), DecodeOptions(4))) == 0


def test_seconds_of_an_answer_leave_out_how_long_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("runtime.decoding.batch.time.perf_counter", lambda: now[0])
    batch = RunningBatch(Remembering(make_remembering_contract(2)), None, 2)
    for _ in range(2):
        batch.add(Request(np.array([5]), DecodeOptions(1, threshold=0.0)))
        now[0] += 100
        [step] = batch.step().steps
        assert step.result is not None and step.result.seconds == 0


def test_a_model_gives_itself_to_its_batch() -> None:
    spec = make_remembering_contract(2, top_k=TOP)
    model = Model(Remembering(spec), None, spec.gate, "it", "fp32")  # type: ignore[arg-type]
    for slots in (0, 3):
        with pytest.raises(UserError, match=f"slots is {slots}; expected 1 to 2, the sequences that engine it takes"):
            model.batch(slots)
    batch = model.batch(2)
    batch.add(Request(np.array([5]), DecodeOptions(1)))
    for again in (lambda: next(model.steps([5])), lambda: model.batch(1)):
        with pytest.raises(UserError, match="generating another answer"):
            again()
