"""Finds the threshold, or mode, that keeps a model within a target of its teacher, or the temperature of decisions.

python -m train.calibrate --ckpt student.pt --teacher-report teacher-math.json teacher-code.json
python -m train.calibrate --bundle student.bundle --engine ort-int8      # within a target of the bundle's ort-fp32
python -m train.calibrate --bundle student.bundle --decisions --task intents   # the temperature of its decisions
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runtime.cli import (
    DONE,
    FAILED,
    add_options,
    fill_dataclass,
    make_cli_parser,
    option,
    parse_at_least_1,
    parse_png,
    print_json,
)
from runtime.cli import run as run_command
from runtime.contract import GateSpec
from runtime.errors import UserError

from . import tasks
from .cli_options import make_overrides, parse_numbers
from .data.batches import encode
from .evaluation import baseline, decision_calibration, evaluated_model, evaluation_run, plots, reliability
from .evaluation.baseline import BaselineReport
from .evaluation.intervals import estimate_paired_difference
from .storage import student_pt
from .storage.output_files import check_file, replace_file

TARGET = 0.5  # percentage points
COUNT = 400  # validation problems per task, if no report names them
HELP = {  # help texts that do not fit on the line of their option below
    "teacher-report": (
        "reports that blockstep train evaluate --out wrote on the validation split, one per task, of the teacher or "
        "another more accurate model; the same problems are answered again (default: with --bundle, its fp32 engine by "
        "its own gate is the reference)"
    ),
    "target": f"maximum loss of accuracy, in percentage points below the reference model (default: {TARGET})",
    "decisions": (
        "fit the temperature that calibrates the probabilities of typed decisions, on validation problems of --task, "
        "and store it in the model; no threshold is chosen then (docs/distil.md)"
    ),
    "by": (
        "statistic that has to be within the target: the mean difference, or the lower end of its 95 %% interval "
        "(default: mean)"
    ),
}


@dataclass(frozen=True, slots=True)
class CalibrationPoint:
    """What was measured with one mode and, in mode `block`, one threshold.

    forwards: mean of the tasks. difference, low: the least of any task. by_task: accuracy, forward passes, and the
    difference to the teacher's accuracy with its interval.
    """

    mode: str
    threshold: float | None
    forwards: float
    difference: float
    low: float
    by_task: dict[str, dict[str, Any]]


def sweep(
    subject: evaluated_model.EvaluatedModel,
    gate: GateSpec,
    thresholds: Sequence[float],
    reports: Sequence[BaselineReport],
) -> list[CalibrationPoint]:
    """Evaluates the model on the reports' problems at each threshold, and in mode `speculative` if it has that mode.

    Returns an outcome per threshold or mode, with the tasks' mean of forward passes and the worst task's difference.
    """
    tried: list[tuple[str, float | None]] = [("block", threshold) for threshold in thresholds]
    if "speculative" in subject.backend.contract.modes:
        tried.append(("speculative", None))
    points = []
    for mode, threshold in tried:
        by_task = {}
        for report in reports:
            how: dict[str, Any] = {"mode": mode, "threshold": threshold}
            found = evaluation_run.evaluate_model(subject, report.task, report.problems, gate, **how)
            apart = estimate_paired_difference(found.right, report.right)
            taken = sum(result.forwards for result in found.results)
            by_task[report.task.name] = {
                **found.summarize(),
                "difference": apart.mean,
                "difference_95": [apart.low, apart.high],
                "fewer_forwards": sum(report.forwards) / taken,
            }
        rows = by_task.values()
        forwards = sum(row["forwards"] for row in rows) / len(by_task)
        worst, low = min(row["difference"] for row in rows), min(row["difference_95"][0] for row in rows)
        points.append(CalibrationPoint(mode, threshold, forwards, worst, low, by_task))
    return points


def choose(points: Sequence[CalibrationPoint], target: float, bound: bool) -> CalibrationPoint | None:
    """Returns, of the outcomes within `target` of the teacher on every task, the one with the fewest forward passes, or
    None. target: percentage points below the teacher. bound: compare the lower end of the
    difference's 95 % interval, not its mean.
    """
    within = [p for p in points if 100 * (p.low if bound else p.difference) >= -target - 1e-9]
    return min(within, key=lambda p: p.forwards, default=None)


def choose_for_block_mode(points: Sequence[CalibrationPoint], target: float, bound: bool) -> float:
    """Returns the threshold of mode `block`: what `choose` takes of that mode; if none is within the target, the one
    with the fewest forward passes within `target` of the most accurate one, by the worst task.
    """
    block = [point for point in points if point.threshold is not None]
    best = choose(block, target, bound)
    if best is None:
        least = max(point.difference for point in block) - max(target, 0) / 100 - 1e-9
        best = min((point for point in block if point.difference >= least), key=lambda point: point.forwards)
    assert best.threshold is not None
    return best.threshold


def measure_reliability(
    subject: evaluated_model.EvaluatedModel, reports: Sequence[BaselineReport], seed: int
) -> dict[str, list[reliability.Bin]]:
    """Returns, by task, bins of the confidence at masked positions of the problems' known answers."""
    bins = {}
    for report in reports:
        pairs = [(problem.prompt, problem.answer) for problem in report.problems]
        examples = encode(subject.tokenizer, pairs, subject.backend.contract.eos_ids[0], subject.encode_prompts)
        bins[report.task.name] = reliability.compute_reliability(*reliability.probe(subject.backend, examples, seed))
    return bins


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, chooses a threshold or mode, writes it unless --no-write is given, and returns the report."""
    check_writable(args)
    for path in filter(None, (args.out, args.plot)):
        check_file(path)
    model = fill_dataclass(evaluated_model.ModelOptions, args, overrides=make_overrides(args, evaluated_model.OWN))
    evaluated_model.check_model_options(model)  # before the reports: the first mistake is named first
    wanted = parse_numbers(args.thresholds, "--thresholds") if args.thresholds else None
    chosen = () if args.teacher_report else tasks.choose_tasks(args.task, args.data)
    held_to = [str(path) for path in args.teacher_report] or [baseline.find_unquantized(args.bundle, args.engine)]
    known = [baseline.read_report(path, args.data) for path in args.teacher_report]
    check_one_per_task(known)
    subject = evaluated_model.open_evaluated_model(model)
    if "block" not in subject.backend.contract.modes:
        raise UserError(f"{args.ckpt or args.bundle} fills no blocks, so that it has no gate; nothing to calibrate")
    gate = evaluated_model.choose_gate(subject.gate, args.gate)
    thresholds = choose_thresholds(wanted, gate, subject.backend.contract.vocab)
    if not known:
        known = baseline.measure_baseline(replace(model, engine=held_to[0]), chosen, args.count, args.seed)
    known = [baseline.keep_fitting(each, subject) for each in known]
    baseline.check_right(known, held_to)
    points = sweep(subject, gate, thresholds, known)
    best = choose(points, args.target, args.by == "bound")
    bins = measure_reliability(subject, known, args.seed)
    if args.plot:
        plots.plot_reliability(args.plot, bins)
    threshold = None
    if best is not None:
        threshold = choose_for_block_mode(points, args.target, args.by == "bound")
        if args.write:
            keep(args, subject, replace(gate, threshold=threshold), best.mode)
    summary = report(args, gate, points, best, threshold, bins) | {"engine": subject.engine, "held_to": held_to}
    if args.out:
        replace_file(args.out, lambda temporary: temporary.write_text(json.dumps(summary, indent=1), encoding="utf-8"))
    return summary


def check_writable(args: argparse.Namespace) -> None:
    """Raises UserError, before any work, if the result could not be written into the model."""
    if args.write and args.ckpt and (args.ckpt.is_dir() or args.attention):
        found = "temperature" if args.decisions else "threshold"
        what = "a directory has no gate of its own" if args.ckpt.is_dir() else "under --attention it is another model"
        raise UserError(f"{args.ckpt} cannot be given its {found}: {what}; give --no-write, or calibrate its --bundle")


def check_no_threshold_options(args: argparse.Namespace) -> None:
    """Raises UserError for an option that has no effect on the temperature of decisions."""
    unused = {
        "--teacher-report": args.teacher_report, "--thresholds": args.thresholds, "--target": args.target != TARGET,
        "--by": args.by != "mean",
    }  # fmt: skip
    if (name := next((name for name, given in unused.items() if given), None)) is not None:
        raise UserError(f"{name} was given with --decisions, which holds a model to right answers; leave it out")


def check_one_per_task(reports: Sequence[BaselineReport]) -> None:
    """Raises UserError for a second report of a task, which would replace the first."""
    names = [report.task.name for report in reports]
    if again := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise UserError(f"--teacher-report has two reports of {again}; give one per task, of the model with more right")


def choose_thresholds(given: Sequence[float] | None, gate: GateSpec, vocab: int) -> Sequence[float]:
    """Returns the thresholds to try. Raises UserError if the gate has none, or for one outside its metric's range."""
    if gate.unit is None:
        raise UserError("this gate accepts a fixed count per step and has no threshold; give --gate rule=threshold")
    thresholds = gate.unit.grid if given is None else given
    for threshold in thresholds:
        gate.check_threshold(threshold, vocab)
    return thresholds


