"""The C library inside this process: answers, cancelling, errors, the contract; and the command that builds it."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engine_faults
import pytest
from native import BUNDLE, PROMPTS, ROOT, Opened, needs_tools, run
from serving import until
from speaking import every_other, make_speaking_bundle

from runtime import Model, capi, load
from runtime.capi import build_library, main
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_session import SPINNING

ANSWER = "abcdefgh" * 4  # eight blocks of the speaking model


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    needs_tools()
    return Opened(build_library(tmp_path_factory.mktemp("built"))[0])


@pytest.fixture(scope="module")
def student() -> Model:
    return load(BUNDLE, threads=1)


@pytest.fixture(scope="module")
def loaded(opened: Opened) -> Iterator[Any]:
    code, model = opened.load(BUNDLE, threads=1)
    assert code == opened.lib.BLOCKSTEP_OK, opened.error()
    yield model
    assert opened.lib.blockstep_close(model) == opened.lib.BLOCKSTEP_OK


@pytest.fixture
def speaking(opened: Opened, tmp_path: Path) -> Iterator[Any]:
    """A model of one request at a time that answers "ask" with ANSWER."""
    code, model = opened.load(str(make_speaking_bundle(tmp_path, "ask", ANSWER)), threads=1, at_once=1)
    assert code == opened.lib.BLOCKSTEP_OK, opened.error()
    yield model
    opened.lib.blockstep_close(model)


@pytest.mark.native
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("threshold", [None, 0.5, 1.0])
def test_an_answer_is_pythons(
    prompt: str, threshold: float | None, opened: Opened, loaded: Any, student: Model
) -> None:
    given = {} if threshold is None else {"threshold": threshold}
    answer = student.generate(prompt, max_new_tokens=60, **given)
    wanted = {"text": answer.text, **asdict(answer.result)}
    ids = student.tokenizer.encode(prompt).tolist()
    for form in ({"prompt": prompt.encode()}, {"token_ids": ids}):
        got = opened.ask(loaded, max_new_tokens=60, **form, **given)
        assert got.code == opened.lib.BLOCKSTEP_OK and got.error == "" and got.answer is not None
        named = {opened.lib.BLOCKSTEP_EOS: "eos", opened.lib.BLOCKSTEP_LENGTH: "length"}
        assert named[got.answer["finish"]] == wanted["finish"]
        for name in ("text", "token_ids", "steps", "commits", "forwards", "blocks"):
            assert got.answer[name] == wanted[name], name
        assert got.answer["seconds"] > 0


@pytest.mark.native
def test_verify_says_whether_the_engine_computes_what_pytorch_did(opened: Opened, tmp_path: Path) -> None:
    options, lib = opened.ffi.new("blockstep_options *", {"threads": 1}), opened.lib
    assert lib.blockstep_verify(BUNDLE.encode(), options) == lib.BLOCKSTEP_OK and opened.error() == ""
    golden = str(ROOT / "tests" / "golden" / "ort.bundle")
    assert lib.blockstep_verify(golden.encode(), opened.ffi.NULL) == lib.BLOCKSTEP_MISTAKE
    assert "has no recorded reference" in opened.error()
    wrong = shutil.copytree(BUNDLE, tmp_path / "wrong.bundle")
    graph = next(wrong.glob("ort-fp32-*.onnx")).read_bytes()
    engine_faults.put_graph(
        wrong, engine_faults.change_graph(graph, {"layers.0.up_proj.weight": engine_faults.scale()})
    )
    assert lib.blockstep_verify(str(wrong).encode(), options) == lib.BLOCKSTEP_DIFFERS
    assert opened.error().startswith("keys: mean norm of new keys, relative: off by ")
    assert lib.blockstep_verify(opened.ffi.NULL, options) == lib.BLOCKSTEP_MISTAKE


@pytest.mark.native
@pytest.mark.parametrize("sleeping", [0, 1])
def test_threads_spin_or_sleep_as_the_host_says(sleeping: int, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    told, add = [], ort.SessionOptions.add_session_config_entry

    def listen(options: Any, *entry: str) -> None:
        told.append(entry)
        add(options, *entry)

    monkeypatch.setattr(ort.SessionOptions, "add_session_config_entry", listen)
    expected, ok = [(SPINNING, "0")] * sleeping, opened.lib.BLOCKSTEP_OK
    code, model = opened.load(BUNDLE, threads=1, no_allow_spinning=sleeping)
    assert code == ok and [entry for entry in told if entry[0] == SPINNING] == expected, opened.error()
    opened.lib.blockstep_close(model)
    told.clear()
    options = opened.ffi.new("blockstep_options *", {"threads": 1, "no_allow_spinning": sleeping})
    assert opened.lib.blockstep_verify(BUNDLE.encode(), options) == ok
    assert [entry for entry in told if entry[0] == SPINNING] == expected


@pytest.mark.native
def test_blocks_come_as_pythons_stream_has_them(opened: Opened, loaded: Any, student: Model) -> None:
    seen: list[tuple[Any, ...]] = []
    ffi = opened.ffi

    @ffi.callback("int(const blockstep_block *, void *)")
    def on_block(block: Any, user: Any) -> int:
        text = ffi.buffer(block.text, block.text_length)[:].decode()
        seen.append((block.index, tuple(ffi.unpack(block.token_ids, block.token_count)), text, bool(block.last)))
        return int(user != ffi.cast("void *", 7))

    got = opened.ask(loaded, prompt=PROMPTS[0].encode(), on_block=on_block, user=ffi.cast("void *", 7))
    blocks = [(b.index, b.token_ids, b.text, b.result is not None) for b in student.stream(PROMPTS[0])]
    assert seen == blocks and len(seen) > 3
    assert got.answer is not None and got.answer["text"] == "".join(text for _, _, text, _ in seen)


@pytest.mark.native
def test_a_callback_and_a_flag_cancel(opened: Opened, speaking: Any) -> None:
    ffi, calls = opened.ffi, []

    @ffi.callback("int(const blockstep_block *, void *)")
    def leaves(block: Any, user: Any) -> int:
        calls.append(block.index)
        return int(block.index == 2)

    flag = ffi.new("int *")

    @ffi.callback("int(const blockstep_block *, void *)")
    def raises_the_flag(block: Any, user: Any) -> int:
        flag[0] = 1
        return 0

    whole = opened.ask(speaking, prompt=b"ask").answer
    assert whole is not None and whole["text"] == ANSWER
    for on_block, blocks in ((leaves, 3), (raises_the_flag, 1)):
        got = opened.ask(speaking, prompt=b"ask", on_block=on_block, cancel=flag).answer
        assert got is not None and got["finish"] == opened.lib.BLOCKSTEP_CANCELLED
        assert got["text"] == ANSWER[: 4 * blocks] and len(got["token_ids"]) == 4 * blocks
    before = opened.ask(speaking, prompt=b"ask", cancel=flag).answer
    assert before is not None and before["finish"] == opened.lib.BLOCKSTEP_CANCELLED and before["token_ids"] == ()
    assert calls == [0, 1, 2]
    assert opened.ask(speaking, prompt=b"ask").answer is not None  # its one cache came back each time


@pytest.mark.native
def test_a_request_waits_its_turn_and_may_leave_meanwhile(opened: Opened, speaking: Any) -> None:
    ffi, begun, go, flag = opened.ffi, threading.Event(), threading.Event(), opened.ffi.new("int *")

    @ffi.callback("int(const blockstep_block *, void *)")
    def waits(block: Any, user: Any) -> int:
        begun.set()
        return int(not go.wait(30))

    got: dict[str, Any] = {}

    def ask(name: str, **fields: Any) -> threading.Thread:
        thread = threading.Thread(target=lambda: got.update({name: opened.ask(speaking, prompt=b"ask", **fields)}))
        thread.start()
        return thread

    first = ask("first", on_block=waits)
    assert begun.wait(30)
    leaver, patient = ask("leaver", cancel=flag), ask("patient")
    assert not got
    flag[0] = 1
    until(lambda: "leaver" in got)
    assert got["leaver"].answer["finish"] == opened.lib.BLOCKSTEP_CANCELLED and "patient" not in got
    opened.lib.blockstep_close(speaking)  # what is in work ends as it would have
    go.set()
    for thread in (first, leaver, patient):
        thread.join(30)
    assert got["first"].answer["text"] == got["patient"].answer["text"] == ANSWER
    assert opened.ask(speaking, prompt=b"ask").code == opened.lib.BLOCKSTEP_MISTAKE


@pytest.mark.native
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "neither"), ({"prompt": b"a", "token_ids": [1]}, "both"), ({"prompt": b""}, "empty"),
        ({"prompt": b"caf\xe9"}, "not UTF-8 at byte 3"), ({"prompt": b"a", "threshold": 1.5}, "outside [0, 1]"),
        ({"prompt": b"a", "threshold": float("nan")}, "outside [0, 1]"), ({"token_ids": [10**6]}, "1000000"),
        ({"prompt": b"a", "max_new_tokens": -1}, "-1"), ({"prompt": b"a", "max_new_tokens": 10**6}, "1000000"),
    ],
)  # fmt: skip
def test_a_mistaken_request_is_told_in_one_line(fields: dict[str, Any], told: str, opened: Opened, loaded: Any) -> None:
    got = opened.ask(loaded, **fields)
    assert got.code == opened.lib.BLOCKSTEP_MISTAKE and got.answer is None
    assert told in got.error and "\n" not in got.error
    elsewhere: list[str] = []
    thread = threading.Thread(target=lambda: elsewhere.append(opened.error()))
    thread.start()
    thread.join()
    assert elsewhere == [""] and told in opened.error()  # each thread has its own
    assert opened.lib.blockstep_close(opened.ffi.NULL) == opened.lib.BLOCKSTEP_OK and opened.error() == ""


@pytest.mark.native
def test_loading_is_refused_in_one_line(opened: Opened, tmp_path: Path) -> None:
    for options, told in (
        ({"engine": "nope"}, "nope"), ({"threads": -2}, "threads is -2"), ({"at_once": -1}, "at_once is -1"),
        ({"device": "cuda"}, "cuda"),
    ):  # fmt: skip
        code, model = opened.load(BUNDLE, **options)
        assert (code, model) == (opened.lib.BLOCKSTEP_MISTAKE, opened.ffi.NULL)
        assert told in opened.error() and "\n" not in opened.error()
    assert opened.load(str(tmp_path))[0] == opened.lib.BLOCKSTEP_MISTAKE and "manifest.json" in opened.error()
    null = opened.ffi.NULL
    assert opened.lib.blockstep_load(null, null, opened.ffi.new("blockstep_model **")) == opened.lib.BLOCKSTEP_MISTAKE
    assert opened.lib.blockstep_load(BUNDLE.encode(), null, null) == opened.lib.BLOCKSTEP_MISTAKE


@pytest.mark.native
def test_a_model_that_is_not_there_is_told(opened: Opened) -> None:
    lib, ffi = opened.lib, opened.ffi
    code, model = opened.load(BUNDLE, threads=1)
    assert code == lib.BLOCKSTEP_OK and lib.blockstep_close(model) == lib.BLOCKSTEP_OK
    out = ffi.new("const blockstep_contract **")
    for gone in (model, ffi.NULL, ffi.cast("blockstep_model *", 2**40)):
        assert opened.ask(gone, prompt=b"a").code == lib.BLOCKSTEP_MISTAKE and "closed" in opened.error()
        assert lib.blockstep_describe(gone, out) == lib.BLOCKSTEP_MISTAKE and out[0] == ffi.NULL
    assert lib.blockstep_close(model) == lib.BLOCKSTEP_MISTAKE
    assert lib.blockstep_generate(model, ffi.NULL, ffi.NULL) == lib.BLOCKSTEP_MISTAKE


@pytest.mark.native
def test_scores_that_are_no_numbers_have_a_code(opened: Opened, tmp_path: Path) -> None:
    code, model = opened.load(str(make_speaking_bundle(tmp_path, "ask", ANSWER, lambda place: float("nan"))), threads=1)
    assert code == opened.lib.BLOCKSTEP_OK
    got = opened.ask(model, prompt=b"ask")
    assert (got.code, got.answer) == (opened.lib.BLOCKSTEP_NUMERICAL, None) and got.error
    assert opened.ask(model, prompt=b"ask").code == opened.lib.BLOCKSTEP_NUMERICAL  # the cache came back
    opened.lib.blockstep_close(model)


@pytest.mark.native
def test_the_contract_is_the_bundles(opened: Opened, loaded: Any, student: Model) -> None:
    out, c = opened.ffi.new("const blockstep_contract **"), student.contract
    assert opened.lib.blockstep_describe(loaded, out) == opened.lib.BLOCKSTEP_OK
    for name in ("block", "canvas", "capacity", "vocab", "mask_id", "pad_id"):
        assert getattr(out[0], name) == getattr(c, name)
    assert opened.ffi.unpack(out[0].eos_ids, out[0].eos_count) == list(c.eos_ids)
    assert out[0].threshold == student.gate.threshold and out[0].max_prompt == (c.max_prompt or 0)
    told = json.loads(opened.ffi.string(out[0].json))
    assert told["engine"] == student.engine and told["contract"] == {**c.as_dict(), "gate": asdict(student.gate)}
    assert opened.lib.blockstep_version() == opened.lib.BLOCKSTEP_VERSION


@pytest.mark.native
def test_a_chat_template_applies_unless_raw(opened: Opened, tmp_path: Path) -> None:
    bundle = str(make_speaking_bundle(tmp_path, "<ask>", "hello", template="<{{ messages[0].content }}>"))
    code, model = opened.load(bundle, threads=1)
    assert code == opened.lib.BLOCKSTEP_OK, opened.error()
    for fields, text in (({"prompt": b"ask"}, "hello"), ({"prompt": b"<ask>", "raw": 1}, "hello")):
        got = opened.ask(model, **fields)
        assert got.answer is not None and got.answer["text"] == text
    got = opened.ask(model, prompt=b"ask", raw=1)
    assert got.answer is not None and got.answer["text"] != "hello"
    opened.lib.blockstep_close(model)


@pytest.mark.native
def test_an_answer_at_a_temperature_is_pythons(opened: Opened, speaking: Any, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    lib, bundle = opened.lib, make_speaking_bundle(folder, "ask", "a quiet answer", every_other, others="wxyz")
    python = load(bundle, threads=1)
    code, model = opened.load(str(bundle), threads=1)
    assert code == lib.BLOCKSTEP_OK, opened.error()
    texts = set()
    for seed in (0, 1, -5, 2**62):
        got = opened.ask(model, prompt=b"ask", temperature=1.5, seed=seed)
        assert got.code == lib.BLOCKSTEP_OK and got.answer is not None
        assert got.answer["text"] == python.generate("ask", temperature=1.5, seed=seed).text
        texts.add(got.answer["text"])
    drawn = [opened.ask(model, prompt=b"ask", temperature=1.5).answer for _ in range(4)]
    assert len(texts) == 4 and len({answer["text"] for answer in drawn if answer}) > 1
    for fields in ({}, {"temperature": 0.0, "seed": 3}):
        greedy = opened.ask(model, prompt=b"ask", **fields).answer
        assert greedy is not None and greedy["text"] == "a quiet answer"
    lib.blockstep_close(model)
    for temperature, told in ((6.0, "expected 0, for the top-1 tokens, to 5"), (1.0, "export with --top-k 32")):
        got = opened.ask(speaking, prompt=b"ask", temperature=temperature)
        assert (got.code, got.answer) == (lib.BLOCKSTEP_MISTAKE, None) and told in got.error


@pytest.mark.native
def test_structs_are_those_that_hosts_of_version_2_were_compiled_with(opened: Opened) -> None:
    names = ("options", "block", "request", "answer", "contract")
    sizes = [opened.ffi.sizeof(f"blockstep_{name}") for name in names]
    assert opened.lib.blockstep_version() == 2 and sizes == [40, 40, 64, 72, 72], sizes


@pytest.mark.native
def test_an_answer_holds_characters_of_several_bytes_and_zeros(opened: Opened, tmp_path: Path) -> None:
    said = "né\0日本 \N{SPARKLES}!"
    code, model = opened.load(str(make_speaking_bundle(tmp_path, "ask", said)), threads=1)
    assert code == opened.lib.BLOCKSTEP_OK
    got = opened.ask(model, prompt=b"ask")
    assert got.answer is not None and got.answer["text"] == said
    opened.lib.blockstep_close(model)


def test_the_command_refuses_what_it_cannot_build_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []

    def refused() -> None:
        assert main(["--out", str(tmp_path / "new")]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        told.append(err)

    with monkeypatch.context() as patch:
        patch.setattr(capi.sysconfig, "get_path", lambda name: str(tmp_path))
        refused()
    with monkeypatch.context() as patch:
        patch.setattr(capi, "find_python_flags", list)
        patch.setenv("CC", "no-such-compiler -O2")
        refused()
        patch.setenv("CC", sys.executable)
        patch.setitem(sys.modules, "cffi", None)
        refused()
    assert "Python.h" in told[0] and "no-such-compiler" in told[1] and "blockstep[capi]" in told[2]
    assert not list(tmp_path.glob("new/*"))


def test_the_header_and_the_c_source_agree_with_the_python_behind_them(tmp_path: Path) -> None:
    capi.write_source(tmp_path / "library.c")
    source = (tmp_path / "library.c").read_text(encoding="utf-8")
    assert f'#define BUILT_IN_PACKAGE "{ROOT / "runtime"}"' in source and "Py_InitializeFromConfig" in source
    assert capi.read_declarations().count("blockstep_") > 20 and "BLOCKSTEP_PUBLIC" not in capi.read_declarations()


@pytest.mark.native
def test_the_header_is_strict_c_and_cpp(tmp_path: Path) -> None:
    needs_tools()
    for name, standard in (("it.c", "c99"), ("it.cpp", "c++11")):
        (tmp_path / name).write_text('#include "blockstep.h"\nint main(void) { return blockstep_version() != 2; }\n')
        compiler = "cc" if name == "it.c" else "c++"
        flags = [f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{capi.SOURCES}"]
        done = run(compiler, *flags, tmp_path / name)
        assert done.returncode == 0, done.stderr
