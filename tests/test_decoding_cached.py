"""Decoding over a cache, with models: against full recomputation, against solo runs, with NaN left behind."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from slow_decode import distributions, slow_decode
from tiny import BLOCK, END, MASK, VOCAB

from runtime.backend import Forward, Proposal
from runtime.contract import ALIGNMENTS, Contract
from runtime.decoding.loop import decode_steps, generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import NumericalError
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
        self.worst = float(np.maximum(self.worst, np.abs(before.confidence - after.confidence).max()))  # a NaN stays
        return after


def middling(model: torch.nn.Module, contract: Contract, prompt: list[int]) -> float:
    """About the median confidence on a first canvas, so that steps accept several tokens and some accept none."""
    sure = distributions(model, contract, [*prompt, *[MASK] * BLOCK], len(prompt))[len(prompt) :].max(dim=-1).values
    return min(0.99, sure.median().item() * 1.05)


def test_cached_decoding_equals_recomputing_everything() -> None:
    seed = tiny.choose_seed()
    print(f"BLOCKSTEP_SEED={seed}")  # shown with any failure, one that is no assert too
    rng = random.Random(seed)
    excused, runs, several, forced, ends = [], 0, 0, 0, set()
    kinds = itertools.product(ALIGNMENTS, (False, True), tiny.ATTENTIONS, (False, True), LENGTHS * (1 + tiny.FULL))
    for alignment, shift, attention, fused, length in kinds:
        contract = tiny.contract(alignment=alignment, shift=shift, attention=attention)
        model, prompt = tiny.model(rng.randrange(2**31)), tiny.prompt(rng, length)
        wanted, threshold = rng.randint(5, 3 * BLOCK), middling(model, contract, prompt.tolist())
        case = f"seed {seed}, run {runs}: {alignment}, shift {shift}, {attention}, fused {fused}, prompt {length}"
        answer, finish, moments = slow_decode(model, contract, prompt.tolist(), wanted, threshold)
        backend = Noisy(TorchBackend(model, contract), rng.randrange(2**31))
        got = [
            step
            for [step] in decode_steps(
                backend, [Request(prompt, DecodeOptions(wanted))], threshold=threshold, fused=fused
            )
        ]
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
@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_rows_of_a_ragged_batch_equal_their_solo_runs(alignment: str, shift: bool, attention: str, fused: bool) -> None:
    contract = tiny.contract(alignment=alignment, shift=shift, attention=attention)
    rng, model = random.Random(5), tiny.model(11)
    requests = [
        Request(tiny.prompt(rng, length), DecodeOptions(wanted))
        for length, wanted in zip(LENGTHS, (12, 2, 9, 6, 11), strict=True)
    ]
    backend, options = TorchBackend(model, contract), {"threshold": 0.4, "fused": fused}
    together = generate_batch(backend, requests, **options)
    for request, row in zip(requests, together, strict=True):
        solo = generate(backend, request, **options)
        for count in ("token_ids", "finish", "steps", "commits", "forwards", "blocks", "cached"):
            assert getattr(row, count) == getattr(solo, count), (count, len(request.prompt))


@pytest.mark.parametrize("alignment", ["absolute", "end"])
def test_blocks_of_one_with_shift_are_plain_greedy_decoding(alignment: str) -> None:
    seed = tiny.choose_seed()
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
    result = generate(TorchBackend(model, contract), Request(prompt, DecodeOptions(12)))
    assert list(result.token_ids) == ids[5:], f"seed {seed}"
    assert (result.steps, result.commits, result.forwards) == (0, len(ids) - 6, len(ids) - 6), f"seed {seed}"


def test_a_model_with_damaged_weights_stops_decoding_and_leaves_nothing_to_the_next_request() -> None:
    contract, model, request = tiny.contract(), tiny.model(3), Request(np.array([5, 6]), DecodeOptions(8))
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
    requests = [Request(tiny.prompt(rng, length), DecodeOptions(12)) for length in (5, 1, 14)]
    clean = [generate(TorchBackend(model, contract), request, fused=fused) for request in requests]
    backend = Noisy(TorchBackend(model, contract), 0, float("nan"))
    dirty = generate_batch(backend, requests, fused=fused)
    assert backend.worst <= CLOSE
    assert [each.token_ids for each in dirty] == [each.token_ids for each in clean]
    assert max(len(each.token_ids) for each in clean) > BLOCK
