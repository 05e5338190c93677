"""Fits the temperature that calibrates the probabilities of typed decisions, for `blockstep train calibrate`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from runtime.cli import DONE, fill_dataclass, print_json
from runtime.errors import UserError
from train import tasks
from train.cli_options import make_overrides
from train.storage import student_pt
from train.storage.output_files import check_file, replace_file

from . import baseline, decisions, evaluated_model, evaluation_run, plots
from .temperature import fit_temperature, measure_calibration


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Fits the temperature of decisions on validation problems, writes it if --write is on, and returns the report."""
    task, *others = tasks.choose_tasks(args.task, args.data)
    if others or task.form is None:
        raise UserError(f"--task is {args.task}; --decisions takes one task of {decisions.list_form_names()}")
    for path in filter(None, (args.out, args.plot)):
        check_file(path)
    subject = evaluated_model.open_evaluated_model(
        fill_dataclass(evaluated_model.ModelOptions, args, overrides=make_overrides(args, evaluated_model.OWN))
    )
    problems = evaluation_run.sample_problems(task, baseline.SPLIT, args.count, args.seed)
    prompts = subject.encode_prompts([problem.prompt for problem in problems])
    found = decisions.collect_outcomes(task, problems, prompts, decisions.decide_with(subject))
    decided = decisions.join_outcomes(found)
    temperature = round(fit_temperature(decided), 4)
    before, after = measure_calibration(decided, 1.0), measure_calibration(decided, temperature)
    shown = {"before": before.bins, "after": after.bins}
    if args.plot:
        plots.plot_reliability(args.plot, shown, "field")
    if args.write:
        keep_temperature(args, subject, temperature)
    summary = {
        "model": str(args.ckpt or args.bundle), "engine": subject.engine, "task": task.name, "split": baseline.SPLIT,
        "seed": args.seed, "problems": len(problems), "decisions": len(decided.right), "temperature": temperature,
        "written": args.write, "before": before.as_dict(), "after": after.as_dict(),
        "by_field": decisions.summarize_fields(found, temperature),
        "reliability": {name: [asdict(each) for each in bins] for name, bins in shown.items()},
    }  # fmt: skip
    if args.out:
        replace_file(args.out, lambda temporary: temporary.write_text(json.dumps(summary, indent=1), encoding="utf-8"))
    return summary


def keep_temperature(args: argparse.Namespace, subject: evaluated_model.EvaluatedModel, temperature: float) -> None:
    """Writes the temperature of decisions to the checkpoint or the bundle's engine."""
    if args.ckpt:
        return student_pt.set_decision_temperature(args.ckpt, temperature)
    from runtime.bundle.store import set_decision_temperature

    set_decision_temperature(args.bundle, subject.engine, temperature)


def show(data: dict[str, Any], as_json: bool) -> int:
    """Prints the report of `--decisions`, as JSON or as a table of the fields and a summary; returns the exit code."""
    if as_json:
        print_json(data)
        return DONE
    print(f"{'field':<12}{'right':>8}{'expected error':>16}{'calibrated':>12}")
    for name, each in data["by_field"].items():
        errors = f"{each['expected_calibration_error']:>16.4f}{each['calibrated']:>12.4f}"
        print(f"{name:<12}{each['right']:>8.4f}{errors}")
    error, loss = "expected_calibration_error", "negative_log_likelihood"
    before, after = data["before"], data["after"]
    print(f"temperature {data['temperature']:g}: expected calibration error {before[error]:.4f} -> {after[error]:.4f}")
    print(f"negative log-likelihood {before[loss]:.4f} -> {after[loss]:.4f} nats, {data['decisions']} decisions")
    return DONE
