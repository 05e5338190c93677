"""blockstep_decide, inside this process and in samples/c/decide.c: Python's documents and distributions, mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deciding import make_deciding_bundle
from native import BUNDLE, Opened, make_samples, needs_tools, run

from runtime import load

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "é", None]}, "b": {"type": "boolean"}}}

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library and samples/c/decide.c."""
    needs_tools()
    return make_samples(tmp_path_factory.mktemp("built"), "decide")


@pytest.fixture(scope="module")
def opened(built: Path) -> Opened:
    return Opened(built / "libblockstep.so")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_deciding_bundle(tmp_path_factory.mktemp("deciding"))


@pytest.fixture(scope="module")
def loaded(opened: Opened, bundle: Path) -> Iterator[Any]:
    code, model = opened.load(str(bundle), threads=1)
    assert code == opened.lib.BLOCKSTEP_OK, opened.error()
    yield model
    assert opened.lib.blockstep_close(model) == opened.lib.BLOCKSTEP_OK


def decide(
    opened: Opened, model: Any, schema: Any, request: dict[str, Any], deciding: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any] | None]:
    """The code, and what there is of a decision."""
    ffi, lib = opened.ffi, opened.lib
    kept = {key: ffi.new("char[]", v.encode()) if isinstance(v, str) else v for key, v in request.items()}
    asked, out = ffi.new("blockstep_request *", kept), ffi.new("blockstep_decision **")
    options = ffi.NULL
    if deciding is not None:
        own = {key: ffi.new("char[]", v.encode()) if isinstance(v, str) else v for key, v in deciding.items()}
        options = ffi.new("blockstep_deciding *", {"size": ffi.sizeof("blockstep_deciding"), **own})
    text = ffi.NULL if schema is None else ffi.new("char[]", schema.encode())
    code = lib.blockstep_decide(model, asked, text, options, out)
    if out[0] == ffi.NULL:
        return code, None
    made = out[0]
    assert ffi.string(made.json) == ffi.buffer(made.json, made.json_length)[:]
    seen = {
        "text": ffi.buffer(made.text, made.text_length)[:].decode(), "json": json.loads(ffi.string(made.json)),
        "forwards": made.forwards, "partial": bool(made.partial), "seconds": made.seconds,
    }  # fmt: skip
    lib.blockstep_free_decision(made)
    return code, seen


@pytest.mark.parametrize("probability", [None, "parallel", "ordered"])
def test_a_decision_is_pythons(opened: Opened, loaded: Any, bundle: Path, probability: str | None) -> None:
    model = load(bundle, threads=1)
    expected = model.decide("hi", SCHEMA, probability=probability or "parallel")  # type: ignore[arg-type]
    options = None if probability is None else {"probability": probability}
    ids = model.request("hi").prompt.tolist()
    for request in ({"prompt": "hi"}, {"token_ids": opened.ffi.new("int64_t[]", ids), "token_count": len(ids)}):
        code, seen = decide(opened, loaded, json.dumps(SCHEMA), request, options)
        assert code == opened.lib.BLOCKSTEP_OK and seen is not None, opened.error()
        assert seen["text"] == expected.text and seen["json"] == json.loads(json.dumps(expected.as_json()))
        assert (seen["forwards"], seen["partial"]) == (expected.forwards, False) and seen["seconds"] > 0


def test_a_partial_or_cancelled_decision_is_marked(opened: Opened, loaded: Any) -> None:
    options = {"probability": "ordered", "max_forwards": 1}
    code, seen = decide(opened, loaded, json.dumps(SCHEMA), {"prompt": "hi"}, options)
    assert code == 0 and seen is not None and seen["partial"] and seen["text"] == '{"a":' and seen["forwards"] == 1
    cancel = opened.ffi.new("int *", 1)
    code, seen = decide(opened, loaded, json.dumps(SCHEMA), {"prompt": "hi", "cancel": cancel})
    assert code == 0 and seen is not None and seen["partial"] and seen["text"] == "" and seen["forwards"] == 0


