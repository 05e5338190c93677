"""Models that are autoregressive too: their three modes against everything recomputed, and each against the others.

The slow decode below shares nothing with `runtime/` but the contract's values: no cache, no rows, masks written out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from runtime.contract import Contract, parse_contract
from runtime.decoding import loop
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.request_state import Result
from runtime.errors import UserError
from train.torch_backend import TorchBackend
from train.transformer.network import Transformer, initialize, rotary_tables

CAPACITY, CLOSE = 40, 1e-5
PERIOD = 3  # of the texts that a model is taught, so that its drafts are accepted
KINDS = {
    "seeded": {"attention": "causal_context", "shift": False, "modes": ["block", "speculative", "causal"]},
    "shifted": {"attention": "causal_context", "shift": True, "modes": ["block", "speculative", "causal"]},
    "idlm": {"attention": "causal", "shift": True, "modes": ["speculative", "causal"], "alignment": "absolute"},
}


def contract(kind: str, **changes: Any) -> Contract:
    return tiny.contract(**{"capacity": CAPACITY, **KINDS[kind], **changes})


class TooClose(Exception):
    """Two tokens are as good as one another: which is the best is a matter of rounding."""


@torch.no_grad()
def predictions(model: Transformer, spec: Contract, ids: Sequence[int], both_ways: range) -> torch.Tensor:
    """Probabilities fp64 [length, vocab] of every row, the mask token at 0. both_ways: positions that see each other,
    all others see what is before them, and themselves."""
    length = len(ids)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    for row in both_ways:
        seen[row, both_ways.start : both_ways.stop] = True
    mask = torch.where(seen, 0.0, float("-inf"))[None, None]
    cos, sin = rotary_tables(torch.arange(length)[None, None], model.config.head_dim, model.config.rope_theta)
    x = model.embed_tokens(torch.tensor([list(ids)]))
    for layer in model.layers:
        x = layer(x, cos, sin, mask, None)
    logits = model.logits(model.norm(x))[0].double()
    logits[:, spec.mask_id] = float("-inf")
    return torch.softmax(logits, dim=-1)


def best(row: torch.Tensor) -> int:
    two = row.topk(2)
    if float(two.values[0] - two.values[1]) < CLOSE:
        raise TooClose
    return int(two.indices[0])


def ended(spec: Contract, ids: Sequence[int], wanted: int) -> list[int] | None:
    """The answer if these tokens hold all of it."""
    for i, token in enumerate(ids[:wanted]):
        if token in spec.eos_ids:
            return [*ids[: i + 1]]
    return [*ids[:wanted]] if len(ids) >= wanted else None


def slow_causal(model: Transformer, spec: Contract, prompt: Sequence[int], wanted: int) -> list[int]:
    """Token by token."""
    answer: list[int] = []
    while (done := ended(spec, answer, wanted)) is None:
        answer.append(best(predictions(model, spec, [*prompt, *answer], range(0))[-1]))
    return done


def slow_blocks(model: Transformer, spec: Contract, prompt: Sequence[int], wanted: int, threshold: float) -> list[int]:
    """Hugging Face's loop of Nemotron-Labs-Diffusion, or for a shift the same with the row before each position."""
    ids, begin = [*prompt], len(prompt)
    while True:
        places = range(begin, begin + spec.block)
        canvas = {place: spec.mask_id for place in places}
        waiting = [*places]
        if spec.seeded:
            canvas[begin] = best(predictions(model, spec, ids, range(0))[-1])
            waiting.remove(begin)
        while True:
            known = [canvas[p] for p in range(begin, min(waiting, default=places.stop))]
            if (done := ended(spec, [*ids[len(prompt) :], *known], wanted)) is not None:
                return done
            if not waiting:
                break
            said = predictions(model, spec, [*ids, *canvas.values()], places)
            rows = {p: said[p - spec.shift] for p in waiting}
            if spec.shift and begin in rows:
                rows[begin] = predictions(model, spec, ids, range(0))[-1]
            sure = {p: float(row.max()) for p, row in rows.items()}
            order = sorted(waiting, key=lambda p: -sure[p])
            calls = [abs(sure[p] - threshold) for p in waiting]
            calls += [sure[order[0]] - sure[order[1]]] if len(order) > 1 and sure[order[0]] < threshold else []
            if min(calls) < CLOSE:
                raise TooClose
            for place in [p for p in waiting if sure[p] >= threshold] or order[:1]:
                canvas[place] = best(rows[place])
                waiting.remove(place)
        ids += canvas.values()
        begin += spec.block


