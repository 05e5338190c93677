"""The first load of a bundle: what would crash, hang or swell here does so in a child and is told in one line."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import generate, interpreter, load_check
from runtime.bundle import trust_records
from runtime.bundle.store import read
from runtime.errors import UserError
from runtime.open_bundle import load

pytestmark = pytest.mark.process

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
    attempt = load_check.attempt
    monkeypatch.setattr(load_check, "attempt", lambda *given: (tried.append(given), attempt(*given)))
    answers = [load(bundle).generate([5, 6], max_new_tokens=8).result.token_ids for _ in range(2)]
    assert len(tried) == 1 and answers[0] == answers[1]
    assert len(trust_records.read_seen()) == 3  # the graph, the tokenizer, the template
    load(bundle, verify="always")
    assert len(tried) == 2


def test_a_file_that_is_refused_is_not_remembered(bundle: Path) -> None:
    put(bundle, "tokenizer", b"{}")
    for _ in range(2):
        assert "is not a tokenizer" in refusal(lambda: load(bundle))
    assert trust_records.read_seen() == {}


def test_a_template_that_does_not_end_is_stopped(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_check, "SECONDS", 1)
    put(bundle, "chat_template", b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    assert "computed for more than 1 s in the isolated load check" in refusal(lambda: load(bundle))


def test_a_template_that_takes_all_memory_is_stopped(bundle: Path) -> None:
    put(bundle, "chat_template", b"{{ 'a' * 10 ** 10 }}")
    assert "MB of memory in the isolated load check" in refusal(lambda: load(bundle))


def test_a_template_that_was_not_rendered_without_jinja2_is_tried_once_jinja2_is_there(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_check, "SECONDS", 1)
    put(bundle, "chat_template", b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    bare, tried = bundle.parent / "bare", []
    (bare / "jinja2").mkdir(parents=True)
    (bare / "jinja2" / "__init__.py").write_text("raise ImportError('not here')")
    attempt = load_check.attempt
    monkeypatch.setattr(load_check, "attempt", lambda *given: (tried.append(given), attempt(*given))[1])
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "jinja2", None)
        patched.setattr(sys, "path", [str(bare), *sys.path])
        load(bundle), load(bundle)
    assert len(tried) == 1  # known, as far as it could be tried
    assert "computed for more than 1 s in the isolated load check" in refusal(lambda: load(bundle))
    put(bundle, "chat_template", b"{{ messages[0].content }}")
    load(bundle), load(bundle)
    assert len(tried) == 3


def child(code: str) -> str:
    """The code of a child that has come as far as the bundle."""
    return f"import os, time; print({interpreter.MARK!r}, flush=True); {code}"


def test_what_crashes_is_told_by_its_signal(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_check, "CHILD", child("os.kill(os.getpid(), 11)"))
    told = refusal(lambda: load(bundle))
    assert (
        told.startswith(f"engine ort-fp32 of {bundle} crashed (SIGSEGV) in the isolated load check")
        and trust_records.read_seen() == {}
    )
    for verdict in ("no word", f"{interpreter.MARK}no word", f"{interpreter.MARK}[]"):
        monkeypatch.setattr(load_check, "CHILD", child(f"print({verdict!r}); raise SystemExit('broken')"))
        assert "broken) in the isolated load check" in refusal(lambda: load(bundle))
    monkeypatch.setattr(load_check, "CHILD", child("time.sleep(60)"))
    monkeypatch.setattr(load_check, "SECONDS", 1)
    monkeypatch.setattr(load_check, "PATIENCE", 0.2)
    assert "did not end within 0.2 s in" in refusal(lambda: load(bundle))


@pytest.mark.parametrize("name", load_check.OUTSIDE)
def test_a_child_that_was_ended_from_outside_is_no_word_against_the_bundle(
    name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = int(getattr(signal, name))
    monkeypatch.setattr(load_check, "CHILD", child(f"import signal; signal.signal({number}, signal.SIG_DFL)"
        f"if {number} != 9 else 0; os.kill(os.getpid(), {number})"))  # fmt: skip
    told = refusal(lambda: load(bundle))
    assert f"ended from outside ({name})" in told and "harm" not in told and trust_records.read_seen() == {}


def test_the_command_says_one_line_and_ends_with_2(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(bundle, "model", b"no graph")
    assert generate.main([str(bundle), "--token-ids", "5"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "cannot load" in err


def test_a_host_that_is_no_python_or_has_odd_paths_of_modules_has_the_bundle_tried(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/tmp"), b"/tmp", None, 3, "/tmp/\udcff"])
    made = read(bundle)
    for executable in ("/bin/ls", "", None, str(bundle / "python"), str(bundle)):
        monkeypatch.setattr(sys, "executable", executable)
        assert load_check.attempt(made, made.find_engine())


def test_a_bundle_that_no_python_tries_is_loaded_with_one_warning_and_tried_the_next_time(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(GOLDEN / "ort.bundle").generate([5, 6], max_new_tokens=8).result.token_ids
    with monkeypatch.context() as patched:
        patched.setattr(interpreter, "list_interpreters", lambda: ["/bin/ls", "/bin/false"])
        with pytest.warns(UserWarning, match=r"without an isolated load check \(/bin/false ended with 1\)") as warned:
            assert load(bundle).generate([5, 6], max_new_tokens=8).result.token_ids == expected
        assert len(warned) == 1
    hashed, tried = [], []
    monkeypatch.setattr("runtime.bundle.store.hash_file", lambda file: hashed.append(file))
    monkeypatch.setattr(load_check, "attempt", lambda *given: tried.append(given) or True)
    load(bundle), load(bundle)
    assert len(tried) == 1 and not hashed


def test_what_breaks_before_the_bundle_is_opened_is_no_word_against_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = read(bundle)
    for code in ("import os; os.kill(os.getpid(), 11)", "import nothing", "raise SystemExit(0)"):
        monkeypatch.setattr(load_check, "CHILD", code)
        with pytest.warns(UserWarning, match="without an isolated load check"):
            assert not load_check.attempt(made, made.find_engine())


def test_nothing_is_tried_in_a_frozen_program(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    made = read(bundle)
    assert not load_check.attempt(made, made.find_engine())


def test_limits_that_the_host_has_already_are_no_word_against_a_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tmp_path / "python-host"
    host.write_text(f'#!/bin/sh\nulimit -t 30; exec "{sys.executable}" "$@"\n')
    host.chmod(0o755)
    monkeypatch.setattr(interpreter, "list_interpreters", lambda: [str(host)])
    made = read(bundle)
    assert load_check.attempt(made, made.find_engine())


def test_large_stacks_of_threads_are_no_word_against_a_bundle(bundle: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    large = 2 << 30
    if hard != resource.RLIM_INFINITY and hard < large:
        pytest.skip("the stack's limit cannot be raised here")
    made = read(bundle)
    resource.setrlimit(resource.RLIMIT_STACK, (large, hard))
    try:
        assert load_check.attempt(made, made.find_engine(), 4)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def test_a_working_directory_is_not_imported_from(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle.parent / "json.py").write_text("raise SystemExit('theirs')")
    monkeypatch.chdir(bundle.parent)
    made = read(bundle)
    load_check.attempt(made, made.find_engine())


def test_signals_have_names() -> None:
    assert load_check.name_signal(signal.SIGSEGV) == "SIGSEGV" and load_check.name_signal(99) == "signal 99"
