"""`blockstep generate --json-schema`: the document, its distributions, and options that go with it or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deciding import make_deciding_bundle

from runtime import load
from runtime.generate import main

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y", None]}, "b": {"type": "boolean"}}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_deciding_bundle(tmp_path_factory.mktemp("deciding")))


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return str(path)


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_document_is_printed_and_with_json_its_distributions(
    bundle: str, schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(bundle, threads=1)
    for words in ([], ["--probability", "ordered"]):
        expected = model.decide("hi", SCHEMA, probability="ordered" if words else "parallel")
        assert main([bundle, "hi", "--json-schema", schema, "--threads", "1", *words]) == 0
        assert capsys.readouterr().out == f"{expected.text}\n"
        assert main([bundle, "hi", "--json-schema", schema, "--threads", "1", "--json", *words]) == 0
        told = printed(capsys)
        assert told["text"] == expected.text and told["value"] == expected.value == json.loads(told["text"])
        assert {name: told[name] for name in expected.as_json()} == json.loads(json.dumps(expected.as_json()))
        assert told["engine"] == model.engine and told["seconds"] > 0 < told["load_seconds"]


def test_a_partial_document_is_said_to_be_one(bundle: str, schema: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [bundle, "hi", "--json-schema", schema, "--max-forwards", "1", "--probability", "ordered"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.out == '{"a":\n' and captured.err.startswith("partial: --max-forwards 1 ended it")
    assert main([*words, "--json"]) == 0
    told = printed(capsys)
    assert told["partial"] is True and told["value"] is None and told["forwards"] == 1


WRONG = [
    (["--json-schema", "SCHEMA", "--show"], "--show has no use with --json-schema"),
    (["--json-schema", "SCHEMA", "--temperature", "1"], "--temperature has no use"),
    (["--json-schema", "SCHEMA", "--seed", "0"], "--seed has no use"),
    (["--json-schema", "SCHEMA", "--max-new-tokens", "9"], "--max-new-tokens has no use"),
    (["--json-schema", "SCHEMA", "--max-forwards", "0"], "not a whole number from 1"),
    (["--probability", "ordered"], "--probability is for decisions"),
    (["--max-forwards", "3"], "--max-forwards is for decisions"),
    (["--json-schema", "/nowhere.json"], "/nowhere.json cannot be read"),
    (["--json-schema", "TEXT"], "is not JSON"),
    (["--json-schema", "TWICE"], "is not JSON ('type' occurs twice in one object); expected a JSON schema"),
    (["--json-schema", "HUGE"], "99999999999999999999... is a whole number of 5000 digits, too many"),
    (["--json-schema", "LIST"], "holds [1]; expected a JSON schema"),
    (["--json-schema", "NUMBER"], "schema.type is"),
]


@pytest.mark.parametrize(("words", "line"), WRONG, ids=[line for _, line in WRONG])
def test_what_does_not_go_with_it_is_one_line(
    words: list[str], line: str, bundle: str, schema: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "TEXT": "{", "LIST": "[1]", "NUMBER": '{"type": "number"}', "HUGE": f'{{"const": {"9" * 5000}}}',
        "TWICE": '{"type": "string", "type": "boolean"}',
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    named = {"SCHEMA": schema, **{name: str(tmp_path / name) for name in files}}
    assert main([bundle, "hi", "--threads", "1", *(named.get(word, word) for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and line in captured.err