@cache
def learned(kind: str) -> Transformer:
    """A tiny model that has learned a hundred updates of periodic text, under its causal mask and its drafts' masks."""
    spec, model = contract(kind), initialize(Transformer(tiny.shape(0)), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        unit = torch.randint(3, tiny.VOCAB, (16, PERIOD), generator=generator)
        text = unit.repeat(1, 8)  # [batch, 24]
        begin = int(torch.randint(PERIOD, text.shape[1] - spec.block, (), generator=generator))
        seen = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).tril()
        noisy = text.clone()
        noisy[:, begin + 1 : begin + spec.block] = spec.mask_id
        drafts = seen.clone()
        if kind != "idlm":
            drafts[begin : begin + spec.block, begin : begin + spec.block] = True
        loss = torch.zeros(())
        for ids, mask, own in ((text, seen, False), (noisy, drafts, True)):
            additive = torch.where(mask, 0.0, float("-inf"))[None, None].expand(len(ids), 1, -1, -1)
            logits = model.logits(model(ids, mask=additive))
            if not own:
                loss = loss + torch.nn.functional.cross_entropy(
                    logits[:, PERIOD:-1].flatten(0, 1), text[:, PERIOD + 1 :].flatten()
                )
            else:
                rows = torch.arange(begin + 1, begin + spec.block)
                said = logits[:, rows - int(spec.shift)]
                loss = loss + torch.nn.functional.cross_entropy(said.flatten(0, 1), text[:, rows].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def taught(kind: str, seed: int = 0) -> tuple[TorchBackend, Contract]:
    spec = contract(kind, batch=4)
    return TorchBackend(learned(kind), spec), spec


def random_backend(kind: str, seed: int) -> tuple[TorchBackend, Contract]:
    spec = contract(kind, batch=4)
    return TorchBackend(tiny.model(seed), spec), spec


def prompts(rng: random.Random, periodic: bool, count: int) -> list[list[int]]:
    """Prompts of every length around the borders of blocks."""
    found = []
    for number in range(count):
        length = 1 + number % (2 * tiny.BLOCK + 2)
        unit = [rng.randrange(3, tiny.VOCAB) for _ in range(PERIOD)]
        found.append((unit * length)[: length + PERIOD] if periodic else tiny.prompt(rng, length).tolist())
    return found


def request(prompt: Sequence[int], wanted: int, mode: str, **more: Any) -> Request:
    return Request(np.array(prompt, np.int64), DecodeOptions(wanted, mode=mode, **more))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [random_backend, taught])
def test_every_mode_gives_what_recomputing_everything_gives(kind: str, make: Any) -> None:
    seed = tiny.fresh_seed() % 1000
    backend, spec = make(kind, seed)
    model, rng = backend.model, random.Random(seed)
    compared: dict[str, int] = dict.fromkeys(spec.modes, 0)
    rounds, tokens = 0, 0
    for prompt in prompts(rng, make is taught, 30 if not tiny.FULL else 200):
        wanted = rng.choice([1, 2, tiny.BLOCK, 13])
        for mode in spec.modes:
            threshold = rng.choice([0.2, 0.9])
            more = {"threshold": threshold} if mode == "block" else {}
            try:
                if mode == "block":
                    right = slow_blocks(model, spec, prompt, wanted, threshold)
                else:
                    right = slow_causal(model, spec, prompt, wanted)
            except TooClose:
                continue
            got = loop.generate(backend, request(prompt, wanted, mode, **more))
            assert [*got.token_ids] == right, f"seed {seed}, mode {mode}, prompt {prompt}, wanted {wanted}"
            compared[mode] += 1
            if mode == "speculative":
                rounds, tokens = rounds + got.commits, tokens + max(0, len(got.token_ids) - 1)
    assert min(compared.values()) > 10, f"seed {seed}: {compared}"
    if make is taught:
        assert tokens > 1.5 * rounds, f"seed {seed}: drafts are hardly accepted"


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_mixed_modes_gives_the_solo_answers(kind: str) -> None:
    seed = tiny.fresh_seed() % 1000
    backend, spec = taught(kind, seed)
    rng = random.Random(seed)
    asked = [request(p, rng.randint(1, 14), rng.choice(spec.modes)) for p in prompts(rng, True, 24)]
    alone = [loop.generate(backend, one) for one in asked]
    for slots in (2, 3, 4):
        together = loop.generate_batch(backend, asked, slots=slots)
        assert [r.token_ids for r in together] == [r.token_ids for r in alone], f"seed {seed}, {slots} slots"
        assert [counts(r) for r in together] == [counts(r) for r in alone], f"seed {seed}, {slots} slots"


