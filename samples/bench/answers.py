"""The section `answers`: whole answers of the sample models, by samples/speed.py, which also says what each means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def measured(threads: int, count: int, models: Path | None = None) -> dict[str, Any]:
    """Its report of `count` prompts a task; a process of its own, since it compiles. Raises SystemExit as it exits."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "speed.json"
        words = ["--count", str(count), "--threads", str(threads), "--out", str(out)]
        words += ["--models", str(models)] if models else []
        line = [sys.executable, str(ROOT / "samples" / "speed.py"), *words]
        done = subprocess.run(line, cwd=ROOT, check=False, stdout=sys.stderr)
        if done.returncode:
            raise SystemExit(done.returncode)
        report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return report
