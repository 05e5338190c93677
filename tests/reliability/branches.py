"""How much of the readers' code the attempts on damaged files run: branch coverage over a share of them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from cells import HERE, PARSERS, outcomes
from section import Section

MODULES = ("manifests", "graphs", "texts", "checkpoints", "directories")
FULL = 500  # attempts of each
READERS = (
    "runtime/json_file", "runtime/manifest", "runtime/contract", "runtime/text", "train/archive", "train/checkpoint",
    "train/student_file", "train/published", "train/published_text", "train/published_weights", "train/adapter",
    "train/families", "train/rope",
)  # fmt: skip


def run(scale: float) -> Section:
    """A row a reader: its branches, and the share of its lines and branches that were run."""
    title = "Readers: branches that the attempts run"
    try:
        import coverage
    except ModuleNotFoundError:
        return Section(title, (("coverage is not installed", 0, "nothing measured"),))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "coverage"
        os.environ[PARSERS] = str(file)
        try:
            for module in MODULES:
                for _ in outcomes(module, 0, max(1, int(FULL * scale))):
                    pass
        finally:
            del os.environ[PARSERS]
        made = coverage.Coverage(data_file=str(file), branch=True, config_file=False)
        made.combine([folder])
        report = Path(folder) / "report.json"
        made.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    return Section(title, tuple(row(files, name) for name in READERS))


def row(files: dict[str, dict[str, dict[str, float]]], name: str) -> tuple[str, int, str]:
    """What coverage says of one file, whatever folder it was measured from."""
    ending = f"{HERE.parent.parent.name}/{name}.py"
    found = next(
        (values["summary"] for path, values in files.items() if str(Path(path).resolve()).endswith(ending)), None
    )
    if found is None:
        return f"{name}.py", 0, "WRONG: not run"
    share = f"{found['covered_branches']:.0f} of its branches, {found['percent_covered']:.1f} % of lines and branches"
    return f"{name}.py", int(found["num_branches"]), share
