"""Outcomes counted into a section of the report; those that only a child process contains are tried as a user would."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cells import CONTAINED, HERE, WRONG, Outcome, outcomes
from section import Section
from tqdm import tqdm

TOLD = {"refused": "refused in one line", "failed": "failed in one line"}
# `blockstep generate` with an isolated load check that is less patient, since dozens of them are waited for.
GENERATE = (
    "import sys; from runtime import generate, load_check; load_check.SECONDS = 3; "
    "sys.exit(generate.main(sys.argv[1:]))"
)


def tallied(title: str, module: str, count: int, by_trial: bool = False) -> Section:
    """The section of a module of attempts.

    by_trial: what crashed, hung or swelled makes a bundle, which is then given to `runtime.generate`: right is one line
    and exit code 2. Without it, and in any other case, such an outcome is wrong.
    """
    found = list(tqdm(outcomes(module, 0, count), title, total=count, unit="file", disable=None))
    rows = []
    for kind in dict.fromkeys(outcome.kind for outcome in found):
        alike = [outcome for outcome in found if outcome.kind == kind]
        rows.append((kind, len(alike), summary(alike, module, by_trial)))
    return Section(title, tuple(rows))


def summary(found: Iterable[Outcome], module: str, by_trial: bool) -> str:
    """What a row says: each ending with its count, wrong ones first, by their numbers."""
    counts, wrong = Counter[str](), []
    for outcome in found:
        if outcome.ending in WRONG:
            wrong.append(outcome)
        elif outcome.ending.startswith(CONTAINED):
            if by_trial and contained(module, outcome.number):
                counts[f"{outcome.ending} in its isolated load check and then refused in one line"] += 1
            else:
                wrong.append(outcome)
        else:
            counts[TOLD.get(outcome.ending, outcome.ending)] += 1
    told = [f"{count:,} {ending}" for ending, count in counts.most_common()]
    for outcome in wrong:
        print(f"{module} {outcome.number} {outcome.ending}: {outcome.detail}", file=sys.stderr)
    if wrong:
        told.insert(0, f"{len(wrong)} WRONG ({', '.join(f'{each.number} {each.ending}' for each in wrong[:5])})")
    return ", ".join(told)


def contained(module: str, number: int) -> bool:
    """Whether the command tells this attempt's bundle in one line and ends with 2."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = importlib.import_module(module).make(number, Path(folder))
        root = HERE.parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(Path(folder) / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", GENERATE, str(bundle), "--token-ids", "5,6,7"], capture_output=True, env=environment,
            cwd=folder, text=True, timeout=300, check=False,
        )  # fmt: skip
    if done.returncode == 2 and done.stdout == "" and re.fullmatch(r"error: [^\n]+\n", done.stderr):
        return True
    print(f"{module} {number} as a user meets it: {done.returncode} {done.stdout!r} {done.stderr!r}", file=sys.stderr)
    return False
