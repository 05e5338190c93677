"""A prefix kept between answers: what may be kept, and that answers are those of starting anew."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from speaking import make_byte_tokenizer, make_speaker, make_speaking_bundle, save_tokenizer
from test_decoding_batch import Bounded, told
from test_graph_step import pair
from tiny import BLOCK, MASK

from runtime import load
from runtime.backend import Backend
from runtime.contract import Contract
from runtime.decoding.block_layout import compute_block_ends, count_committed, count_reusable
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.prefix_cache import Session
from runtime.decoding.request_state import Result
from runtime.errors import NumericalError, UserError
from runtime.model import Model
from runtime.text.tokenizer import Tokenizer
from train.torch_backend import TorchBackend

KEPT = ["absolute", "end"]


def ends_of_blocks(contract: Contract, prompt: int, length: int) -> list[int]:
    """Where the block of each of `length` positions ends, counted out from the prompt's alignment."""
    start = prompt % contract.block if contract.alignment == "end" else 0
    ends = [start] if start else []
    while not ends or ends[-1] < length:
        ends.append((ends[-1] if ends else 0) + contract.block)
    return [next(end for end in ends if end > place) for place in range(length)]


@given(
    alignment=st.sampled_from(KEPT), shift=st.booleans(), held=st.lists(st.integers(3, 4), max_size=14),
    earlier=st.integers(1, 14), prompt=st.lists(st.integers(3, 4), min_size=1, max_size=14), same=st.integers(0, 14),
)  # fmt: skip
def test_what_may_be_kept_is_what_sees_the_same_tokens(
    alignment: str, shift: bool, held: list[int], earlier: int, prompt: list[int], same: int
) -> None:
    contract = tiny.contract(alignment=alignment, shift=shift)
    held = (prompt[:same] + held)[:14]
    before, now = ends_of_blocks(contract, earlier, len(held)), ends_of_blocks(contract, len(prompt), len(prompt))
    most = 0
    for kept in range(1, min(len(held), count_committed(contract, len(prompt))) + 1):
        alike = all(before[i] == now[i] <= kept and held[: now[i]] == prompt[: now[i]] for i in range(kept))
        predicted = not shift or kept < len(prompt)  # else nothing is committed that predicts the canvas's first
        most = kept if alike and predicted else most
    assert count_reusable(contract, np.array(held, np.int64), earlier, np.array(prompt)) == most
    assert compute_block_ends(contract, len(prompt)).tolist() == now


def conversation(backend: Backend, seed: int, fused: bool) -> list[tuple[Result, Result, int, int]]:
    """Prompts that go on from the answer before, repeat, fall back to the first, begin anew: in a session and anew.

    With each pair of results, how many tokens its forward passes had in the session and without.
    """
    rng, counted = random.Random(seed), Bounded(backend)
    session, text = Session(counted), tiny.prompt(rng, 3 * BLOCK + 1)
    first, found = text, []
    for turn in range(6):
        request = Request(text, DecodeOptions(2 * BLOCK + 3, threshold=0.5))
        counted.widths.clear()
        *_, [last] = session.steps(request, fused=fused)
        kept = sum(width for _, width in counted.widths)
        fresh = Bounded(TorchBackend(backend.model, backend.contract) if isinstance(backend, TorchBackend)
                        else backend.share())  # fmt: skip
        assert last.result is not None
        found.append((last.result, generate(fresh, request, fused=fused), kept, sum(w for _, w in fresh.widths)))
        more = tiny.prompt(rng, BLOCK * rng.randrange(1, 3))
        text = [np.concatenate((text, last.result.token_ids, more)), text, first, more][turn % 4]
        text = text[: 10 * BLOCK]
    return found


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", KEPT)
def test_answers_of_a_session_are_those_of_starting_anew(alignment: str, shift: bool, tmp_path: Path) -> None:
    seed = tiny.choose_seed()
    source = tiny.checkpoint(seed, alignment=alignment, shift=shift)
    source = replace(source, decoding=replace(source.decoding, eos_ids=(MASK + 1,)))
    for backend, fused in itertools.product(pair(source, tmp_path), (True, False)):
        found = conversation(backend, seed, fused)
        assert [told(kept) for kept, *_ in found] == [told(fresh) for _, fresh, *_ in found], f"BLOCKSTEP_SEED={seed}"
        assert all(kept <= fresh for *_, kept, fresh in found)
        assert found[2][2] < found[2][3], "the same prompt again has nothing left to prefill but a block"


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ({"alignment": "prompt"}, "sees the whole prompt"),
        ({"attention": "full", "alignment": "end"}, "without a KV cache"),
    ],
)
def test_a_model_that_cannot_keep_a_prefix_is_refused(contract: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Session(TorchBackend(tiny.model(1), tiny.contract(**contract)))


def test_the_time_between_two_answers_of_a_session_is_in_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    contract, now = tiny.contract(alignment="absolute"), [0.0]
    monkeypatch.setattr("runtime.decoding.batch.time", SimpleNamespace(perf_counter=lambda: now[0]))
    session, request = Session(TorchBackend(tiny.model(2), contract)), Request(np.arange(3, 9), DecodeOptions(BLOCK))
    for now[0] in (5.0, 100.0):  # nothing takes time but what the user does in between
        *_, [last] = session.steps(request)
        assert last.result is not None and last.result.seconds == 0


def test_an_answer_that_is_left_keeps_what_was_committed_and_one_that_fails_nothing() -> None:
    contract, model = tiny.contract(alignment="absolute"), tiny.model(2)
    backend = Bounded(TorchBackend(model, contract))
    session, request = Session(backend), Request(np.arange(3, 3 + 3 * BLOCK), DecodeOptions(3 * BLOCK, threshold=1.0))
    expected = generate(TorchBackend(model, contract), request).token_ids
    running = session.steps(request)
    next(running)
    running.close()
    backend.widths.clear()
    *_, [last] = session.steps(request)
    assert last.result is not None and last.result.token_ids == expected
    assert backend.widths[0] == (1, BLOCK)  # the canvas alone
    weight = model.layers[0].mlp.down_proj.weight.detach()
    sound = weight.clone()
    weight[0, 0] = float("nan")
    with pytest.raises(NumericalError):
        list(session.steps(Request(np.array([9, 9]), DecodeOptions(4))))
    weight.copy_(sound)
    backend.widths.clear()
    *_, [last] = session.steps(request)
    assert last.result is not None and last.result.token_ids == expected
    assert backend.widths[0] == (1, 4 * BLOCK)  # everything anew


def test_sessions_of_a_model_have_caches_of_their_own(tmp_path: Path) -> None:
    engine = pair(tiny.checkpoint(4, alignment="absolute"), tmp_path)[1]
    tokenizer = Tokenizer(save_tokenizer(make_byte_tokenizer(), tmp_path), None)
    model = Model(engine, tokenizer, engine.contract.gate, "ort-fp32", "fp32")
    one, other, ids = model.session(), model.session(), list(range(3, 12))
    for turn in range(3):
        expected = model.generate(ids, max_new_tokens=6).result.token_ids
        assert one.generate(ids, max_new_tokens=6).result.token_ids == expected
        assert (
            other.generate(ids[turn:], max_new_tokens=6).result.token_ids
            == model.generate(ids[turn:], max_new_tokens=6).result.token_ids
        )
        ids += [*expected, 5, 6]
    with pytest.raises(UserError, match="without a KV cache"):
        load(make_speaking_bundle(tmp_path, "ab", "cdef")).session()
    with pytest.raises(UserError, match="answers one request at a time"):
        make_speaker(tmp_path, "ab", "cdef", alignment="absolute").session()
