"""The three levels of the Python API: a step, a stream of blocks, an answer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import tiny
import torch
from speaking import ANSWER, PROMPT, VOCAB, encode_ids, every_other, make_byte_tokenizer, make_speaker, save_tokenizer

from runtime.contract import GateSpec
from runtime.decoding.loop import generate as decode_whole
from runtime.decoding.options import DecodeOptions, OptionKeywords, Request
from runtime.errors import NumericalError, UserError
from runtime.model import Model, ModelPool
from runtime.text.tokenizer import BROKEN, Tokenizer
from train.torch_backend import TorchBackend, derive_contract


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
@pytest.mark.parametrize("attention", ["block_causal", "full"])
def test_the_three_levels_tell_one_story(
    tmp_path: Path, attention: str, alignment: str, shift: bool, fused: bool
) -> None:
    spec = {"attention": attention, "alignment": alignment, "shift": shift, "canvas": 40}
    model = make_speaker(tmp_path, PROMPT, ANSWER, every_other, **spec)
    answer = model.generate(PROMPT, fused=fused)
    assert (answer.text, answer.result.finish) == (ANSWER, "eos")
    assert answer.result.token_ids == (*encode_ids(ANSWER), tiny.END)
    blocks = list(model.stream(PROMPT, fused=fused))
    assert "".join(block.text for block in blocks) == ANSWER
    assert sum((block.token_ids for block in blocks), ()) == answer.result.token_ids
    assert [block.index for block in blocks] == list(range(answer.result.blocks))
    assert [block.result is None for block in blocks] == [True] * (len(blocks) - 1) + [False]
    steps = list(model.steps(PROMPT, fused=fused))
    assert len(steps) == answer.result.steps
    assert steps[-1].result is not None and steps[-1].result.token_ids == answer.result.token_ids


def test_a_character_split_over_blocks_comes_whole_with_the_later_one(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, "abc😀d")  # blocks of 4 bytes: abc and a quarter of the emoji
    assert [block.text for block in model.stream(PROMPT)] == ["abc", "😀d", ""]


def test_blocks_come_while_the_rest_is_not_decoded_yet(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, "abcdefgh")
    assert next(model.stream(PROMPT)).text == "abcd"
    assert len(model.backend.forwards) == 1  # type: ignore[attr-defined]


def test_an_answer_cut_by_length_may_end_in_a_broken_character(tmp_path: Path) -> None:
    answer = make_speaker(tmp_path, PROMPT, "abc😀").generate(PROMPT, max_new_tokens=5)
    assert (answer.text, answer.result.finish, len(answer.result.token_ids)) == ("abc" + BROKEN, "length", 5)


def test_a_real_model_streams_what_it_generates(tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint(seed=3)
    backend = TorchBackend(checkpoint.build(), derive_contract(checkpoint))
    (tmp_path / "tokenizer.json").write_text(checkpoint.tokenizer)
    model = Model(backend, Tokenizer(tmp_path / "tokenizer.json"), backend.contract.gate, "torch", "fp32")
    ids = [5, 6, 7, 8, 9]
    answer = model.generate(ids, max_new_tokens=20)
    plain = decode_whole(backend, Request(np.array(ids), DecodeOptions(20)))
    assert answer.result.token_ids == plain.token_ids
    assert "".join(block.text for block in model.stream(torch.tensor(ids).numpy(), max_new_tokens=20)) == answer.text


def test_every_option_is_a_keyword() -> None:
    assert get_type_hints(OptionKeywords) == get_type_hints(DecodeOptions)


def test_keywords_replace_the_options_that_are_given_at_once(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, ANSWER)
    options = DecodeOptions(max_new_tokens=3, threshold=0.0)
    assert model.generate(PROMPT, options).text == ANSWER[:3]
    both = model.request(PROMPT, options, max_new_tokens=5).options
    assert (both.max_new_tokens, both.threshold) == (5, 0.0)


def test_the_tokens_asked_for_by_default_are_cut_to_the_room(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, "x" * 300, capacity=64)
    assert len(model.generate(PROMPT).result.token_ids) == 56  # 64 less the prompt's 6, in blocks of 4
    with pytest.raises(UserError, match="room for 56"):
        model.generate(PROMPT, max_new_tokens=57)
    roomy = make_speaker(tmp_path, PROMPT, "x" * 300, capacity=400)
    assert len(roomy.generate(PROMPT).result.token_ids) == 256


def test_a_threshold_may_be_a_function_that_is_read_at_every_step(tmp_path: Path) -> None:
    model, read = make_speaker(tmp_path, PROMPT, "abcdefg", every_other), []

    def threshold() -> float:
        read.append(0.2 if read else 0.99)  # one token in the first step, all that is open in every later one
        return read[-1]

    answer = model.generate(PROMPT, threshold=threshold)
    assert (answer.text, answer.result.steps, len(read)) == ("abcdefg", 3, 3)


def test_the_engines_gate_replaces_the_contracts(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, "abcdefg")
    careful = Model(model.backend, model.tokenizer, GateSpec(rule="count"), "scripted", "int8")
    assert (model.generate(PROMPT).result.steps, careful.generate(PROMPT).result.steps) == (2, 8)


def test_two_answers_of_one_model_are_not_mixed_up(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, "abcdefgh")
    stream = model.stream(PROMPT)
    next(stream)
    with pytest.raises(UserError, match="generating another answer"):
        model.generate(PROMPT)
    stream.close()  # type: ignore[attr-defined]
    assert model.generate(PROMPT).text == "abcdefgh"


def test_a_child_of_a_fork_is_refused_its_parents_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_speaker(tmp_path, PROMPT, "abcdefgh")
    stream = model.stream(PROMPT)
    next(stream)
    monkeypatch.setattr("os.getpid", lambda: -1)
    for use in (model.share, lambda: model.generate(PROMPT)):
        with pytest.raises(UserError, match="loaded before the process forked"):
            use()


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ([1, VOCAB], {}, f"token id {VOCAB} is not in the vocabulary"),
        ([-1], {}, "token id -1"),
        ([1.5], {}, "float64"),
        ([[1]], {}, r"array \[1, 1\]"),
        ("x" * 64, {}, "room for 0"),
        ("x", {"max_new_tokens": 0}, "expected at least 1"),
        ("x", {"threshold": 1.5}, "outside"),
        ("x", {"threshold": float("nan")}, "outside"),
        ("\udc80", {}, "surrogate"),
    ],
)
def test_mistakes_are_refused_before_any_forward(
    tmp_path: Path, prompt: Any, options: dict[str, Any], reason: str
) -> None:
    model = make_speaker(tmp_path, PROMPT, ANSWER)
    with pytest.raises(UserError, match=reason) as caught:
        model.generate(prompt, **options)
    assert "\n" not in str(caught.value)
    assert model.backend.forwards == []  # type: ignore[attr-defined]


def test_a_pool_lends_a_model_to_one_request_at_a_time(tmp_path: Path) -> None:
    pool, looks = ModelPool(make_speaker(tmp_path, PROMPT, ANSWER)), iter([True, True, False])
    lent = pool.take()
    assert pool.models == (lent,) and pool.take_while(lambda: next(looks)) is None and next(looks, None) is None
    returning = threading.Timer(0.05, pool.give, (lent,))
    returning.start()
    assert pool.take() is lent
    pool.give(lent)
    assert pool.take_while(lambda: False) is None and pool.take_while(lambda: True) is lent
    returning.join()


def test_scores_that_are_no_numbers_end_the_answer_and_free_the_model(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, ANSWER, lambda place: float("nan"))
    for _ in range(2):
        with pytest.raises(NumericalError):
            model.generate(PROMPT)


def test_the_byte_tokenizer_of_these_tests_is_one_token_a_byte(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save_tokenizer(make_byte_tokenizer(), tmp_path))
    assert tokenizer.encode(ANSWER).tolist() == encode_ids(ANSWER)
