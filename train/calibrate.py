"""Finds the threshold that keeps a model within a target of its teacher, and makes it the model's own.

python -m train.calibrate --ckpt student.pt --teacher-report teacher-math.json teacher-code.json
python -m train.calibrate --bundle student.bundle --engine ort-int8      # within a target of the bundle's ort-fp32
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runtime.cli import DONE, FAILED, add_options, command_parser, dataclass_of, option, print_json
from runtime.cli import run as run_command
from runtime.contract import GateSpec
from runtime.errors import UserError

from . import tasks
from .cli_options import overrides_of, parse_numbers
from .data.batches import encode
from .evaluation import baseline, evaluated_model, evaluation_run, plots, reliability
from .evaluation.baseline import BaselineReport
from .evaluation.intervals import paired_difference
from .storage import student_pt
from .storage.output_files import check_file, replace_file

COUNT = 400  # validation problems a task, where no report names them
HELP = {  # of the options whose text is longer than their line
    "teacher-report": (
        "of train.evaluate --out on the validation split, one per task: of the teacher, or of another model that has "
        "more right; the same problems are answered again (default, with --bundle: what its fp32 engine does is "
        "measured, by its own gate)"
    ),
    "target": "percentage points below that model, or the fp32 engine, at most (default 0.5)",
    "by": (
        "what has to be within the target: the difference's mean, or the lower end of its 95 %% interval (default mean)"
    ),
}


@dataclass(frozen=True, slots=True)
class ThresholdOutcome:
    """A threshold and what came of it. by_task: accuracy, forwards, difference to the teacher with its interval."""

    threshold: float
    forwards: float
    difference: float
    low: float
    by_task: dict[str, dict[str, Any]]


def sweep_thresholds(
    subject: evaluated_model.EvaluatedModel,
    gate: GateSpec,
    thresholds: Sequence[float],
    reports: Sequence[BaselineReport],
) -> list[ThresholdOutcome]:
    """The model on the teacher's problems at each threshold: means over the tasks, differences of the worst one."""
    points = []
    for threshold in thresholds:
        by_task = {}
        for report in reports:
            options = {"threshold": threshold, "mode": "block"}
            found = evaluation_run.evaluate_model(subject, report.task, report.problems, gate, **options)
            apart = paired_difference(found.right, report.right)
            taken = sum(result.forwards for result in found.results)
            by_task[report.task.name] = {
                **found.summary(),
                "difference": apart.mean,
                "difference_95": [apart.low, apart.high],
                "fewer_forwards": sum(report.forwards) / taken,
            }
        rows = by_task.values()
        forwards = sum(row["forwards"] for row in rows) / len(by_task)
        worst, low = min(row["difference"] for row in rows), min(row["difference_95"][0] for row in rows)
        points.append(ThresholdOutcome(threshold, forwards, worst, low, by_task))
    return points


def choose_threshold(points: Sequence[ThresholdOutcome], target: float, bound: bool) -> ThresholdOutcome | None:
    """The point of fewest forwards that is at most `target` points below the teacher on every task; None without any.

    bound: the lower end of the difference's 95 % interval has to be, not its mean.
    """
    within = [p for p in points if 100 * (p.low if bound else p.difference) >= -target - 1e-9]
    return min(within, key=lambda p: p.forwards, default=None)


def reliability_of(
    subject: evaluated_model.EvaluatedModel, reports: Sequence[BaselineReport], seed: int
) -> dict[str, list[reliability.Bin]]:
    """Bins of confidence on the problems' known answers, by task."""
    bins = {}
    for report in reports:
        pairs = [(problem.prompt, problem.answer) for problem in report.problems]
        examples = encode(subject.tokenizer, pairs, subject.backend.contract.eos_ids[0], subject.ask)
        bins[report.task.name] = reliability.reliability(*reliability.probe(subject.backend, examples, seed))
    return bins


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, chooses, writes the gate unless told not to, and returns the report."""
    if args.write and args.ckpt and (args.ckpt.is_dir() or args.attention):
        what = "a directory has no gate of its own" if args.ckpt.is_dir() else "under --attention it is another model"
        raise UserError(
            f"{args.ckpt} cannot be given its threshold: {what}; give --no-write, or calibrate its --bundle"
        )
    for path in filter(None, (args.out, args.plot)):
        check_file(path)
    held_to = [str(path) for path in args.teacher_report] or [baseline.unquantized(args.bundle, args.engine)]
    known = [baseline.read_report(path, args.data) for path in args.teacher_report]
    check_one_per_task(known)
    model = dataclass_of(evaluated_model.ModelOptions, args, overrides=overrides_of(args, evaluated_model.OWN))
    subject = evaluated_model.open_evaluated_model(model)
    if "block" not in subject.backend.contract.modes:
        raise UserError(f"{args.ckpt or args.bundle} fills no blocks, so that it has no gate; nothing to calibrate")
    gate = evaluated_model.chosen_gate(subject.gate, args.gate)
    thresholds = thresholds_of(args.thresholds, gate, subject.backend.contract.vocab)
    if not known:
        chosen = tasks.choose_tasks(args.task, args.data)
        known = baseline.measure_baseline(replace(model, engine=held_to[0]), chosen, args.count, args.seed)
    known = [baseline.keep_fitting(each, subject) for each in known]
    points = sweep_thresholds(subject, gate, thresholds, known)
    best = choose_threshold(points, args.target, args.by == "bound")
    bins = reliability_of(subject, known, args.seed)
    if args.plot:
        plots.plot_reliability(args.plot, bins)
    if best is not None and args.write:
        keep(args, subject, replace(gate, threshold=best.threshold))
    told = report(args, gate, points, best, bins) | {"engine": subject.engine, "held_to": held_to}
    if args.out:
        replace_file(args.out, lambda temporary: temporary.write_text(json.dumps(told, indent=1), encoding="utf-8"))
    return told


def check_one_per_task(reports: Sequence[BaselineReport]) -> None:
    """Raises UserError for a second report of a task, which would replace the first."""
    names = [report.task.name for report in reports]
    if again := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise UserError(f"--teacher-report has two reports of {again}; give one per task, of the model with more right")


def thresholds_of(given: str | None, gate: GateSpec, vocab: int) -> list[float]:
    """What is tried. Raises UserError for a gate without a threshold, and for one outside its metric's range."""
    if gate.unit is None:
        raise UserError("this gate accepts a fixed count a step and has no threshold; give --gate rule=threshold")
    thresholds = parse_numbers(given, "--thresholds") if given else list(gate.unit.grid)
    for threshold in thresholds:
        gate.check_threshold(threshold, vocab)
    return thresholds


