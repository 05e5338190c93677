"""The three modes from the outside: Python, sessions, the commands, C, the server, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from native import Opened, needs_tools
from serving import Served, served
from test_decoding_causal import KINDS, PERIOD, learned

from export import onnx as export
from runtime import bench, generate, load, serve
from runtime.capi import build_library
from runtime.errors import UserError
from runtime.model import Model
from runtime.perf import latency
from train import calibrate
from train.storage.student_pt import read, save
from train.torch_backend import TorchBackend, derive_contract

MODES = ("block", "speculative", "causal")
TAUGHT = [5, 9, 7]


def write_bundle(folder: Path) -> Path:
    """The bundle of a student.pt beside it, of the model that learned periodic text."""
    own = {name: value for name, value in KINDS["shifted"].items() if name != "modes"}
    made = tiny.checkpoint(config=tiny.shape(0), modes=MODES, gate={"threshold": 0.5}, **own)
    path, out = folder / "student.pt", folder / "student.bundle"
    save(replace(made, weights=dict(learned("shifted").state_dict())), path)
    assert export.main(["--ckpt", str(path), "--capacity", "48", "--top-k", "8", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return load(bundle, threads=1)


def prompts(count: int) -> Iterator[list[int]]:
    rng = random.Random(0)
    for number in range(count):
        unit = [rng.randrange(3, tiny.VOCAB) for _ in range(PERIOD)]
        yield (unit * 9)[: PERIOD + number % 9]


def test_the_modes_are_read_back_from_the_checkpoint_and_the_bundle(bundle: Path, model: Model) -> None:
    assert read(bundle.with_suffix(".pt")).decoding.modes == model.contract.modes == MODES


def test_speculative_answers_are_the_causal_ones_in_fewer_forward_passes(model: Model) -> None:
    fewer = 0
    for ids in prompts(40):
        found = {mode: model.generate(ids, max_new_tokens=16, mode=mode).result for mode in MODES}
        assert found["speculative"].token_ids == found["causal"].token_ids
        assert model.generate(ids, max_new_tokens=16).result.token_ids == found["block"].token_ids
        fewer += found["causal"].forwards - found["speculative"].forwards
    assert fewer > 0
    drawn = [model.generate([5, 6], max_new_tokens=9, temperature=1.0, seed=4, mode=mode) for mode in MODES[1:]]
    assert drawn[0].result.token_ids == drawn[1].result.token_ids


def test_a_session_keeps_a_prefix_of_any_length_whatever_the_mode(model: Model) -> None:
    session, text = model.session(), TAUGHT * 3
    for mode in (*MODES, *reversed(MODES)):
        text = [*text, 6]
        kept = session.generate(text, max_new_tokens=9, mode=mode).result
        assert kept.token_ids == model.generate(text, max_new_tokens=9, mode=mode).result.token_ids
        held = session._session._last[1].sequence.past  # type: ignore[union-attr, index]
        assert held >= len(text) - 1
        text = [*text, *kept.token_ids[:3]]


def test_streamed_blocks_are_the_answer_and_steps_count_forwards(model: Model) -> None:
    for mode in MODES:
        blocks = list(model.stream(TAUGHT * 2, max_new_tokens=14, mode=mode))
        result = blocks[-1].result
        assert result is not None and sum((block.token_ids for block in blocks), ()) == result.token_ids
        last = list(model.steps(TAUGHT * 2, max_new_tokens=14, mode=mode))[-1]
        assert (last.steps, last.forwards) == (result.steps, result.forwards)


def told(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert generate.main([*map(str, words), "--json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_generate_takes_a_mode_and_shows_its_rounds(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (bundle, "--token-ids", "5,9,7,5,9,7", "--max-new-tokens", 12)
    found = {mode: told(capsys, *words, "--mode", mode) for mode in MODES}
    assert found["speculative"]["token_ids"] == found["causal"]["token_ids"]
    assert found["speculative"]["forwards"] < found["causal"]["forwards"] == 11
    assert generate.main([*map(str, words), "--mode", "speculative", "--show"]) == 0
    shown = capsys.readouterr().err
    assert sum(line.startswith("step ") for line in shown.splitlines()) == found["speculative"]["forwards"]
    assert "one token per step takes at least 11 forward passes" in shown
    assert generate.main([*map(str, words), "--mode", "causal", "--threshold", "0.5"]) == 2
    assert "a threshold was given with mode causal, which has no gate" in capsys.readouterr().err


def test_a_mode_that_a_model_cannot_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tiny.checkpoint(), tmp_path / "student.pt")
    assert export.main(["--ckpt", str(tmp_path / "student.pt"), "--out", str(tmp_path / "b"), "--capacity", "32"]) == 0
    capsys.readouterr()
    assert generate.main([str(tmp_path / "b"), "--token-ids", "5", "--mode", "causal"]) == 2
    error = capsys.readouterr().err
    assert error.strip() == "error: mode is 'causal'; this model decodes in the mode block"


@pytest.mark.parametrize("kind", KINDS)
def test_bench_times_what_each_mode_repeats(kind: str) -> None:
    checkpoint = tiny.checkpoint(**KINDS[kind] | {"modes": tuple(KINDS[kind]["modes"])})
    backend = TorchBackend(checkpoint.build(), derive_contract(checkpoint))
    names = {row.forward for row in latency.time_forwards(backend, repeat=1, warmup=0)}
    block = {"step", "step, half open", "commit"} if kind != "idlm" else set()
    assert names == block | {"verification", "token", "prefill"} | ({"fused step"} if kind == "shifted" else set())
    assert latency.make_commit(backend.contract, 8).visible.tolist() == [[9, 10, 11, 12]]
    if kind == "idlm":
        assert latency.make_verification(backend.contract, 8).input_ids.shape == (1, 7)


def test_bench_answers_in_a_mode(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(bundle), "--repeat", "1", "--warmup", "0", "--prompt", "%#", "--max-new-tokens", "6", "--json"]
    for mode in MODES:
        assert bench.main([*words, "--mode", mode]) == 0
        assert json.loads(capsys.readouterr().out)["answers"]["tokens"]["median"] >= 1


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    needs_tools()
    return Opened(build_library(tmp_path_factory.mktemp("built"))[0])


@pytest.mark.native
def test_c_takes_a_mode(opened: Opened, bundle: Path, model: Model) -> None:
    code, loaded = opened.load(str(bundle), threads=1, at_once=1)
    assert code == opened.lib.BLOCKSTEP_OK, opened.error()
    try:
        for mode in MODES:
            got = opened.ask(loaded, token_ids=TAUGHT * 2, max_new_tokens=12, mode=mode.encode())
            right = model.generate(TAUGHT * 2, max_new_tokens=12, mode=mode).result
            assert got.answer is not None and got.answer["token_ids"] == right.token_ids
            assert got.answer["forwards"] == right.forwards
        for fields, expected in (
            ({"mode": b"fast"}, "mode is 'fast'"),
            ({"mode": b"causal", "size": 4}, "a size that"),
        ):
            got = opened.ask(loaded, token_ids=TAUGHT, **fields)
            assert got.code == opened.lib.BLOCKSTEP_MISTAKE and expected in got.error
        older = opened.ffi.offsetof("blockstep_decoding", "mode")  # a host that knows no mode has the model's own
        got = opened.ask(loaded, token_ids=TAUGHT * 2, max_new_tokens=12, mode=b"causal", size=older)
        assert (
            got.answer is not None
            and got.answer["token_ids"] == model.generate(TAUGHT * 2, max_new_tokens=12).result.token_ids
        )
    finally:
        opened.lib.blockstep_close(loaded)


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Served]:
    with served(model) as running:
        yield running


def completion(server: Served, ids: Sequence[int], **fields: Any) -> dict[str, Any]:
    reply = server.post({"prompt": [*ids], "max_tokens": 12, **fields})
    assert reply.status_code == 200, reply.text
    values: dict[str, Any] = reply.json()
    return values


def test_a_server_takes_a_mode_with_each_request(server: Served, model: Model) -> None:
    for ids in prompts(6):
        for mode in (*MODES, None):
            answer = model.generate(ids, max_new_tokens=12, mode=mode)
            got = completion(server, ids, **({} if mode is None else {"mode": mode}))
            assert got["choices"][0]["text"] == answer.text
            own = got["usage"]["blockstep"] if "blockstep" in got["usage"] else got["blockstep"]
            assert own["forwards"] == answer.result.forwards
    for fields, param in (
        ({"mode": "fast"}, "mode"),
        ({"mode": 3}, "mode"),
        ({"mode": "causal", "threshold": 0.5}, "threshold"),
    ):
        reply = server.post({"prompt": TAUGHT, **fields})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == param, reply.text


@pytest.fixture(scope="module")
def ungated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without the mode block, and its bundle beside it."""
    folder = tmp_path_factory.mktemp("ungated")
    save(tiny.checkpoint(**KINDS["idlm"] | {"modes": MODES[1:]}), folder / "student.pt")
    words = ["--ckpt", str(folder / "student.pt"), "--out", str(folder / "student.bundle"), "--capacity", "32"]
    assert export.main(words) == 0
    return folder / "student.bundle"


