"""Mutation testing of what decides an answer: how many small changes of that code some test notices (mutmut).

Each module is tried against the tests that are about it. That takes minutes even for one, so it is the one section that
the suite does not run in small.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from section import Section

TITLE = "Mutation testing"
ROOT = Path(__file__).parents[2]
DECODING = (
    "decoding_loop", "decoding_cached", "runtime_model", "decoding_batch", "decoding_prefix_cache",
    "decoding_logits_rows", "decoding_infill", "decoding_sampled", "decoding_any_scores", "decoding_running_batch",
)  # fmt: skip
MODULES = {
    "decoding/gate": ("decoding_gate", "decoding_any_scores", "decoding_loop"),
    "decoding/block_layout": (
        "decoding_block_layout", "decoding_infill", "decoding_prefix_cache", "decoding_loop", "runtime_model",
        "decoding_batch",
    ),
    "decoding/request_state": DECODING,
    "decoding/sequence": DECODING,
    "decoding/speculation": ("decoding_causal",),
    "decoding/batch": DECODING,
    "decoding/loop": DECODING,
    "contract": ("runtime_contract", "decoding_gate", "decoding_loop", "bundle_any_manifest", "decoding_any_scores"),
}  # fmt: skip
NEEDED = ("runtime", "train", "export", "samples", "tests", "pyproject.toml", "README.md")
NOTICED = {1, 3, -9, -11, 24, -24, 36, 152, 255}  # mutmut's codes: a test failed, a crash, out of time
GOAL = 85  # per cent


def run(scale: float) -> Section:
    """All modules at 1, the first of them below; wrong where fewer than GOAL per cent are noticed."""
    if importlib.util.find_spec("mutmut") is None:
        return Section(TITLE, (("mutants", 0, "left out: pip install '.[reliability]'"),))
    chosen = [*MODULES][: math.ceil(len(MODULES) * scale)]
    return Section(TITLE, tuple(row(name, tried(name, MODULES[name])) for name in chosen))


def tried(name: str, tests: Sequence[str]) -> Counter[int]:
    """How often each of mutmut's codes came for the mutants of a module."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for needed in NEEDED:
            copy = shutil.copytree if (ROOT / needed).is_dir() else shutil.copy
            copy(ROOT / needed, folder / needed)
        settings = folder / "pyproject.toml"
        files = {"only_mutate": [f"runtime/{name}.py"], "pytest_add_cli_args_test_selection": paths(tests)}
        settings.write_text(with_lists(settings.read_text(encoding="utf-8"), files), encoding="utf-8")
        words = [sys.executable, "-m", "mutmut", "run", "--max-children", str(os.cpu_count())]
        subprocess.run(words, cwd=folder, stdout=sys.stderr, check=True)
        return codes_of(folder / "mutants" / "runtime" / f"{name}.py.meta")


def paths(tests: Sequence[str]) -> list[str]:
    return [f"tests/test_{test}.py" for test in tests]


def with_lists(settings: str, lists: dict[str, list[str]]) -> str:
    """mutmut's settings, which it reads from pyproject.toml alone, with these lists in place of theirs."""
    for key, values in lists.items():
        settings, found = re.subn(rf"(?ms)^{key} = \[.*?\]$", f"{key} = {json.dumps(values)}", settings)
        assert found == 1, f"pyproject.toml has {found} lists {key}"
    return settings


def codes_of(meta: Path) -> Counter[int]:
    found = Counter(json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"].values())
    assert None not in found, f"{meta.name}: {found[None]} were not tried"
    return found


def row(name: str, found: Counter[int]) -> tuple[str, int, str]:
    total, noticed = found.total(), sum(found[code] for code in NOTICED)
    share = 100 * noticed / total
    verdict = "" if share >= GOAL else f"WRONG, below {GOAL} %: "
    return f"runtime/{name}.py: changes of one expression", total, f"{verdict}noticed {noticed} ({share:.1f} %)"