def report(
    args: argparse.Namespace,
    gate: GateSpec,
    points: Sequence[ThresholdOutcome],
    best: ThresholdOutcome | None,
    bins: dict[str, list[reliability.Bin]],
) -> dict[str, Any]:
    """What --json prints and --out holds."""
    return {
        "model": str(args.ckpt or args.bundle),
        "target": args.target,
        "by": args.by,
        "gate": asdict(gate),
        "chosen": None if best is None else best.threshold,
        "written": best is not None and args.write,
        "calibration_error": {name: round(reliability.expected_error(each), 5) for name, each in bins.items()},
        "points": [asdict(point) for point in points],
        "reliability": {name: [asdict(each) for each in rows] for name, rows in bins.items()},
    }


def keep(args: argparse.Namespace, subject: evaluated_model.EvaluatedModel, gate: GateSpec) -> None:
    """Makes the gate the checkpoint's or the engine's own."""
    if args.ckpt:
        return student_pt.set_gate(args.ckpt, asdict(gate))
    from runtime.bundle.store import set_gate

    set_gate(args.bundle, subject.engine, gate)


OPTIONS = (
    option("--teacher-report", type=Path, nargs="+", default=[], metavar="JSON", help=HELP["teacher-report"]),
    option("--task", default="math,code", help="sample tasks, without a report (default math,code)"),
    option("--count", type=int, default=COUNT, help=f"problems a task, without a report (default {COUNT})"),
    option("--data", type=Path, help="JSON lines that the report's problems are from, instead of a task"),
    option("--target", type=float, default=0.5, help=HELP["target"]),
    option("--by", choices=("mean", "bound"), default="mean", help=HELP["by"]),
    option("--thresholds", help="to try, with commas (default a grid by the gate's metric)"),
    option("--write", action=argparse.BooleanOptionalAction, default=True, help="make it the default gate"),
    option("--seed", type=int, default=0, help="of what is masked for the reliability (default 0)"),
    option("--plot", type=Path, metavar="PNG", help="reliability diagram"),
    option("--out", type=Path, help="JSON report"),
    option("--json", action="store_true", help="print the report as one JSON object"),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser("train.calibrate", (__doc__ or "").splitlines()[0])
    evaluated_model.add_model_options(p)
    add_options(p, OPTIONS)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 1 where no threshold meets the target."""
    return run_command(lambda: command(parser().parse_args(argv)))


def command(args: argparse.Namespace) -> int:
    """Calibrates and prints what came of it."""
    told = calibrate(args)
    if args.json:
        print_json(told)
    else:
        against = f"   (to {', '.join(told['held_to'])}, worst task)"
        print(f"{'threshold':>10}{'forwards':>10}{'difference':>12}{'at least':>10}{against}")
        for point in told["points"]:
            low, apart = point["low"], point["difference"]
            print(f"{point['threshold']:>10g}{point['forwards']:>10.2f}{apart:>12.4f}{low:>10.4f}")
        print(
            "expected calibration error:", ", ".join(f"{name} {e:.4f}" for name, e in told["calibration_error"].items())
        )
        print(f"{told['chosen']} meets the target" if told["chosen"] is not None else "no threshold meets the target")
    return DONE if told["chosen"] is not None else FAILED


if __name__ == "__main__":
    sys.exit(main())
