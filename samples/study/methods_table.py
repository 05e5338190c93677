"""Compares the methods of distillation: a table per task, each method against its control, and figures.

    STUDY=1 TASK=math,code samples/recipe.sh
    python -m samples.study.methods_table runs/math-code --out samples/results

It reads what the recipe wrote: reports of the test splits, thresholds tried on validation problems, and times, which
`samples.study.modes` measured problem by problem. A model that is not there is left out. Of runs/pronounce, which
STUDY=1 TASK=pronounce makes, the files are called study-pronounce.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import strict_json
from runtime.cli import DONE, add_options, make_cli_parser, option, run
from runtime.errors import UserError
from train.evaluation.intervals import Interval, estimate_paired_difference
from train.storage.output_files import replace_file

from . import study_figures
from .modes import read_records
from .recipe_table import BASELINE, Report, estimate_difference, format_percent, read_reports, record

BY_THRESHOLD = ", by a threshold"
TITLES = {
    BASELINE: "autoregressive baseline",
    "teacher": "teacher, one token per forward pass",
    "undistilled": "not distilled: the teacher at a threshold",
    "undistilled-speculative": "not distilled: the teacher drafts for itself",
    "cdlm": f"CDLM{BY_THRESHOLD}",
    "cdlm-speculative": "CDLM, drafts for itself",
    "cdlm-control": "its control, denoising alone",
    "cdlm-control-speculative": "its control, drafts for itself",
    "cd4lm": f"CD4LM{BY_THRESHOLD}",
    "cd4lm-speculative": "CD4LM, drafts for itself",
    "cd4lm-control": "its control, cross-entropy alone",
    "cd4lm-control-speculative": "its control, drafts for itself",
    "cd4lm-full": "CD4LM, full attention",
    "dparallel": f"dParallel{BY_THRESHOLD}",
    "dparallel-speculative": "dParallel, drafts for itself",
    "dparallel-control": "its control, without certainty",
    "dparallel-control-speculative": "its control, drafts for itself",
    "dparallel-full": "dParallel, full attention",
    "tad": f"TAD{BY_THRESHOLD}",
    "tad-speculative": "TAD, drafts for itself",
    "tad-control": "its control, cross-entropy on all positions",
    "tad-control-speculative": "its control, drafts for itself",
    "ort-fp32": "the sample: CDLM, ONNX Runtime",
    "ort-int8": "the sample in int8",
}
METHODS = ("cdlm", "cd4lm", "dparallel", "tad")
CONTROLS = {name + mode: f"{name}-control{mode}" for name in METHODS for mode in ("", "-speculative")}
HELD_OUT = "test_families"
COMPARED = ("test", "test_seen", HELD_OUT)  # every row of a task has its own of these; changed prompts are for some
SPLITS = (*COMPARED, "test_surface")
ALONE = "pronounce"  # the task that has a folder, and a page, of its own
TARGET = -0.01  # lowest lower end of the difference to the baseline

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A model on one task. cells: accuracy, its interval, difference to the baseline and forward passes, by split.

    milliseconds: CPU time per answer, with the ratio of the baseline's to it; None if it was not timed.
    """

    name: str
    threshold: float | None
    cells: dict[str, Cell]
    milliseconds: float | None
    faster: float | None

    @property
    def holds(self) -> bool:
        """Whether no compared split's difference to the baseline may be below TARGET."""
        cells = (self.cells[split] for split in COMPARED if split in self.cells)
        return all(cell.get("to_baseline", (0, 0, 0))[1] >= TARGET for cell in cells)


def make_rows(task: str, reports: Mapping[str, Mapping[str, Report]], times: Mapping[str, list[float]]) -> list[Row]:
    """Returns the rows of a task in the order of TITLES. reports: by split and model; times: seconds by model."""
    rows = []
    for name in TITLES:
        found = {split: reports[split][name] for split in SPLITS if name in reports.get(split, {})}
        if not found:
            continue
        cells = {split: make_cell(name, report, reports[split].get(BASELINE)) for split, report in found.items()}
        report = next(iter(found.values()))
        gate, gated = report["gate"], report.get("mode", "block") == "block"
        blocks = gated and name not in (BASELINE, "teacher") and gate["rule"] == "threshold"
        seconds = times.get(name)
        spent = 1000 * sum(seconds) / len(seconds) if seconds else None
        base = times.get(BASELINE)
        faster = sum(base) / sum(seconds) if seconds and base else None
        rows.append(Row(name, gate["threshold"] if blocks else None, cells, spent, faster))
    return rows


