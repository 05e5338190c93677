"""Mutation testing of what decides an answer: how many small changes of that code some test notices (mutmut).

It takes minutes even for one module, so it is the one section that the suite does not run in small.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from section import Section

TITLE = "Mutation testing"
ROOT = Path(__file__).parents[2]
MODULES = ("gate", "layout", "sequence", "batch", "decode", "contract")  # as pyproject.toml's tool.mutmut has them
NEEDED = ("runtime", "train", "export", "samples", "tests", "pyproject.toml", "README.md")
NOTICED = {1, 3, -9, -11, 24, -24, 36, 152, 255}  # mutmut's codes: a test failed, a crash, out of time
GOAL = 85  # per cent


def run(scale: float) -> Section:
    """All modules at 1, the first of them below; wrong where fewer than GOAL per cent are noticed."""
    if importlib.util.find_spec("mutmut") is None:
        return Section(TITLE, (("mutants", 0, "left out: pip install '.[mutation]'"),))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in NEEDED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        chosen = MODULES[: math.ceil(len(MODULES) * scale)]
        words = [sys.executable, "-m", "mutmut", "run", "--max-children", str(os.cpu_count())]
        patterns = [f"runtime.{name}.*" for name in chosen]
        subprocess.run([*words, *patterns], cwd=folder, stdout=sys.stderr, check=True)
        codes = {name: codes_of(folder / "mutants" / "runtime" / f"{name}.py.meta") for name in chosen}
    return Section(TITLE, tuple(row(name, found) for name, found in codes.items()))


def codes_of(meta: Path) -> Counter[int]:
    """How often each exit code came."""
    found = Counter(json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].values())
    assert None not in found, f"{meta.name}: {found[None]} were not tried"
    return found


def row(name: str, found: Counter[int]) -> tuple[str, int, str]:
    total, noticed = found.total(), sum(found[code] for code in NOTICED)
    share = 100 * noticed / total
    verdict = "" if share >= GOAL else f"WRONG, below {GOAL} %: "
    return f"runtime/{name}.py: changes of one expression", total, f"{verdict}noticed {noticed} ({share:.1f} %)"
