"""Measures the section `answers`: whole answers of the sample models, by `speed.py`, which defines each figure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .goals import Entry, judge
from .speed import BASELINE, FAST, INT8

ROOT = Path(__file__).resolve().parents[2]
OVER_TEACHER, OVER_TORCH, OVER_BASELINE = 60.0, 3.0, 1.0  # lower bounds, times faster


def measure(threads: int | None, count: int, repeat: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """Runs `speed.py` on `count` prompts per task, in its own process as it compiles; returns its report with goals.

    threads: None for its default. options: more options of `speed.py`. Raises SystemExit with its code if it fails.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "speed.json"
        words = ["--count", str(count), "--repeat", str(repeat), "--out", str(out), *options]
        words += ["--threads", str(threads)] if threads else []
        line = [sys.executable, "-m", "samples.bench.speed", *words]
        done = subprocess.run(line, cwd=ROOT, check=False, stdout=sys.stderr)
        if done.returncode:
            raise SystemExit(done.returncode)
        report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    for task in report["tasks"].values():
        task["goals"] = list(make_goals(task))
    return report


def make_goals(task: dict[str, Any]) -> Iterator[Entry]:
    """Yields the goals of a task: ratios of the sums, with the spread over the prompts; accuracies."""
    rows = task["contenders"]
    ms = {name: np.array(row["ms"]) for name, row in rows.items()}
    for factors, precision in ((task["factors"], ""), (task["factors_int8"], INT8)):
        fast = FAST + precision
        aims = (
            (factors["teacher"], OVER_TEACHER), (factors["student_in_torch"], OVER_TORCH),
            (BASELINE + precision, OVER_BASELINE),
        )  # fmt: skip
        for other, least in aims:
            whole = float(ms[other].sum() / ms[fast].sum())
            yield judge(f"{other}, over {fast}", ms[other] / ms[fast], least=least, value=whole)
    found = [rows[name]["accuracy"] for name in (FAST, BASELINE)]
    if all(found):
        mine, theirs = (100 * each["accuracy"] for each in found)
        ranges = ["{:.1f} to {:.1f}".format(*(100 * end for end in each["accuracy_95"])) for each in found]
        what = f"% right (95 % interval {ranges[0]}), at least the baseline's (interval {ranges[1]})"
        yield judge(what, [mine], least=round(theirs, 4))