def make_cell(name: str, report: Report, baseline: Report | None) -> Cell:
    """Returns a model's figures on one split."""
    cell: Cell = {"accuracy": report["accuracy"], "accuracy_95": report["accuracy_95"]}
    cell |= {"forwards": report["forwards"], "problems": report["problems"]}
    if baseline is not None and name != BASELINE:
        cell["to_baseline"] = round_interval(estimate_difference(report, baseline))
    return cell


def round_interval(interval: Interval) -> list[float]:
    """Returns mean, low and high, rounded."""
    return [round(value, 5) for value in (interval.mean, interval.low, interval.high)]


def compare_with_controls(reports: Mapping[str, Mapping[str, Report]]) -> dict[str, dict[str, Any]]:
    """Returns the paired difference of each method to its control over all problems of the splits, and forward passes.

    reports: by split, of all tasks, and model.
    """
    found = {}
    for name, control in CONTROLS.items():
        pairs = [(models[name], models[control]) for models in reports.values() if {name, control} <= models.keys()]
        if not pairs:
            continue
        ours, theirs = ([r for pair in pairs for r in pair[side]["per_problem"]["right"]] for side in (0, 1))
        passes = [sum(pair[side]["forwards"] for pair in pairs) / len(pairs) for side in (0, 1)]
        apart = round_interval(estimate_paired_difference(ours, theirs))
        found[name] = {"difference": apart, "forwards": passes, "problems": len(ours)}
    return found


def read_times(path: Path, task: str) -> dict[str, list[float]]:
    """Returns the seconds of answers to a task, by row; none without the file.

    A student has rows per mode, its plain one is of the mode `block`; of the baseline and the bundles the default mode
    counts, which is measured first.
    """
    found: dict[str, list[float]] = {}
    default: dict[str, str] = {}
    for each in read_records(path):
        name, _, mode = each["way"].rpartition(":")
        first = default.setdefault(name, mode)
        plain = first if name == BASELINE or name.startswith("ort-") else "block"
        own = "undistilled" if name == "teacher" and mode == "speculative" else name
        row = name if mode == plain else f"{own}-{mode}"
        if each["task"] == task and row in TITLES:
            found.setdefault(row, []).append(each["seconds"])
    return found


def format_summary(tables: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yields a table of all tasks on the held-out families, of those models that have answered them in all tasks."""
    heads = [""]
    for task in tables:
        heads += [f"`{task}` right, % (to the baseline, points)", "forward passes", "ms"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name, title in TITLES.items():
        found = [row for rows in tables.values() for row in rows if row.name == name and HELD_OUT in row.cells]
        if len(found) < len(tables):
            continue
        cells = [title]
        for row in found:
            right, apart = format_accuracy(row.cells[HELD_OUT])
            spent = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
            cells += [f"{right} ({apart})" if apart else right, f"{row.cells[HELD_OUT]['forwards']:.2f}", spent]
        yield f"| {' | '.join(cells)} |"
    yield ""


def format_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields one task's table."""
    splits = [split for split in SPLITS if any(split in row.cells for row in rows)]
    heads = ["", "threshold"]
    for split in splits:
        heads += [f"`{split}` right, %", "to the baseline, points"]
    heads += ["forward passes", "ms", "times as fast as the baseline in fp32"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        cells = [TITLES[row.name] + ("" if row.holds else " ✗"), "" if row.threshold is None else f"{row.threshold:g}"]
        for split in splits:
            cells += format_accuracy(row.cells.get(split))
        forwards = [row.cells[split]["forwards"] for split in COMPARED if split in row.cells]
        cells.append(f"{sum(forwards) / len(forwards):.2f}" if forwards else "")
        cells += ["" if value is None else f"{value:.1f}" for value in (row.milliseconds, row.faster)]
        yield f"| {' | '.join(cells)} |"
    yield ""


def format_accuracy(cell: Cell | None) -> list[str]:
    """Returns a split's accuracy and its difference to the baseline as texts."""
    if cell is None:
        return ["", ""]
    apart = ""
    if "to_baseline" in cell:
        apart = "{:+.1f}, {:+.1f} to {:+.1f}".format(*(100 * value for value in cell["to_baseline"]))
    return [format_percent(cell["accuracy"]), apart]


def format_page(
    tables: Mapping[str, Sequence[Row]], controls: Mapping[str, Mapping[str, Any]], made: Cell
) -> Iterator[str]:
    """Yields the page."""
    cells = [(split, cell) for rows in tables.values() for row in rows for split, cell in row.cells.items()]
    counts, had = sorted({cell["problems"] for _, cell in cells}), {split for split, _ in cells}
    families = HELD_OUT in had
    timed, valid, target = ("test", "2,000 of `valid`", 1.0)
    if families:
        timed, valid, target = (HELD_OUT, "300 problems of `valid_families`", 0.5)
    compared = ", ".join(split for split in COMPARED if split in had)
    yield "# The study: methods of distillation, their controls, the autoregressive baseline\n"
    yield (
        f"Made by `make study`: {' or '.join(map(str, counts))} problems per task and split, seed 0. A threshold "
        f"takes the fewest forward passes at most {target:g} points below the baseline on {valid}; "
        f"if none is, within {target:g} points of the most accurate threshold; a control has its method's. "
        "Differences are paired, with 95 % intervals; ✗: the lower end of one is below -1 point. "
        f"Forward passes are means per answer over {compared}, on which ✗ looks too; "
        f"ms are CPU time of ONNX Runtime per answer on problems of `{timed}`, "
        f"one thread, all models answering a problem before the next, on {made['cpu']}.\n"
    )
    if families:
        yield f"On `{HELD_OUT}`, whose families of problems no model has seen:\n"
        yield from format_summary(tables)
    for task, rows in tables.items():
        yield f"## {task}\n"
        yield from format_table(rows)
    if controls:
        yield "## What each method's own term adds\n"
        yield "| method | to its control, points | forward passes | of the control | problems |"
        yield "|---|---|---|---|---|"
        for name, found in controls.items():
            apart = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in found["difference"]))
            ours, theirs = found["forwards"]
            yield f"| {TITLES[name]} | {apart} | {ours:.2f} | {theirs:.2f} | {found['problems']} |"
        yield ""