def test_a_threshold_for_a_model_without_a_gated_mode_is_refused(
    ungated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert serve.main([str(ungated), "--port", "0", "--adaptive-threshold", "0.5:0.9"]) == 2
    expected = "error: --adaptive-threshold was given, but this model has no mode with a gate; leave it out\n"
    assert capsys.readouterr().err.endswith(expected)
    report = {"task": "math", "split": "valid", "seed": 0, "per_problem": {"right": [1], "forwards": [3]}}
    (tmp_path / "teacher.json").write_text(json.dumps(report), encoding="utf-8")
    words = ["--ckpt", str(ungated.with_suffix(".pt")), "--teacher-report", str(tmp_path / "teacher.json")]
    assert calibrate.main(words) == 2
    assert "has no gate; nothing to calibrate" in capsys.readouterr().err


def test_a_server_shows_no_threshold_of_a_model_without_a_gated_mode(ungated: Path, bundle: Path) -> None:
    for path, threshold in ((ungated, None), (bundle, 0.5)):
        made = serve.open_service([str(path), "--threads", "1"])
        assert (made.make_card()["blockstep"]["threshold_most"] is None) == (threshold is None)
        shown = [
            line
            for line in made.counters.format_page()[0].decode().splitlines()
            if line.startswith("blockstep_threshold ")
        ]
        made.workers.close()
        assert [float(line.split()[1]) for line in shown] == ([] if threshold is None else [threshold])


def test_a_server_has_room_for_what_the_mode_has_room_for(server: Served, model: Model) -> None:
    capacity = model.contract.capacity
    for mode in MODES:
        for length in range(capacity - model.contract.block, capacity + 1):
            ids = (TAUGHT * capacity)[:length]
            reply = server.post({"prompt": ids, "mode": mode})
            try:
                right = model.generate(ids, mode=mode)
            except UserError as error:
                assert reply.status_code == 400 and str(error) in reply.json()["error"]["message"], (mode, length)
            else:
                assert reply.status_code == 200, (mode, length, reply.text)
                assert reply.json()["choices"][0]["text"] == right.text


def test_streamed_text_and_log_probabilities_come_in_every_mode(server: Served, model: Model) -> None:
    for mode in MODES:
        whole = completion(server, TAUGHT * 2, mode=mode, logprobs=0)
        body = {"prompt": TAUGHT * 2, "max_tokens": 12, "mode": mode, "stream": True, "stream_canvas": True}
        lines = [line[6:] for line in server.post(body).text.splitlines() if line.startswith("data: {")]
        parts = [json.loads(line) for line in lines]
        text = "".join(choice["text"] for part in parts for choice in part["choices"])
        assert text == whole["choices"][0]["text"]
        assert len(whole["choices"][0]["logprobs"]["tokens"]) > 0


def test_options_in_python_name_what_is_wrong(model: Model) -> None:
    with pytest.raises(UserError, match="mode is 'fast'"):
        model.generate(TAUGHT, mode="fast")
    with pytest.raises(UserError, match="a suffix was given with mode speculative"):
        model.generate(TAUGHT, mode="speculative", suffix=[4])