def counts(result: Result) -> tuple[int, int, int, int]:
    return result.steps, result.commits, result.forwards, result.blocks


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_speculation_is_the_causal_mode_with_that_seed(kind: str) -> None:
    backend = TorchBackend(learned(kind), contract(kind, top_k=8))
    rng, different = random.Random(0), set()
    for number, prompt in enumerate(prompts(rng, True, 20)):
        more = {"temperature": 1.0, "seed": number}
        one, other = (loop.generate(backend, request(prompt, 12, mode, **more)) for mode in ("speculative", "causal"))
        assert one.token_ids == other.token_ids and one.seed == number
        different.add(one.token_ids != loop.generate(backend, request(prompt, 12, "causal")).token_ids)
    assert True in different


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_ends_where_the_capacity_does(kind: str) -> None:
    backend, spec = taught(kind)
    for length in range(CAPACITY - 2 * tiny.BLOCK, CAPACITY):
        prompt = ([5, 6, 7] * CAPACITY)[:length]
        one, other = (loop.generate(backend, request(prompt, CAPACITY - length, mode)) for mode in spec.modes[-2:])
        assert one.token_ids == other.token_ids
    with pytest.raises(UserError, match="leaves room for 2 new ones"):
        loop.generate(backend, request([5] * (CAPACITY - 2), 3, "causal"))


def test_forwards_are_counted_as_the_authors_do() -> None:
    backend, _ = taught("seeded")
    prompt, wanted = [5, 6, 7] * 3, 13
    causal = loop.generate(backend, request(prompt, wanted, "causal"))
    got = loop.generate(backend, request(prompt, wanted, "speculative"))
    assert causal.forwards == wanted - 1 and got.forwards == got.steps + got.commits < causal.forwards
    block = loop.generate(backend, request(prompt, wanted, "block"))
    assert (block.blocks, block.commits) == (4, 3) and block.forwards == block.steps + block.commits


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"modes": ["block", "block"]}, "each once"),
     ({"attention": "block_causal", "modes": ["causal"]}, "alone have others"),
     ({"attention": "causal", "modes": ["block"]}, "no mode block"),
     ({"attention": "causal", "shift": False, "modes": ["causal"]}, "and a shift"),
     ({"alignment": "end", "attention": "causal_context"}, "expected prompt"),
     ({"modes": []}, "a list of block, speculative, causal"), ({"modes": ["fast"]}, "a list of block")],
)  # fmt: skip
def test_modes_that_do_not_fit_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_contract({**tiny.CONTRACT, **changes})


def test_modes_stand_in_the_manifest_only_if_there_are_others() -> None:
    assert "modes" not in tiny.contract().as_dict()
    spec = contract("seeded")
    assert parse_contract(spec.as_dict()) == spec and spec.as_dict()["modes"] == ["block", "speculative", "causal"]


def test_options_that_a_mode_has_no_use_for_are_refused() -> None:
    backend, _ = random_backend("seeded", 0)
    for more, expected in (({"threshold": 0.5}, "which has no gate"), ({"suffix": [4]}, "nothing behind a token")):
        for mode in ("speculative", "causal"):
            with pytest.raises(UserError, match=expected):
                loop.generate(backend, request([5, 6], 4, mode, **more))
    with pytest.raises(UserError, match="mode is 'fast'; this model decodes in the mode block or spec"):
        loop.generate(backend, request([5, 6], 4, "fast"))
    with pytest.raises(UserError, match="mode is 'causal'; this model decodes in the mode block"):
        loop.generate(TorchBackend(tiny.model(0), tiny.contract()), request([5, 6], 4, "causal"))
