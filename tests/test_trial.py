"""The first load of a bundle: what would crash, hang or swell here does so in a child and is told in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import generate, memory, trial
from runtime.bundle import read
from runtime.errors import UserError
from runtime.model import load

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a bundle that this user's memory does not know."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(GOLDEN / "ort.bundle", tmp_path / "a.bundle")
    return tmp_path / "a.bundle"


def put(bundle: Path, part: str, content: bytes) -> None:
    """Puts another content into a bundle under its hash: `model`, `tokenizer` or `chat_template`."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    engine = manifest["engines"][0]
    place = {"file": engine["model"]} if part == "model" else manifest[part]
    name = place["file"]
    (bundle / name).write_bytes(content)
    if part == "model":
        engine["files"][name] = digest
    else:
        manifest[part]["sha256"] = digest
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_bundle_is_tried_once_and_then_known(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    attempt = trial.attempt
    monkeypatch.setattr(trial, "attempt", lambda *given: (tried.append(given), attempt(*given)))
    answers = [load(bundle).generate([5, 6], max_new_tokens=8).token_ids for _ in range(2)]
    assert len(tried) == 1 and answers[0] == answers[1]
    assert len(memory.seen()) == 3  # the graph, the tokenizer, the template
    load(bundle, verify="always")
    assert len(tried) == 2


def test_a_file_that_is_refused_is_not_remembered(bundle: Path) -> None:
    put(bundle, "tokenizer", b"{}")
    for _ in range(2):
        assert "is no tokenizer" in refusal(lambda: load(bundle))
    assert memory.seen() == {}


def test_a_template_that_does_not_end_is_stopped(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 1)
    put(bundle, "chat_template", b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    assert "computed for more than 1 s when it was tried in a process of its own" in refusal(lambda: load(bundle))


def test_a_template_that_takes_all_memory_is_stopped(bundle: Path) -> None:
    put(bundle, "chat_template", b"{{ 'a' * 10 ** 10 }}")
    assert "MB of memory when it was tried in a process of its own" in refusal(lambda: load(bundle))


def test_what_crashes_is_told_by_its_signal(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(trial, "CHILD", crash)
    told = refusal(lambda: load(bundle))
    assert told.startswith(f"engine ort-fp32 of {bundle} crashed (SIGSEGV) when") and memory.seen() == {}
    monkeypatch.setattr(trial, "CHILD", "print('no word'); raise SystemExit('broken')")
    assert "failed (broken) when" in refusal(lambda: load(bundle))
    monkeypatch.setattr(trial, "CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(trial, "SECONDS", 1)
    monkeypatch.setattr(trial, "PATIENCE", 0.2)
    assert "did not end within 0.2 s when" in refusal(lambda: load(bundle))


def test_the_command_says_one_line_and_ends_with_2(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(bundle, "model", b"no graph")
    assert generate.main([str(bundle), "--token-ids", "5"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "cannot load" in err


def test_nothing_is_tried_where_no_child_can_be_started(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHILD", "raise SystemExit(3)")
    made = read(bundle)
    for patch in (("executable", ""), ("executable", str(bundle / "none")), ("frozen", True)):
        with monkeypatch.context() as patched:
            patched.setattr(sys, *patch, raising=False)
            trial.attempt(made, made.engine())
    refusal(lambda: trial.attempt(made, made.engine()))


def test_a_working_directory_is_not_imported_from(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle.parent / "json.py").write_text("raise SystemExit('theirs')")
    monkeypatch.chdir(bundle.parent)
    made = read(bundle)
    trial.attempt(made, made.engine())


def test_signals_have_names() -> None:
    assert trial.ending(signal.SIGSEGV, 7) == "crashed (SIGSEGV)" and trial.ending(99, 7) == "crashed (signal 99)"
    assert trial.ending(signal.SIGXCPU, 7) == "computed for more than 7 s"
