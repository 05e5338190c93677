"""A step asks for its open positions alone: what it asks, and that the answers are those of asking for every row."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from test_decoding_cached import middling
from test_graph_step import LENGTHS, pair
from tiny import BLOCK, Scripted, canvases

from runtime.backend import Backend, Forward, Proposal
from runtime.contract import ALIGNMENTS
from runtime.decoding.loop import decode_steps, generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from train.collect import ONE_A_STEP, collect, make_gate
from train.data.trajectories import NEVER_ACCEPTED
from train.losses import log_probs
from train.torch_backend import TorchBackend


class EveryRow:
    """A backend that asks the inner one for every row of a forward, whatever was asked, and keeps what was."""

    name = "every row"

    def __init__(self, inner: Backend) -> None:
        self.inner, self.contract = inner, inner.contract
        self.asked = self.all = 0

    def open(self, batch: int, capacity: int) -> None:
        self.inner.open(batch, capacity)

    def keep(self, rows: NDArray[Any]) -> None:
        self.inner.keep(rows)

    def forward(self, forward: Forward) -> Proposal:
        every = np.tile(np.arange(forward.input_ids.shape[1]), (len(forward.rows), 1))
        out = self.inner.forward(replace(forward, rows=every))
        self.asked, self.all = self.asked + forward.rows.size, self.all + every.size
        return Proposal(*(np.take_along_axis(part, forward.rows, axis=1) for part in out.list_arrays()))


CASES = [
    *itertools.product(ALIGNMENTS, (False, True), ["block_causal"]),
    *(("prompt", s, "full") for s in (False, True)),
]


@pytest.mark.parametrize(("alignment", "shift", "attention"), CASES)
def test_open_rows_give_the_answers_of_every_row(alignment: str, shift: bool, attention: str, tmp_path: Path) -> None:
    seed = tiny.choose_seed()
    rng = random.Random(seed)
    source = tiny.checkpoint(seed, alignment=alignment, shift=shift, attention=attention)
    reference, engine = pair(source, tmp_path)
    fewer = 0
    for length, fused in itertools.product(LENGTHS, (False, True)):
        request = Request(tiny.prompt(rng, length), DecodeOptions(10))
        threshold = middling(reference.model, reference.contract, request.prompt.tolist())
        for backend in (reference, engine):
            slow = EveryRow(backend)
            asked = generate(backend, request, threshold=threshold, fused=fused)
            every = generate(slow, request, threshold=threshold, fused=fused)
            assert (asked.token_ids, asked.forwards) == (every.token_ids, every.forwards), f"BLOCKSTEP_SEED={seed}"
            fewer += slow.asked < slow.all
    assert fewer >= 2 * len(LENGTHS)


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
def test_open_rows_of_a_ragged_batch_give_the_answers_of_every_row(attention: str) -> None:
    seed = tiny.choose_seed()
    rng, model = random.Random(seed), tiny.model(seed)
    for alignment, shift in itertools.product(ALIGNMENTS, (False, True)):
        backend = TorchBackend(model, tiny.contract(alignment=alignment, shift=shift, attention=attention))
        requests = [Request(tiny.prompt(rng, length), DecodeOptions(rng.randrange(3, 13))) for length in LENGTHS]
        answers = [[r.token_ids for r in generate_batch(each, requests)] for each in (backend, EveryRow(backend))]
        assert answers[0] == answers[1], f"BLOCKSTEP_SEED={seed}"


FOUR = [3, 4, 5, 6]
LINES = (
    (FOUR, [0.9, 0.1, 0.9, 0.1]), (FOUR, [0.0, 0.8, 0.0, 0.7]),
    (FOUR, [0.9, 0.9, 0.9, 0.1]), (FOUR, [0.0, 0.0, 0.0, 0.9]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("fused", "shift", "rows"),
    [
        (True, False, [[3, 4, 5, 6], [1, 3], [4, 5, 6, 7], [3]]),  # behind a prompt of three, then a block of four
        (True, True, [[2, 3, 4, 5], [0, 2], [3, 4, 5, 6], [2]]),
        (False, False, [[2], [0, 1, 2, 3], [1, 3], [3], [0, 1, 2, 3], [3]]),
        (False, True, [[2], [0, 1, 2], [0, 2], [3], [0, 1, 2], [2]]),  # the last committed row predicted position 0
    ],
)
def test_a_forward_asks_for_the_open_positions_of_its_canvas(fused: bool, shift: bool, rows: list[list[int]]) -> None:
    backend = Scripted(tiny.contract(shift=shift), canvases(*LINES))
    list(decode_steps(backend, [Request(np.array([5, 6, 7]), DecodeOptions(2 * BLOCK))], fused=fused))
    assert [forward.rows[0].tolist() for forward in backend.forwards] == rows


def test_a_step_tells_what_it_asked_and_how_sure_each_position_last_was() -> None:
    backend = Scripted(tiny.contract(), canvases(*LINES))
    first, second, *_ = (
        step for [step] in decode_steps(backend, [Request(np.array([5, 6, 7]), DecodeOptions(2 * BLOCK))])
    )
    assert first.targets.tolist() == [0, 1, 2, 3] and second.targets.tolist() == [1, 3]
    assert first.confidence.tolist() == np.float32([0.9, 0.1, 0.9, 0.1]).tolist()
    assert second.confidence.tolist() == np.float32([0.9, 0.8, 0.9, 0.7]).tolist()


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("shift", [False, True])
def test_collected_hidden_states_are_those_that_chose_their_tokens(shift: bool, threshold: float | None) -> None:
    contract, model, rng = tiny.contract(shift=shift), tiny.model(2), random.Random(2)
    backend = TorchBackend(model, contract, keep_hidden=True)
    asked, gate = [tiny.prompt(rng, length) for length in LENGTHS], make_gate(threshold)
    found = collect(backend, asked, gate)
    requests = [Request(prompt, DecodeOptions(3 * BLOCK)) for prompt in asked]
    alone, one_a_step = ([generate(backend, each, gate=g) for each in requests] for g in (gate, ONE_A_STEP))
    for each, result in zip(found, alone, strict=True):
        assert each.tokens[: len(result.token_ids)].tolist() == list(result.token_ids)
    assert (sum(r.forwards for r in alone) < sum(r.forwards for r in one_a_step)) == (threshold is not None)
    firsts = 0
    for each in found:
        settled = each.order != NEVER_ACCEPTED
        scores = log_probs(model.logits(each.hidden[settled].float()), tiny.MASK)
        chosen = scores.gather(-1, each.tokens[settled][:, None])[:, 0]
        assert (scores.max(-1).values - chosen).max() < 0.05  # they are kept in fp16
        firsts += int((each.order[::BLOCK] % BLOCK > 0).sum())
    assert firsts > 0  # some position 0, which with shift a commit predicts, was not the first of its block
