"""Reads or measures what a calibration compares with: how a teacher, or a bundle's fp32 engine, answers problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError
from train import tasks

from . import evaluated_model, evaluation_run

SPLIT = "valid"  # the split from which problems are sampled if there is no --teacher-report


@dataclass(frozen=True, slots=True)
class BaselineReport:
    """A baseline's outcomes on problems of one task: whether each answer is right, and its forward passes."""

    task: tasks.Task
    problems: list[tasks.Problem]
    right: list[bool]
    forwards: list[int]


def read_report(path: Path, data: Path | None) -> BaselineReport:
    """Reads the outcomes in a report of `train.evaluate`, and samples its problems again.

    Raises UserError if the file is not such a report, is of a test split or of `all`, or its problems are not found.
    """
    values = evaluation_run.read_evaluation(path)
    outcome, left_out = values["per_problem"], set(values["left_out"])
    right, forwards = [bool(each) for each in outcome["right"]], outcome["forwards"]
    name, split, seed = values["task"], values["split"], values["seed"]
    if split.startswith("test") or split == "all":
        raise UserError(f"{path} is of the split {split}; a threshold chosen there would spoil it: evaluate on valid")
    task = tasks.choose_tasks(name, data)[0]
    sampled = task.problems(split, len(right) + len(left_out), seed)
    problems = [problem for place, problem in enumerate(sampled) if place not in left_out]
    if task.name != name or len(problems) != len(right):
        raise UserError(f"{path} is of {len(right)} problems of {name}, which are not there; give its --data")
    return BaselineReport(task, problems, right, forwards)


def check_right(reports: Sequence[BaselineReport], names: Sequence[str]) -> None:
    """Raises UserError for a reference with no right answer on a task: every threshold would keep up with it.

    names: what the reports were read from or measured with; a single name is that of all.
    """
    for place, report in enumerate(reports):
        if not any(report.right):
            name, count = names[min(place, len(names) - 1)], len(report.right)
            raise UserError(
                f"{name} has 0 of {count} problems of {report.task.name} right; expected some, or every threshold "
                "would meet the target: train the reference model longer, or give --teacher-report of a better one"
            )


def find_unquantized(bundle: Path | None, engine: str | None) -> str:
    """Returns the name of the bundle's fp32 engine, with which `engine` is compared if there is no report.

    Raises UserError if there is no other fp32 engine.
    """
    if bundle is None:
        raise UserError(
            "--teacher-report is missing; give the teacher's, of blockstep train evaluate --split valid --out"
        )
    from runtime.bundle.store import read  # not at the top: only bundles need it

    made = read(bundle)
    chosen = made.find_engine(engine)
    plain = [each.name for each in made.find_engines() if each.precision == "fp32" and each.name != chosen.name]
    if not plain:
        raise UserError(
            f"{bundle} has no fp32 engine to hold {chosen.name} to; give --teacher-report, or export fp32 into it"
        )
    return plain[0]


def measure_baseline(
    model: evaluated_model.ModelOptions, chosen: Sequence[tasks.Task], count: int, seed: int
) -> list[BaselineReport]:
    """Measures a model, with its own gate, on `count` validation problems of each task."""
    subject = evaluated_model.open_evaluated_model(model)
    reports = []
    for task in chosen:
        problems = evaluation_run.sample_problems(task, SPLIT, count, seed)
        if not problems:
            raise UserError(f"{task.name} has no problems in the split {SPLIT}; give more of them, or --teacher-report")
        problems = [problems[place] for place in evaluation_run.find_fitting_problems(subject, problems)]
        found = evaluation_run.evaluate_model(subject, task, problems, subject.gate)
        reports.append(BaselineReport(task, problems, found.right, [result.forwards for result in found.results]))
    return reports


def keep_fitting(report: BaselineReport, subject: evaluated_model.EvaluatedModel) -> BaselineReport:
    """Returns the report without the problems whose prompts leave `subject` no room for an answer."""
    kept = evaluation_run.find_fitting_problems(subject, report.problems)
    right, forwards = [report.right[place] for place in kept], [report.forwards[place] for place in kept]
    return BaselineReport(report.task, [report.problems[place] for place in kept], right, forwards)
