"""Infilling: a suffix on the canvas from the first step, against recomputing everything and in every backend."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from slow_decode import distributions
from speaking import BYTES, make_speaking_bundle
from test_export_onnx import student
from tiny import BLOCK, END, MASK, Scripted, proposal

from export import onnx as export
from export.proof.compare import compare
from runtime import generate as command
from runtime import load
from runtime.contract import ALIGNMENTS, Contract, GateSpec
from runtime.decoding.block_layout import count_room_before_suffix
from runtime.decoding.loop import decode_steps, generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import UserError
from train.storage.student_pt import save
from train.torch_backend import TorchBackend, derive_contract
from train.transformer.network import Transformer


def slow_infill(
    model: Transformer, contract: Contract, prompt: Sequence[int], gap: int, suffix: Sequence[int], threshold: float
) -> tuple[list[int], int, float]:
    """What stands before the suffix to its end token, the steps taken, and by how little any decision was taken."""
    full, block = contract.attention == "full", contract.block
    start = len(prompt) if full or contract.alignment != "absolute" else len(prompt) // block * block
    width = len(prompt) + contract.canvas if full else start + block
    ids = [*prompt, *[contract.mask_id] * gap, *suffix]
    ids += [contract.mask_id] * (width - len(ids))
    waiting, taken, closest = list(range(len(prompt), len(prompt) + gap)), 0, 1.0
    while waiting:
        best = distributions(model, contract, ids, len(prompt)).topk(2)
        first = start + (waiting[0] - start) // block * block
        here = [place for place in waiting if place < first + block]  # a full model goes block by block too
        sure = {place: best.values[place, 0].item() for place in here}
        order = sorted(here, key=lambda place: (-sure[place], place))
        accepted = [place for place in here if sure[place] >= threshold] or order[:1]
        calls = [abs(sure[place] - threshold) for place in here]
        calls += [(best.values[place, 0] - best.values[place, 1]).item() for place in here]
        calls += [sure[order[0]] - sure[order[1]]] if len(order) > 1 else []
        taken, closest = taken + 1, min([closest, *calls])
        for place in accepted:
            ids[place] = int(best.indices[place, 0])
        waiting = [place for place in waiting if place not in accepted]
        settled = ids[len(prompt) : min(waiting, default=len(prompt) + gap)]
        if END in settled:
            return settled[: settled.index(END) + 1], taken, closest
    return ids[len(prompt) : len(prompt) + gap], taken, closest


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_infilling_equals_recomputing_everything(alignment: str, shift: bool, attention: str) -> None:
    seed = tiny.choose_seed()
    rng, model = random.Random(seed), tiny.model(seed)
    contract = tiny.contract(alignment=alignment, shift=shift, attention=attention, block=8, canvas=24)
    compared = 0
    for _ in range(12):
        prompt = tiny.prompt(rng, rng.randrange(1, 14))
        suffix = tiny.prompt(rng, rng.randrange(1, 4))
        room = count_room_before_suffix(contract, len(prompt), len(suffix))
        if room < 1:
            continue
        gap, threshold = rng.randrange(1, room + 1), rng.random()
        expected, taken, closest = slow_infill(model, contract, prompt.tolist(), gap, suffix.tolist(), threshold)
        if closest < 1e-5:
            continue
        for fused in (True, False):
            request = Request(prompt, DecodeOptions(gap, threshold=threshold, suffix=suffix))
            result = generate(TorchBackend(model, contract), request, fused=fused)
            assert list(result.token_ids) == expected, f"seed {seed}"
            # a candidate may decide the last open position without a forward, where the slow way needs a step
            assert result.steps <= taken and taken - result.steps <= (shift and attention != "full"), f"seed {seed}"
            assert result.finish == ("eos" if expected[-1] == END else "length"), f"seed {seed}"
        compared += 1
    assert compared, f"seed {seed}"


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
def test_what_follows_changes_what_is_written_before_it(attention: str) -> None:
    rng, answers = random.Random(0), set()
    backend = TorchBackend(tiny.model(0), tiny.contract(attention=attention, block=8, canvas=8))
    for _ in range(10):
        answers.add(
            generate(backend, Request(np.array([5, 6, 7]), DecodeOptions(4, suffix=tiny.prompt(rng, 3)))).token_ids
        )
    assert len(answers) > 1


def test_rows_of_a_ragged_batch_equal_their_solo_runs() -> None:
    seed = tiny.choose_seed()
    rng, model = random.Random(seed), tiny.model(seed)
    contract = tiny.contract(attention="full", block=4, canvas=12)
    requests = [Request(tiny.prompt(rng, n), DecodeOptions(5, 0.4, suffix=tiny.prompt(rng, n))) for n in (1, 3, 7)]
    requests.append(Request(tiny.prompt(rng, 4), DecodeOptions(9, 0.4)))
    together = generate_batch(TorchBackend(model, contract), requests)
    alone = [generate(TorchBackend(model, contract), request) for request in requests]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone], f"seed {seed}"


def test_positions_behind_the_suffix_are_masks_that_no_step_fills() -> None:
    backend = Scripted(tiny.contract(block=8, canvas=8), lambda forward: proposal([[9] * 8], [[0.3, 0.2] + [0.99] * 6]))
    seen = [
        step
        for [step] in decode_steps(backend, [Request(np.array([5]), DecodeOptions(2, suffix=np.array([7, END, MASK])))])
    ]
    assert [step.tokens.tolist() for step in seen] == [
        [9, MASK, 7, END, MASK, MASK, MASK, MASK], [9, 9, 7, END, MASK, MASK, MASK, MASK],
    ]  # fmt: skip
    assert [step.open.tolist() for step in seen] == [[False, True] + [False] * 6, [False] * 8]
    result = seen[-1].result
    assert result is not None and (result.token_ids, result.finish, result.steps) == ((9, 9), "length", 2)


def test_an_end_token_ends_what_stands_before_the_suffix() -> None:
    line = [[9, END, 9, 9]], [[0.9, 0.9, 0.1, 0.1]]
    backend = Scripted(tiny.contract(canvas=BLOCK), lambda forward: proposal(*line))
    result = generate(backend, Request(np.array([5]), DecodeOptions(3, suffix=np.array([7]))))
    assert (result.token_ids, result.finish, result.forwards) == ((9, END), "eos", 1)


def test_the_share_that_is_out_does_not_count_the_suffix() -> None:
    """An end token is held back for half of the answer; the suffix makes up most of the canvas."""
    line = [[END] + [9] * 7], [[0.9, 0.8] + [0.1] * 6]
    backend = Scripted(tiny.contract(block=8, canvas=8), lambda forward: proposal(*line))
    gate, suffix = GateSpec(threshold=0.5, eos_guard=0.5), np.array([7] * 4)
    seen = [
        step for [step] in decode_steps(backend, [Request(np.array([5]), DecodeOptions(4, suffix=suffix))], gate=gate)
    ]
    assert [np.flatnonzero(step.accepted).tolist() for step in seen] == [[1], [2], [0]]


@pytest.mark.parametrize(
    ("contract", "prompt", "tokens", "suffix", "said"),
    [
        ({}, 3, 3, [7, 7], "3 new tokens and a suffix of 2 do not fit one block of 4 tokens, .*; request at most 2"),
        ({"alignment": "absolute"}, 3, 1, [7], "shorten the suffix"),  # three of the block's positions are the prompt's
        ({}, 3, 1, [7] * 4, "shorten the suffix"),
        ({"attention": "full"}, 3, 9, [7] * 4, "a canvas of 12 tokens; request at most 8"),
        ({}, 3, 1, [24], "token id 24 is not in the vocabulary"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_work(
    contract: dict[str, Any], prompt: int, tokens: int, suffix: list[int], said: str
) -> None:
    backend = Scripted(tiny.contract(**contract), lambda forward: proposal([[9] * 4], [[0.9] * 4]))
    request = Request(np.full(prompt, 5), DecodeOptions(tokens, suffix=np.array(suffix)))
    with pytest.raises(UserError, match=said):
        generate(backend, request)
    assert backend.forwards == [] and backend.opened == []


@pytest.mark.parametrize("attention", ["block_causal", pytest.param("full", marks=pytest.mark.long)])
def test_an_exported_student_infills_as_in_pytorch(
    attention: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = student(attention=attention)
    save(saved, tmp_path / "student.pt")
    assert export.main(["--ckpt", str(tmp_path / "student.pt")]) == 0
    model, rng = load(tmp_path / "student.bundle"), random.Random(3)
    suffixes = [tiny.prompt(rng, n) for n in (1, 2, 3, 1, 2)]
    requests = [
        Request(tiny.prompt(rng, n), DecodeOptions(1 if len(s) == 3 else 2, suffix=s))
        for n, s in zip((1, 3, 4, 5, 14), suffixes, strict=True)
    ]
    assert isinstance(model.backend, OrtBackend)
    reference = TorchBackend(saved.build(), model.contract, barred=saved.list_missing_ids())
    *_, parity = compare(reference, model.backend, requests, separate=1)
    assert all(check.ok for check in parity.make_checks()) and parity.answers >= len(requests)
    capsys.readouterr()
    words = [str(tmp_path / "student.bundle"), "a b", "--suffix", "b", "--json"]
    assert command.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    gap = BLOCK - 1 if attention == "block_causal" else 8 - 1
    encoded = saved.read_tokenizer().encode
    ids, behind = np.array(encoded("a b").ids), np.array(encoded("b").ids)
    expected = generate(
        TorchBackend(saved.build(), derive_contract(saved)), Request(ids, DecodeOptions(gap, suffix=behind))
    )
    assert tuple(told["token_ids"]) == expected.token_ids and len(behind) == 1


def test_the_python_api_takes_a_suffix_as_text_or_ids_and_shows_the_same(tmp_path: Path) -> None:
    model = load(make_speaking_bundle(tmp_path, "ab", "cdef"))
    answer = model.generate("ab", max_new_tokens=3, suffix="xyz")
    assert (answer.text, answer.result.finish) == ("cde", "length")
    assert (
        model.generate("ab", max_new_tokens=3, suffix=[BYTES + byte for byte in b"xyz"]).result.token_ids
        == answer.result.token_ids
    )
    assert "".join(block.text for block in model.stream("ab", max_new_tokens=3, suffix="xyz")) == "cde"
    [first, *_] = model.steps("ab", max_new_tokens=3, suffix="x")
    assert first.tokens.tolist() == [BYTES + byte for byte in b"cdex"]
    assert model.request("ab", suffix="x").options.max_new_tokens == 40 - 1  # of a full model the whole canvas
    with pytest.raises(UserError, match="request at most 38"):
        model.generate("ab", max_new_tokens=39, suffix="xy")
