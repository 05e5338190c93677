"""ONNX Runtime does not report to its vendor, unless the user lets it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.engines.ort import no_telemetry

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
IMPORT = re.compile(r"^\s*(import|from)\s.*\bonnxruntime\b", re.MULTILINE)
CODE = "from runtime import load; print(load({!r}, threads=1).generate([5, 6], max_new_tokens=4).result.finish)"


def test_one_module_alone_imports_onnxruntime() -> None:
    folders = ("runtime", "train", "export", "samples", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if IMPORT.search(path.read_text())}
    assert len(files) > 100 and found == {"runtime/engines/ort/no_telemetry.py"}


def test_a_first_load_and_an_answer_store_nothing_but_what_was_verified(tmp_path: Path) -> None:
    """ONNX Runtime's device id and event queue would be stored at its import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    line = [sys.executable, "-c", CODE.format(str(ROOT / "tests" / "golden" / "ort.bundle"))]
    done = subprocess.run(line, cwd=ROOT, env=kept | places, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        "cache/blockstep/verified.json"
    ]


@pytest.mark.parametrize("value", ["0", "false", "1"])
def test_a_variable_that_the_user_set_is_kept(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(no_telemetry.VARIABLE, value)
    importlib.reload(no_telemetry)
    assert os.environ[no_telemetry.VARIABLE] == value


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(no_telemetry.VARIABLE, "")
    with pytest.warns(UserWarning, match="onnxruntime was imported before blockstep"):
        importlib.reload(no_telemetry)
    assert os.environ[no_telemetry.VARIABLE] == "1"


def test_a_host_that_imported_onnxruntime_before_is_warned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(no_telemetry.VARIABLE)
    with pytest.warns(UserWarning, match="onnxruntime was imported before blockstep") as warned:
        importlib.reload(no_telemetry)
    assert len(warned) == 1 and os.environ[no_telemetry.VARIABLE] == "1"
    importlib.reload(no_telemetry)  # as under the other name of the package
