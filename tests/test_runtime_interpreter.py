"""Another Python process: what runs its code, and hosts and environments that are in its way."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import interpreter
from runtime.interpreter import MARK, NotReached, list_interpreters, run_code

ECHO = f"import sys; print({MARK!r}, flush=True); print({MARK!r} + sys.stdin.read())"


def script(folder: Path, text: str) -> str:
    """The path of a host that runs these lines of the shell; $PYTHON is this Python."""
    path = folder / "python-host"
    path.write_text(f"#!/bin/sh\nPYTHON='{sys.executable}'\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("host", ['printf noise; exec "$PYTHON" "$@"', 'PYTHONHOME=/none exec "$PYTHON" "$@"'])
def test_the_code_reads_what_it_is_given_and_reports_in_spite_of(host: str, tmp_path: Path) -> None:
    given = "x" * (interpreter.LINE - 100)
    done = run_code(script(tmp_path, host), ECHO, given, 60)
    assert done.code == 0 and done.report == given


def test_the_end_of_stderr_is_kept_and_a_limit_of_time_is_told_apart_from_an_end() -> None:
    done = run_code(
        sys.executable, f"print({MARK!r}, flush=True); raise SystemExit('a\\nb' + 'x' * 10 ** 6 + 'end')", "", 60
    )
    assert done.code == 1 and done.report is None and len(done.error_text) == 300 and done.error_text.endswith("xend")
    hung = run_code(sys.executable, f"print({MARK!r}, flush=True); import time; time.sleep(60)", "", 0)
    assert hung.code is None and hung.report is None


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("exec sleep 60", "did not run it within"),
        ("exec >&-; exec sleep 60", "did not run it within"),
        ("yes | head -c 5000000; yes | head -c 5000000 >&2; exit 3", "ended with 3: .*y y"),
        ("exit 0", "ended with 0"),
        ("kill -9 $$", "ended with -9"),
        ("sleep 5 & exit 4", "ended with 4"),
        ('exec "$PYTHON" -c "import nothing"', "ended with 1: .*No module named 'nothing'"),
    ],
)
def test_a_host_that_does_not_run_the_code_is_told_so(
    host: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in host:
        monkeypatch.setattr(interpreter, "GREETING", 0.1)
        monkeypatch.setattr(interpreter, "CLOSING", 0.1)
    with pytest.raises(NotReached, match=reason):
        run_code(script(tmp_path, host), ECHO, "x" * 10**6, 60)


def test_no_child_is_left_by_ctrl_c_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    class Remembered(interpreter.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **rest: Any) -> None:
            super().__init__(*args, **rest)
            begun.append(self)

    class Interrupted(interpreter.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    monkeypatch.setattr(interpreter, "Popen", Remembered)
    monkeypatch.setattr(interpreter, "Event", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_code(script(tmp_path, "exec sleep 60"), ECHO, "", 60)
    assert begun[0].wait(10) == -9


def test_a_file_that_cannot_be_started_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("none")
    for path in (tmp_path / "python", tmp_path / "gone", tmp_path, f"{sys.executable}\0"):
        with pytest.raises(NotReached, match="does not start"):
            run_code(str(path), ECHO, "", 60)


@pytest.mark.parametrize(
    "host", ["/bin/ls", "/opt/uwsgi", "/usr/bin/photo-editor", "", None, b"python", Path("python")]
)
def test_a_program_that_is_not_called_a_python_is_not_started(host: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", host)
    monkeypatch.setattr(sys, "_base_executable", host)
    found = list_interpreters()
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert found and all(os.path.basename(each).startswith(version) for each in found)


def test_the_own_executable_is_first_and_each_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/emulated-python")
    found = list_interpreters()
    assert found[0] == "/opt/emulated-python" and len(found) == len(set(found)) > 1