def draw(runs: Path, names: Sequence[str], out: Path) -> None:
    """Plots accuracy over forward passes at every threshold, one figure per task, on problems of `valid_families`."""
    swept = {}
    for path in (runs / f"{name}-threshold.json" for name in TITLES):
        if path.exists():
            title = TITLES[path.stem.removesuffix("-threshold")].removesuffix(BY_THRESHOLD)
            swept[title] = strict_json.read(path)["points"]
    for task in names:
        curves = {}
        for title, points in swept.items():
            for mode, ending in (("block", ""), ("speculative", ", drafts for itself")):
                cells = [point["by_task"][task] for point in points if point.get("mode", "block") == mode]
                if cells:
                    curves[title + ending] = [(cell["forwards"], 100 * cell["accuracy"]) for cell in cells]
        marked = f"{BASELINE}-{task}-valid_families.json" if len(names) > 1 else f"{BASELINE}-valid.json"
        if (base := runs / marked).exists():
            report = strict_json.read(base)
            curves[TITLES[BASELINE]] = [(report["forwards"], 100 * report["accuracy"])]
        study_figures.plot_curves(out / f"study-{task}.png", curves, "forward passes per answer", f"{task}: right, %")


def execute(args: argparse.Namespace) -> int:
    """Writes study.json, study.md (of `pronounce` study-pronounce) and a figure per task, and prints the page."""
    reports = read_reports(args.runs)
    names = list(dict.fromkeys(each["task"] for models in reports.values() for each in models.values()))
    if names not in ([ALONE], ["math", "code"], ["code", "math"]):
        raise UserError(f"{args.runs} has reports of {', '.join(names)}; expected those of TASK=math,code or {ALONE}")
    tables = {}
    for task in names:
        own = {name.rpartition(" ")[2]: models for name, models in reports.items() if name.startswith(f"{task} ")}
        tables[task] = make_rows(task, own or reports, read_times(args.runs / "times.jsonl", task))
    controls, made = compare_with_controls(reports), record(args.runs)
    text = "\n".join(format_page(tables, controls, made))
    kept = {"tables": {task: [asdict(row) for row in rows] for task, rows in tables.items()}, "controls": controls}
    values = json.dumps({**kept, "record": made}, indent=1) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    page = "study" if len(names) > 1 else f"study-{ALONE}"
    replace_file(args.out / f"{page}.md", lambda path: path.write_text(text, encoding="utf-8"))
    replace_file(args.out / f"{page}.json", lambda path: path.write_text(values, encoding="utf-8"))
    draw(args.runs, names, args.out)
    print(text)
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = make_cli_parser("samples.study.methods_table", (__doc__ or "").splitlines()[0])
    add_options(parser, OPTIONS)
    return run(lambda: execute(parser.parse_args(argv)))


OPTIONS = (
    option("runs", type=Path, help="folder that the recipe wrote, with TASK=math,code or pronounce"),
    option("--out", type=Path, required=True, help="folder of the page, the same as JSON, and the figures"),
)


if __name__ == "__main__":
    sys.exit(main())
