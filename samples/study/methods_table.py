"""Compares the methods of distillation: a table per task, each method against its control, and plots.

    STUDY=1 TASK=math,code samples/recipe.sh
    python -m samples.study.methods_table runs/math-code --out samples/results

It reads what the recipe wrote: reports of the test splits, the thresholds that were tried on validation problems, and
times, which `samples.study.modes` measured problem by problem. A model without reports is left out. The study of
runs/pronounce, which STUDY=1 TASK=pronounce makes, is written to files called study-pronounce.
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
COMPARED = ("test", "test_seen", HELD_OUT)  # splits of which every row has a report, if its task has the split
SPLITS = (*COMPARED, "test_surface")  # changed prompts, of which only some rows have a report
ALONE = "pronounce"  # the task that has a folder, and a page, of its own
TARGET = -0.01  # the difference to the baseline may not have its interval's lower end below this

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """Holds a model's results on one task.

    Attributes:
        name: the model's.
        threshold: of its gate; None if it decodes by another rule or mode.
        cells: accuracy, its interval, difference to the baseline and forward passes, by split.
        milliseconds: CPU time per answer, None if it was not timed.
        faster: the baseline's CPU time per CPU time of the model, None if one of them was not timed.
    """

    name: str
    threshold: float | None
    cells: dict[str, Cell]
    milliseconds: float | None
    faster: float | None

    @property
    def holds(self) -> bool:
        """Returns whether on no compared split the interval of the difference to the baseline reaches below TARGET."""
        cells = (self.cells[split] for split in COMPARED if split in self.cells)
        return all(cell.get("to_baseline", (0, 0, 0))[1] >= TARGET for cell in cells)


def make_rows(reports: Mapping[str, Mapping[str, Report]], times: Mapping[str, list[float]]) -> list[Row]:
    """Returns the rows of a task in the order of TITLES.

    reports: by split and model; times: seconds of answers, by model.
    """
    rows = []
    for name in TITLES:
        by_split = {split: reports[split][name] for split in SPLITS if name in reports.get(split, {})}
        if not by_split:
            continue
        cells = {split: make_cell(name, report, reports[split].get(BASELINE)) for split, report in by_split.items()}
        report = next(iter(by_split.values()))
        gate, in_blocks = report["gate"], report.get("mode", "block") == "block"
        has_threshold = in_blocks and name not in (BASELINE, "teacher") and gate["rule"] == "threshold"
        seconds, baseline_seconds = times.get(name), times.get(BASELINE)
        milliseconds = 1000 * sum(seconds) / len(seconds) if seconds else None
        faster = sum(baseline_seconds) / sum(seconds) if seconds and baseline_seconds else None
        rows.append(Row(name, gate["threshold"] if has_threshold else None, cells, milliseconds, faster))
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
    """Returns, by method, the paired difference to its control over all problems of the splits, and forward passes.

    reports: by split, of all tasks, and model. `forwards` has the method's and the control's mean over the splits.
    """
    comparisons = {}
    for name, control in CONTROLS.items():
        pairs = [(models[name], models[control]) for models in reports.values() if {name, control} <= models.keys()]
        if not pairs:
            continue
        ours, theirs = ([r for pair in pairs for r in pair[side]["per_problem"]["right"]] for side in (0, 1))
        forwards = [sum(pair[side]["forwards"] for pair in pairs) / len(pairs) for side in (0, 1)]
        difference = round_interval(estimate_paired_difference(ours, theirs))
        comparisons[name] = {"difference": difference, "forwards": forwards, "problems": len(ours)}
    return comparisons


def read_times(path: Path, task: str) -> dict[str, list[float]]:
    """Returns the seconds of answers to a task, by row; none if the file does not exist.

    A model has a row per mode. The one without the mode in its name is that of the mode `block`; for the baseline and
    the sample's engines, that of the default mode, which is measured first.
    """
    seconds: dict[str, list[float]] = {}
    default_modes: dict[str, str] = {}
    for answer in read_records(path):
        name, _, mode = answer["way"].rpartition(":")
        default_mode = default_modes.setdefault(name, mode)
        plain_mode = default_mode if name == BASELINE or name.startswith("ort-") else "block"
        model = "undistilled" if name == "teacher" and mode == "speculative" else name
        row = name if mode == plain_mode else f"{model}-{mode}"
        if answer["task"] == task and row in TITLES:
            seconds.setdefault(row, []).append(answer["seconds"])
    return seconds


def format_summary(tables: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yields a table of all tasks on the held-out families, with the models that have answered them in all tasks."""
    heads = [""]
    for task in tables:
        heads += [f"`{task}` right, % (to the baseline, points)", "forward passes", "ms"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for name, title in TITLES.items():
        by_task = [row for rows in tables.values() for row in rows if row.name == name and HELD_OUT in row.cells]
        if len(by_task) < len(tables):
            continue
        cells = [title]
        for row in by_task:
            right, difference = format_accuracy(row.cells[HELD_OUT])
            milliseconds = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
            cells.append(f"{right} ({difference})" if difference else right)
            cells += [f"{row.cells[HELD_OUT]['forwards']:.2f}", milliseconds]
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
    difference = ""
    if "to_baseline" in cell:
        difference = "{:+.1f}, {:+.1f} to {:+.1f}".format(*(100 * value for value in cell["to_baseline"]))
    return [format_percent(cell["accuracy"]), difference]


def format_page(
    tables: Mapping[str, Sequence[Row]], controls: Mapping[str, Mapping[str, Any]], conditions: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the page. controls: as from `compare_with_controls`; conditions: as from `record`."""
    cells = [(split, cell) for rows in tables.values() for row in rows for split, cell in row.cells.items()]
    counts, splits = sorted({cell["problems"] for _, cell in cells}), {split for split, _ in cells}
    has_families = HELD_OUT in splits
    timed_split, valid, target = ("test", "2,000 of `valid`", 1.0)
    if has_families:
        timed_split, valid, target = (HELD_OUT, "300 problems of `valid_families`", 0.5)
    compared = ", ".join(split for split in COMPARED if split in splits)
    yield "# The study: methods of distillation, their controls, the autoregressive baseline\n"
    yield (
        f"Made by `make study`: {' or '.join(map(str, counts))} problems per task and split, seed 0. A threshold "
        f"takes the fewest forward passes at most {target:g} points below the baseline on {valid}; "
        f"if none is, within {target:g} points of the most accurate threshold; a control has its method's. "
        "Differences are paired, with 95 % intervals; ✗: the lower end of one is below -1 point. "
        f"Forward passes are means per answer over {compared}, on which ✗ looks too; "
        f"ms are CPU time of ONNX Runtime per answer on problems of `{timed_split}`, "
        f"one thread, all models answering a problem before the next, on {conditions['cpu']}.\n"
    )
    if has_families:
        yield f"On `{HELD_OUT}`, whose families of problems no model has seen:\n"
        yield from format_summary(tables)
    for task, rows in tables.items():
        yield f"## {task}\n"
        yield from format_table(rows)
    if controls:
        yield "## What each method's own term adds\n"
        yield "| method | to its control, points | forward passes | of the control | problems |"
        yield "|---|---|---|---|---|"
        for name, comparison in controls.items():
            difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in comparison["difference"]))
            ours, theirs = comparison["forwards"]
            yield f"| {TITLES[name]} | {difference} | {ours:.2f} | {theirs:.2f} | {comparison['problems']} |"
        yield ""


def plot(runs: Path, tasks: Sequence[str], out: Path) -> None:
    """Plots accuracy over forward passes at every threshold, one plot per task, on validation problems."""
    points_by_title = {}
    for path in (runs / f"{name}-threshold.json" for name in TITLES):
        if path.exists():
            title = TITLES[path.stem.removesuffix("-threshold")].removesuffix(BY_THRESHOLD)
            points_by_title[title] = strict_json.read(path)["points"]
    for task in tasks:
        curves = {}
        for title, points in points_by_title.items():
            for mode, ending in (("block", ""), ("speculative", ", drafts for itself")):
                cells = [point["by_task"][task] for point in points if point.get("mode", "block") == mode]
                if cells:
                    curves[title + ending] = [(cell["forwards"], 100 * cell["accuracy"]) for cell in cells]
        baseline_name = f"{BASELINE}-{task}-valid_families.json" if len(tasks) > 1 else f"{BASELINE}-valid.json"
        if (baseline := runs / baseline_name).exists():
            report = strict_json.read(baseline)
            curves[TITLES[BASELINE]] = [(report["forwards"], 100 * report["accuracy"])]
        study_figures.plot_curves(out / f"study-{task}.png", curves, "forward passes per answer", f"{task}: right, %")


def execute(args: argparse.Namespace) -> int:
    """Writes study.json, study.md (of `pronounce` study-pronounce) and a plot per task, and prints the page."""
    reports = read_reports(args.runs)
    tasks = list(dict.fromkeys(report["task"] for models in reports.values() for report in models.values()))
    if tasks not in ([ALONE], ["math", "code"], ["code", "math"]):
        raise UserError(f"{args.runs} has reports of {', '.join(tasks)}; expected those of TASK=math,code or {ALONE}")
    tables = {}
    for task in tasks:
        # With several tasks, a split's name begins with its task.
        of_task = {name.rpartition(" ")[2]: models for name, models in reports.items() if name.startswith(f"{task} ")}
        tables[task] = make_rows(of_task or reports, read_times(args.runs / "times.jsonl", task))
    controls, conditions = compare_with_controls(reports), record(args.runs)
    text = "\n".join(format_page(tables, controls, conditions))
    json_tables = {task: [asdict(row) for row in rows] for task, rows in tables.items()}
    values = json.dumps({"tables": json_tables, "controls": controls, "record": conditions}, indent=1) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    page = "study" if len(tasks) > 1 else f"study-{ALONE}"
    replace_file(args.out / f"{page}.md", lambda path: path.write_text(text, encoding="utf-8"))
    replace_file(args.out / f"{page}.json", lambda path: path.write_text(values, encoding="utf-8"))
    plot(args.runs, tasks, args.out)
    print(text)
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = make_cli_parser("samples.study.methods_table", (__doc__ or "").splitlines()[0])
    add_options(parser, OPTIONS)
    return run(lambda: execute(parser.parse_args(argv)))


OPTIONS = (
    option("runs", type=Path, help="folder that the recipe wrote, with TASK=math,code or pronounce"),
    option("--out", type=Path, required=True, help="folder to write the page, the same as JSON, and the plots to"),
)


if __name__ == "__main__":
    sys.exit(main())