def report(
    args: argparse.Namespace,
    gate: GateSpec,
    points: Sequence[CalibrationPoint],
    best: CalibrationPoint | None,
    threshold: float | None,
    bins: dict[str, list[reliability.Bin]],
) -> dict[str, Any]:
    """Returns what --json prints and --out stores."""
    return {
        "model": str(args.ckpt or args.bundle),
        "target": args.target,
        "by": args.by,
        "gate": asdict(gate),
        "chosen": None if best is None else best.threshold,
        "mode": None if best is None else best.mode,
        "block_threshold": threshold,
        "written": best is not None and args.write,
        "calibration_error": {name: round(reliability.compute_expected_error(each), 5) for name, each in bins.items()},
        "points": [asdict(point) for point in points],
        "reliability": {name: [asdict(each) for each in rows] for name, rows in bins.items()},
    }


def keep(args: argparse.Namespace, subject: evaluated_model.EvaluatedModel, gate: GateSpec, mode: str) -> None:
    """Writes the gate to the checkpoint or the bundle's engine, and makes the mode the default one there."""
    if args.ckpt:
        return student_pt.set_gate(args.ckpt, asdict(gate), mode)
    from runtime.bundle.store import set_gate

    set_gate(args.bundle, subject.engine, gate, mode)


OPTIONS = (
    option("--decisions", action="store_true", help=HELP["decisions"]),
    option("--teacher-report", type=Path, nargs="+", default=[], metavar="JSON", help=HELP["teacher-report"]),
    option("--task", default="math,code", help="sample tasks, with commas, if no report is given (default: math,code)"),
    option(
        "--count",
        type=parse_at_least_1,
        default=COUNT,
        help=f"maximum number of problems per task, without a report (default: {COUNT})",
    ),
    option("--data", type=Path, help="JSON-lines file of the report's problems, instead of a task (default: none)"),
    option("--target", type=float, default=TARGET, help=HELP["target"]),
    option("--by", choices=("mean", "bound"), default="mean", help=HELP["by"]),
    option(
        "--thresholds", help="thresholds to try, with commas, in the gate's unit (default: a grid by the gate's metric)"
    ),
    option(
        "--write",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store the result in the model as its default (default: on)",
    ),
    option("--seed", type=int, default=0, help="seed of the masks for the reliability diagram (default: 0)"),
    option(
        "--plot", type=parse_png, metavar="FILE.png", help="file to plot the reliability diagram to (default: no plot)"
    ),
    option("--out", type=Path, help="file to write the JSON report to (default: none)"),
    option("--json", action="store_true", help="print the report as one JSON object"),
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    p = make_cli_parser("train.calibrate", (__doc__ or "").splitlines()[0])
    evaluated_model.add_model_options(p)
    add_options(p, OPTIONS)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 1 if no threshold meets the target."""
    return run_command(lambda: execute(make_parser().parse_args(argv)))


def execute(args: argparse.Namespace) -> int:
    """Calibrates and prints the outcome."""
    if args.decisions:
        check_no_threshold_options(args)
        check_writable(args)
        return decision_calibration.show(decision_calibration.calibrate(args), args.json)
    summary = calibrate(args)
    if args.json:
        print_json(summary)
    else:
        used = " and ".join(f"{own['problems']} of {name}" for name, own in summary["points"][0]["by_task"].items())
        against = f"   (to {', '.join(summary['held_to'])}, worst task; problems: {used})"
        print(f"{'threshold':>11}{'forward passes':>16}{'difference':>12}{'at least':>10}{against}")
        for point in summary["points"]:
            low, apart, named = point["low"], point["difference"], name_of(point["mode"], point["threshold"])
            print(f"{named:>11}{point['forwards']:>16.2f}{apart:>12.4f}{low:>10.4f}")
        errors = ", ".join(f"{name} {e:.4f}" for name, e in summary["calibration_error"].items())
        print(f"expected calibration error: {errors}")
        met = summary["mode"] is not None
        best = name_of(summary["mode"], summary["chosen"]) if met else "no threshold"
        apart = met and summary["chosen"] is None
        print(f"{best} meets the target" + (f"; mode block: {summary['block_threshold']:g}" if apart else ""))
    return DONE if summary["mode"] is not None else FAILED


def name_of(mode: str, threshold: float | None) -> str:
    """Returns an outcome's name: its threshold, or its mode if that has no threshold."""
    return mode if threshold is None else f"{threshold:g}"


if __name__ == "__main__":
    sys.exit(main())
