"""Models that are autoregressive too: their three modes against everything recomputed, and each against the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tiny
import torch
from slow_causal import TooClose, slow_blocks, slow_causal

from runtime.contract import Contract, parse_contract
from runtime.decoding import loop, speculation
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.request_state import Result
from runtime.decoding.running_batch import RunningBatch
from runtime.errors import UserError
from train.torch_backend import TorchBackend
from train.transformer.network import Transformer, initialize

CAPACITY = 40
PERIOD = 3  # of the texts that a model is taught, so that its drafts are accepted
KINDS = {
    "seeded": {"attention": "causal_context", "shift": False, "modes": ["block", "speculative", "causal"]},
    "shifted": {"attention": "causal_context", "shift": True, "modes": ["block", "speculative", "causal"]},
    "idlm": {"attention": "causal", "shift": True, "modes": ["speculative", "causal"], "alignment": "absolute"},
}


def contract(kind: str, **changes: Any) -> Contract:
    return tiny.contract(**{"capacity": CAPACITY, **KINDS[kind], **changes})


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


def request(prompt: Sequence[int], wanted: int, mode: str | None, **more: Any) -> Request:
    return Request(np.array(prompt, np.int64), DecodeOptions(wanted, mode=mode, **more))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [random_backend, taught])
def test_every_mode_gives_what_recomputing_everything_gives(kind: str, make: Any) -> None:
    seed = tiny.choose_seed() % 1000
    backend, spec = make(kind, seed)
    model, rng = backend.model, random.Random(seed)
    compared: dict[str, int] = dict.fromkeys(spec.modes, 0)
    rounds, tokens = 0, 0
    for prompt in prompts(rng, make is taught, 30 if not tiny.FULL else 200):
        wanted = rng.choice([1, 2, tiny.BLOCK, 13])
        for mode in spec.modes:
            threshold = rng.choice([0.2, 0.9])
            more = {"fused": rng.choice([True, False]), **({"threshold": threshold} if mode == "block" else {})}
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
    seed = tiny.choose_seed() % 1000
    backend, spec = taught(kind, seed)
    rng = random.Random(seed)
    asked = [
        request(p, rng.randint(1, 14), rng.choice(spec.modes), fused=rng.choice([True, False]))
        for p in prompts(rng, True, 24)
    ]
    alone = [loop.generate(backend, one) for one in asked]
    for slots in (2, 3, 4):
        together = loop.generate_batch(backend, asked, slots=slots)
        assert [r.token_ids for r in together] == [r.token_ids for r in alone], f"seed {seed}, {slots} slots"
        assert [counts(r) for r in together] == [counts(r) for r in alone], f"seed {seed}, {slots} slots"


@pytest.mark.parametrize("kind", KINDS)
def test_a_running_batch_takes_requests_of_every_mode(kind: str) -> None:
    backend, spec = taught(kind)
    rng = random.Random(0)
    asked = [request(p, rng.randint(1, 14), rng.choice(spec.modes)) for p in prompts(rng, True, 20)]
    batch, waiting, found = RunningBatch(backend, None, 4), [*asked], dict[int, Result]()
    while waiting or batch.busy:
        for _ in range(min(len(waiting), rng.randint(0, 3))):
            batch.add(waiting.pop(0))
        if batch.busy:
            outcome = batch.step()
            assert not outcome.failed
            found |= {step.row: step.result for step in outcome.steps if step.result is not None}
    for number, one in enumerate(asked):
        assert found[number].token_ids == loop.generate(backend, one).token_ids, (kind, number)


def counts(result: Result) -> tuple[int, int, int, int]:
    return result.steps, result.commits, result.forwards, result.blocks


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_speculation_is_the_causal_mode_with_that_seed(kind: str) -> None:
    backend = TorchBackend(learned(kind), contract(kind, top_k=8))
    rng, different = random.Random(0), set()
    for number, prompt in enumerate(prompts(rng, True, 20)):
        more = {"temperature": 1.0, "seed": number, "fused": number % 2 == 0}
        one, other = (loop.generate(backend, request(prompt, 12, mode, **more)) for mode in ("speculative", "causal"))
        assert one.token_ids == other.token_ids and one.seed == number
        different.add(one.token_ids != loop.generate(backend, request(prompt, 12, "causal")).token_ids)
    assert any(different)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_ends_where_the_capacity_does(kind: str) -> None:
    backend, spec = taught(kind)
    for length in range(CAPACITY - 2 * tiny.BLOCK, CAPACITY):
        prompt = ([5, 6, 7] * CAPACITY)[:length]
        one, other = (loop.generate(backend, request(prompt, CAPACITY - length, mode)) for mode in spec.modes[-2:])
        assert one.token_ids == other.token_ids
    with pytest.raises(UserError, match="leaves room for 2 new ones"):
        loop.generate(backend, request([5] * (CAPACITY - 2), 3, "causal"))


def test_a_verification_that_drafts_too_saves_forward_passes() -> None:
    backend, _ = taught("shifted")
    rng, taken = random.Random(0), {True: 0, False: 0}
    for prompt in prompts(rng, True, 20):
        causal = loop.generate(backend, request(prompt, 16, "causal"))
        for fused in taken:
            got = loop.generate(backend, request(prompt, 16, "speculative", fused=fused))
            assert got.token_ids == causal.token_ids
            taken[fused] += got.forwards
    assert taken[True] < 0.8 * taken[False]


def test_a_draft_ends_before_a_token_of_low_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = random_backend("shifted", 5)  # untrained: no draft is confident
    rng, taken, answers = random.Random(5), {}, {}
    some = prompts(rng, False, 10)
    for least in (0.0, speculation.CONFIDENT):
        monkeypatch.setattr(speculation, "CONFIDENT", least)
        found = [loop.generate(backend, request(prompt, 12, "speculative")) for prompt in some]
        taken[least], answers[least] = sum(each.forwards for each in found), [each.token_ids for each in found]
    assert answers[0.0] == answers[speculation.CONFIDENT]
    assert taken[speculation.CONFIDENT] == sum(map(len, answers[0.0])) != taken[0.0]  # one token per forward pass


def test_few_masks_follow_a_short_draft_and_none_an_end_token() -> None:
    spec = contract("shifted", block=16, canvas=32, capacity=80)
    draft = speculation.Draft(spec, np.arange(3, 8), 0, 60, together=True)
    assert draft.masks == 15
    draft.commit(5)
    draft.seed = 3
    for length, masks in ((15, 15), (9, 11), (2, 7)):  # confident tokens, masks after them
        draft.draft(np.full(15, 4), np.where(np.arange(15) < length, 0.9, 0.1))
        assert (len(draft.drafted), draft.masks) == (length, masks)
    ending = np.array([4, 4, spec.eos_ids[0], *[4] * 12])
    draft.draft(ending, np.ones(15))
    assert draft.drafted.tolist() == [4, 4, spec.eos_ids[0]] and (draft.masks, draft.width) == (0, 4)
    draft.draft(ending[:0], np.ones(0))  # not confirmed: the answer goes on
    assert (draft.masks, draft.width) == (7, 8)


def test_the_prompts_forward_pass_drafts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, spec = taught("shifted")
    [prompt] = prompts(random.Random(0), True, 1)
    for fused in (True, False):
        forward = Mock(wraps=backend.forward)
        monkeypatch.setattr(backend, "forward", forward)
        got = loop.generate(backend, request(prompt, spec.block, "speculative", fused=fused))
        widths = [call.args[0].input_ids.shape[1] for call in forward.call_args_list]
        assert (len(widths), widths[0]) == (
            (got.forwards, len(prompt) + spec.block - 1) if fused else (got.forwards + 1, len(prompt))
        )


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


def test_options_of_the_mode_block_choose_it_if_no_mode_is_given() -> None:
    spec = contract("shifted", modes=["speculative", "block", "causal"])
    backend = TorchBackend(tiny.model(3), spec)
    for more in ({"threshold": 0.1}, {"suffix": [4]}):
        found, block = (loop.generate(backend, request([5, 6], 3, mode, **more)) for mode in (None, "block"))
        assert found.token_ids == block.token_ids and found.forwards == block.forwards
    plain, causal = (loop.generate(backend, request([5, 6], 6, mode)) for mode in (None, "causal"))
    assert plain.token_ids == causal.token_ids


def test_options_that_a_mode_has_no_use_for_are_refused() -> None:
    backend, _ = random_backend("seeded", 0)
    for more, expected in (({"threshold": 0.5}, "which has no gate"), ({"suffix": [4]}, "nothing after a token")):
        for mode in ("speculative", "causal"):
            with pytest.raises(UserError, match=expected):
                loop.generate(backend, request([5, 6], 4, mode, **more))
    with pytest.raises(UserError, match="mode is 'fast'; this model decodes in the mode block or spec"):
        loop.generate(backend, request([5, 6], 4, "fast"))
    with pytest.raises(UserError, match="mode is 'causal'; this model decodes in the mode block"):
        loop.generate(TorchBackend(tiny.model(0), tiny.contract()), request([5, 6], 4, "causal"))
