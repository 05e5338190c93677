"""blockstep_decide inside this process: documents and distributions are Python's, mistakes have their line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deciding import deciding_bundle
from native import Opened, needs_tools

from runtime import load
from runtime.capi import build_library

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "é", None]}, "b": {"type": "boolean"}}}

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    needs_tools()
    return Opened(build_library(tmp_path_factory.mktemp("built"))[0])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deciding_bundle(tmp_path_factory.mktemp("deciding"))


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
