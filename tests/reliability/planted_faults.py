"""Forty faults of the kind that real changes bring, each with the test files that have to notice it.

A suite that is made faster must not become blind: this is run before and after its tests are changed. Each fault is one
edit of one file in a copy of the tree, where the named test files are run until one test fails.

python tests/reliability/planted_faults.py [--list] [--only TEXT] [--marks "not long"]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fault_table import FAULTS, Fault

ROOT = Path(__file__).parents[2]
NEEDED = ("runtime", "train", "export", "samples", "tests", "docs", "pyproject.toml", "README.md", "constraints.txt")
SUITE = "not browser and not native and not long and not client"  # what `make test` runs
SECONDS = 600  # a fault may also hang what it breaks


def plant(fault: Fault, folder: Path) -> None:
    """Puts a copy of the tree with that fault into an empty folder."""
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, folder / name)
    file = folder / fault.file
    text = file.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: {fault.file} has {text.count(fault.old)} of {fault.old!r}; expected 1")
    file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def catch(fault: Fault, marks: str) -> str | None:
    """Returns the test that notices the fault, or None."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        plant(fault, folder)
        words = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-m", marks]
        files = [f"tests/test_{name}.py" for name in fault.tests.split()]
        own = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [sys.executable, *words, *files], cwd=folder, env=own, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"it hangs for {SECONDS} s"
    if done.returncode not in (0, 1, 2):
        raise ValueError(f"{fault.name}: pytest ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    found = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return None if done.returncode == 0 else found[0] if found else done.stdout[-200:]


def main(argv: Sequence[str] | None = None) -> int:
    """Tries the chosen faults. Returns 1 if one is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="prints the faults and their test files")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose name or file has this in it")
    parser.add_argument("--marks", default=SUITE, help=f"pytest's marks (default: {SUITE!r})")
    args = parser.parse_args(argv)
    chosen = [fault for fault in FAULTS if args.only in fault.name or args.only in fault.file]
    missed = 0
    for number, fault in enumerate(chosen, 1):
        line = f"{number:>3}  {fault.file:<34}{fault.name}"
        if args.list:
            print(f"{line}  ({fault.tests})")
            continue
        found = catch(fault, args.marks)
        missed += found is None
        print(f"{line}: {'MISSED' if found is None else f'caught by {found[:110]}'}", flush=True)
    if not args.list:
        print(f"{len(chosen) - missed} of {len(chosen)} faults are caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