def test_mistakes_have_their_line(opened: Opened, loaded: Any) -> None:
    request, text = {"prompt": "hi"}, json.dumps(SCHEMA)
    wrong: list[tuple[Any, dict[str, Any], dict[str, Any] | None, str]] = [
        (None, request, None, "request, schema or decision is NULL"),
        ("{", request, None, "schema is not JSON"),
        ('{"enum": ["a"], "enum": ["b"]}', request, None, "schema is not JSON ('enum' occurs twice in one object)"),
        (f'{{"const": {"9" * 5000}}}', request, None, "9... is a whole number of 5000 digits, too many"),
        ("[]", request, None, "schema is '[]'; expected a JSON schema"),
        ('{"type": "number"}', request, None, "schema.type is"),
        (text, {}, None, "the request has neither prompt and token_ids"),
        (text, {**request, "max_new_tokens": 3}, None, "max_new_tokens or on_block is given"),
        (text, request, {"probability": "both"}, "probability is 'both'"),
        (text, request, {"max_forwards": -1}, "max_forwards is -1"),
        (text, request, {"size": 1}, "deciding has a size"),
    ]
    for schema, asked, options, line in wrong:
        code, seen = decide(opened, loaded, schema, asked, options)
        assert code == opened.lib.BLOCKSTEP_MISTAKE and seen is None and line in opened.error(), opened.error()
    opened.lib.blockstep_free_decision(opened.ffi.NULL)


HARD = {
    "type": "object",
    "properties": {
        'a"]}, \\': {"enum": ["x{", 'y"\\', "é", None]},
        "free": {"type": "string", "maxLength": 3},
        "value": {
            "type": "object",
            "properties": {"path": {"type": "boolean"}, "confidence": {"enum": [[1, {}], 2.5]}},
        },
    },
}


def test_a_schema_may_begin_with_a_bom(opened: Opened, loaded: Any) -> None:
    plain = decide(opened, loaded, json.dumps(SCHEMA), {"prompt": "hi"})[1]
    code, seen = decide(opened, loaded, "\ufeff" + json.dumps(SCHEMA), {"prompt": "hi"})
    assert code == opened.lib.BLOCKSTEP_OK and plain is not None and seen is not None, opened.error()
    assert seen["text"] == plain["text"]


@pytest.mark.parametrize("schema", [HARD, {"enum": ["math", "code"]}, {"type": "object", "properties": {}}])
def test_the_c_sample_prints_pythons_decision(schema: Any, built: Path, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema), encoding="utf-8")
    done = run(built / "decide", bundle, "hi", file, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    expected = load(bundle, threads=1).decide("hi", schema)
    text, *lines = done.stdout.splitlines()
    assert text == expected.text and len(lines) == len(expected.fields)
    for line, field in zip(lines, expected.fields, strict=True):
        start = f"{json.dumps(list(field.path))} {json.dumps(field.value)} "
        assert line.startswith(start)
        assert json.loads(line[len(start) :]) == (field.confidence and pytest.approx(field.confidence, abs=1e-5))


def test_the_c_sample_ends_a_mistake_in_one_line(built: Path, bundle: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "schema.json", tmp_path / "bad.json"
    good.write_text(json.dumps(SCHEMA), encoding="utf-8")
    for words, line in (
        ((bundle, "hi"), "expected BUNDLE, PROMPT and SCHEMA.json"),
        ((bundle, "hi", tmp_path / "none.json"), "none.json (No such file or directory); expected a file with a JSON"),
        ((bundle, "hi", tmp_path), f"cannot read {tmp_path} (Is a directory)"),
        ((tmp_path / "none.bundle", "hi", good), "none.bundle: expected a folder with manifest.json"),
        ((bundle, "", good), "the prompt is empty"),
        ((BUNDLE, "hi", good), "gives no log-probabilities of candidates, which decisions are made of; export it with"),
        ((BUNDLE, "hi", good), "--candidates 64"),
    ):
        done = run(built / "decide", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("error: ") and line in done.stderr
    for content, line in (
        (b"", "schema is not JSON"), (b"{}\0{}", "bad.json has a zero byte"), (b" " * (2 << 20), "1048576 bytes"),
        (b'{"type": "number"}', "schema.type is"), (b'{"const": "\xe9"}', "schema is not UTF-8 at byte 11"),
    ):  # fmt: skip
        bad.write_bytes(content)
        done = run(built / "decide", bundle, "hi", bad)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("error: ") and line in done.stderr
