"""Whole answers at a temperature: against the definition, solo, in batches, fused and separate, seed by seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from slow_decode import slow_decode
from tiny import BLOCK, VOCAB, Scripted, proposal

from runtime.backend import Forward, Proposal
from runtime.contract import ALIGNMENTS
from runtime.decoding.loop import decode_steps, generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.request_state import Result
from runtime.decoding.sampling import sample_uniforms
from runtime.errors import NumericalError, UserError
from train.torch_backend import TorchBackend

LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2)
TOP = 8
KINDS = list(itertools.product(ALIGNMENTS, (False, True), tiny.ATTENTIONS))
told = [f"{alignment}-{'shift' if shift else 'own'}-{attention}" for alignment, shift, attention in KINDS]


def kinds(alignment: str, shift: bool, attention: str, **changes: Any) -> dict[str, Any]:
    return {"alignment": alignment, "shift": shift, "attention": attention, "top_k": TOP, **changes}


def requests(seed: int, temperatures: tuple[float, ...] = (0.8, 2.0, 0.0, 1.0, 0.5)) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            tiny.prompt(rng, length),
            DecodeOptions(wanted, temperature=temperature, seed=rng.randrange(-(2**63), 2**63)),
        )
        for length, wanted, temperature in zip(LENGTHS, (12, 2, 9, 6, 11), temperatures, strict=True)
    ]


def picked(request: Request) -> Any:
    """How the slow decode chooses: from the best TOP tokens, by powers of their probabilities, with one number."""

    def pick(probabilities: torch.Tensor, position: int, step: int) -> int:
        assert request.options.seed is not None
        best = probabilities.topk(TOP)
        weights = best.values ** (1 / request.options.temperature)
        sought = float(sample_uniforms(request.options.seed, position, 1, step)[0]) * float(weights.sum())
        return int(best.indices[int((weights.cumsum(0) <= sought).sum())])

    return pick


@pytest.mark.parametrize(("alignment", "shift", "attention"), KINDS, ids=told)
def test_answers_are_those_of_the_definition(alignment: str, shift: bool, attention: str) -> None:
    contract, greedy = tiny.contract(**kinds(alignment, shift, attention)), 0
    for seed, fused in ((1, True), (2, False), (3, True)):
        model = tiny.model(seed)
        for request in requests(seed, (0.8, 2.0, 0.3, 1.0, 5.0)):
            answer, finish, moments = slow_decode(
                model, contract, request.prompt.tolist(), request.options.max_new_tokens, 0.4, pick=picked(request)
            )
            got = [s for [s] in decode_steps(TorchBackend(model, contract), [request], threshold=0.4, fused=fused)]
            assert [(tuple(s.tokens), tuple(s.open)) for s in got] == [(m.tokens, m.open) for m in moments]
            result = got[-1].result
            assert result is not None and (list(result.token_ids), result.finish) == (answer, finish)
            plain = Request(request.prompt, DecodeOptions(request.options.max_new_tokens))
            greedy += generate(TorchBackend(model, contract), plain, threshold=0.4).token_ids == result.token_ids
    assert greedy < 8, "the draws change hardly anything"


def same(ours: Result, theirs: Result) -> bool:
    names = ("token_ids", "finish", "steps", "commits", "blocks", "seed")
    return all(getattr(ours, name) == getattr(theirs, name) for name in names)


@pytest.mark.parametrize(("alignment", "shift", "attention"), KINDS, ids=told)
def test_a_batch_is_its_solo_runs_and_fused_is_separate(alignment: str, shift: bool, attention: str) -> None:
    contract, model = tiny.contract(**kinds(alignment, shift, attention)), tiny.model(11)
    backend, asked = TorchBackend(model, contract), requests(5)
    solo = [generate(backend, request, threshold=0.4) for request in asked]
    for fused in (True, False):
        for row, alone in zip(generate_batch(backend, asked, threshold=0.4, fused=fused), solo, strict=True):
            assert same(row, alone)
        for request, alone in zip(asked, solo, strict=True):
            assert same(generate(backend, request, threshold=0.4, fused=fused), alone)
    assert [each.seed for each in solo] == [
        request.options.seed if request.options.temperature else None for request in asked
    ]


def test_a_greedy_request_is_what_it_was_beside_sampled_ones_and_with_top_tokens() -> None:
    for shift, fused in itertools.product((False, True), (False, True)):
        model, asked = tiny.model(4), requests(6)
        without = TorchBackend(model, tiny.contract(shift=shift))
        together = generate_batch(TorchBackend(model, tiny.contract(shift=shift, top_k=TOP)), asked, fused=fused)
        alone = generate(without, Request(asked[2].prompt, DecodeOptions(asked[2].options.max_new_tokens)), fused=fused)
        assert same(together[2], alone) and together[2].seed is None


def test_seeds_decide_and_nothing_else() -> None:
    contract, model = tiny.contract(top_k=TOP), tiny.model(7)
    prompt = np.array([5, 6, 7])

    def answers(seeds: Iterator[int | None] | range) -> list[Result]:
        backend = TorchBackend(model, contract)
        return [generate(backend, Request(prompt, DecodeOptions(12, temperature=2.0, seed=seed))) for seed in seeds]

    first, again = answers(range(12)), answers(range(12))
    assert [each.token_ids for each in first] == [each.token_ids for each in again]
    assert len({each.token_ids for each in first}) > 6
    drawn = answers(iter([None] * 4))
    assert len({each.seed for each in drawn}) == 4
    repeated = answers(iter([each.seed for each in drawn]))
    assert [each.token_ids for each in repeated] == [each.token_ids for each in drawn]


def test_a_temperature_near_0_gives_the_greedy_answer() -> None:
    contract = tiny.contract(top_k=TOP)
    for seed, length in enumerate(LENGTHS):
        backend, prompt = TorchBackend(tiny.model(seed), contract), tiny.prompt(random.Random(seed), length)
        cold = generate(backend, Request(prompt, DecodeOptions(12, temperature=1e-6, seed=seed)))
        assert cold.token_ids == generate(backend, Request(prompt, DecodeOptions(12))).token_ids


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """Every position at once, so that no gate chooses among the draws."""
    likely = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    backend = Scripted(tiny.contract(top_k=3, block=8, canvas=8), with_top(likely))
    counts = np.zeros(VOCAB)
    for seed in range(1000):
        tokens = generate(
            backend, Request(np.array([5]), DecodeOptions(8, temperature=0.5, seed=seed)), threshold=0.0
        ).token_ids
        counts += np.bincount(tokens, minlength=VOCAB)
    expected = 8000 * np.array([0.36, 0.09, 0.01]) / 0.46
    assert (np.abs(counts[[10, 11, 12]] - expected) < 4 * np.sqrt(expected)).all() and counts.sum() == 8000


def with_top(log_prob: np.ndarray) -> tiny.Script:
    """The tokens 10 and on with these log-probabilities, wherever they are asked for."""

    def script(forward: Forward) -> Proposal:
        size = forward.rows.shape
        most = np.broadcast_to(log_prob, (*size, len(log_prob))).copy()
        token = np.broadcast_to(10 + np.arange(len(log_prob)), most.shape).copy()
        best = np.full(size, np.exp(log_prob[0]), np.float32)
        plain = Proposal(token[..., 0], best, 1 - best)
        return Proposal(plain.token, plain.confidence, plain.entropy, token, most) if forward.top else plain

    return script


def test_top_tokens_are_asked_for_where_a_request_is_sampled_and_only_there() -> None:
    backend = Scripted(tiny.contract(top_k=3), with_top(np.log(np.array([0.6, 0.3, 0.1], np.float32))))
    generate(backend, Request(np.array([5]), DecodeOptions(8)))
    greedy = len(backend.forwards)
    generate(backend, Request(np.array([5]), DecodeOptions(8, temperature=1.0, seed=1)))
    asked = [forward.top for forward in backend.forwards]
    assert not any(asked[:greedy]) and all(asked[greedy:]) and len(asked) > greedy > 0


def test_a_draw_of_low_confidence_is_made_again_at_the_next_step() -> None:
    backend = Scripted(tiny.contract(top_k=3), with_top(np.log(np.array([0.6, 0.3, 0.1], np.float32))))
    seen = [
        step for [step] in decode_steps(backend, [Request(np.array([5]), DecodeOptions(4, temperature=1.0, seed=3))])
    ]
    assert len(seen) > 1  # 0.5 is the threshold: what was drawn with 0.3 or 0.1 stays open
    for step in seen:
        assert (step.confidence[step.accepted] >= 0.5).all() or step.accepted.sum() == 1


@pytest.mark.parametrize(
    ("changes", "request_", "said"),
    [
        ({}, {"temperature": 1.0}, "gives its top-1 token alone; leave it out, or export with --top-k 32"),
        ({"top_k": 4}, {"temperature": 6.0}, "temperature is 6; expected 0"),
        ({"top_k": 4}, {"temperature": 1.0, "seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_any_work(
    changes: dict[str, Any], request_: dict[str, Any], said: str
) -> None:
    backend = Scripted(tiny.contract(**changes), lambda forward: proposal([[3] * 4], [[0.9] * 4]))
    with pytest.raises(UserError, match=said):
        generate(backend, Request(np.array([5]), DecodeOptions(4, **request_)))
    assert not backend.opened and not backend.forwards


def test_top_tokens_that_are_no_numbers_stop_decoding() -> None:
    backend = Scripted(tiny.contract(top_k=2), with_top(np.array([np.nan, np.nan], np.float32)))
    with pytest.raises(NumericalError, match="not finite"):
        generate(backend, Request(np.array([5]), DecodeOptions(4, temperature=1.0)))


def test_the_host_draws_as_the_pytorch_backend_does_over_the_whole_vocabulary() -> None:
    """What `train.collect` draws with: the same tokens as often, of the same confidence."""
    model, contract = tiny.model(9), tiny.contract(top_k=VOCAB - 1, block=8, canvas=8)
    forward = Forward(np.full((1, 8), tiny.MASK), np.array([0]), np.full((1, 8), 8), np.zeros((1, 500), np.int64))
    own, host = TorchBackend(model, contract, temperature=0.7, seed=1), TorchBackend(model, contract)
    own.open(1, 8)
    host.open(1, 8)
    assert host.log_probs is None
    out = own.forward(forward)
    probabilities = torch.softmax(own.log_probs[0, 0].double() / 0.7, -1).numpy()  # type: ignore[index]
    expected = 500 * probabilities
    for token, confidence in ((out.token[0], out.confidence[0]), drawn_by_host(host, forward)):
        counts = np.bincount(token, minlength=VOCAB)
        assert (np.abs(counts - expected) < 4 * np.sqrt(expected) + 1).all()
        every = np.exp(own.log_probs[0, 0].numpy())  # type: ignore[index]
        np.testing.assert_allclose(confidence, every[token], rtol=1e-5)


def drawn_by_host(backend: TorchBackend, forward: Forward) -> tuple[np.ndarray, np.ndarray]:
    from dataclasses import replace

    from runtime.decoding.sampling import Sampler

    out = backend.forward(replace(forward, top=True))
    assert out.top_token is not None and out.top_logprob is not None
    row = Proposal(out.token[0], out.confidence[0], out.entropy[0], out.top_token[0], out.top_logprob[0])
    drawn = Sampler(0.7, 1)(row, 0, 0)
    return drawn.token, drawn.confidence
