"""Generates answers to held-out problems and grades them: accuracy, forward passes, lengths, seconds; of any model.

python -m train.evaluate --ckpt student.pt --task math --split test --count 2000
python -m train.evaluate --bundle student.bundle --task code
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.backend import Backend
from runtime.cli import DONE, MODE_OPTION, add_options, fill_dataclass, make_cli_parser, option, print_json
from runtime.cli import run as run_command
from runtime.decoding.options import choose_mode
from runtime.errors import UserError

from . import tasks
from .cli_options import make_overrides
from .evaluation.evaluated_model import OWN, ModelOptions, add_model_options, choose_gate, open_evaluated_model
from .evaluation.evaluation_run import (
    Evaluation,
    evaluate_model,
    find_fitting_problems,
    measure_task,
    read_evaluation,
    sample_problems,
    summarize_groups,
)
from .evaluation.intervals import estimate_paired_difference
from .storage.output_files import check_file, replace_file

COUNT = 500
GROUPS_SHOWN = 12
SPLIT_HELP = (
    "split of the task: train, valid, test, or another such as test_surface (docs/distil.md); of --data also all, "
    "each line once and in order, as a published test file is graded (default: valid)"
)


def choose_problems(args: argparse.Namespace) -> tuple[tasks.Task, list[tasks.Problem]]:
    """Returns the task and its problems. Raises UserError for several tasks, or an unusable --count or --split."""
    if args.count is not None and args.count < 1:
        raise UserError(f"--count is {args.count}; expected at least 1")
    task, *others = tasks.choose_tasks(args.task, args.data)
    if others:
        raise UserError(f"--task is {args.task}; evaluation takes one task at a time, as {task.name}: run it for each")
    if args.split == "all" and args.data is None:
        raise UserError("--split all is for --data; the problems of a task have no end, so give --split and --count")
    if args.count is None and args.split == "all":
        return task, list(task.problems(args.split, sys.maxsize, args.seed))
    return task, sample_problems(task, args.split, args.count or COUNT, args.seed)


def assess(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates by the command line's options and returns the report."""
    if args.out:
        check_file(args.out)
    other = read_evaluation(args.against) if args.against else None
    task, problems = choose_problems(args)
    subject = open_evaluated_model(fill_dataclass(ModelOptions, args, overrides=make_overrides(args, OWN)))
    gated, gate = args.gate or args.threshold is not None, choose_gate(subject.gate, args.gate, args.threshold)
    mode = choose_mode(subject.backend.contract, args.mode, bool(gated))
    if mode != "block" and gated:
        raise UserError(f"--gate or --threshold was given with mode {mode}, which has no gate; leave one of them out")
    kept = find_fitting_problems(subject, problems)
    left_out = sorted({*range(len(problems))} - {*kept})
    problems = [problems[place] for place in kept]
    sampling = {"task": task.name, "split": args.split, "seed": args.seed}
    if other is not None:
        check_same(args.against, other, {**sampling, "problems": len(problems)}, left_out)
    found = evaluate_model(subject, task, problems, gate, mode=mode)
    figures, wrong = measure_task(task, problems, found.texts)
    per_problem = {
        "right": [int(verdict) for verdict in found.right],
        "forwards": [result.forwards for result in found.results],
        "length": [len(result.token_ids) for result in found.results],
        **wrong,
        **({"left_out": left_out} if left_out else {}),
    }
    report = {
        **collect_settings(args, subject.backend, sampling),
        "mode": mode,
        "gate": asdict(gate),
        **found.summarize(),
        **figures,
    }
    report["by_group"] = summarize_groups(problems, found.right)
    if other is not None:
        report["against"] = compare(other, per_problem)
    if args.out:
        text = json.dumps({**report, "per_problem": per_problem})
        replace_file(args.out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if args.wrong:
        show_wrong(problems, found)
    return report


def collect_settings(args: argparse.Namespace, backend: Backend, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a report's settings: model, engine, problems, precision. sampling: the problems' task, split and seed."""
    model = {"model": str(args.ckpt or args.bundle), "engine": backend.name, "attention": backend.contract.attention}
    return {**model, "commit": "fused", **sampling, "bf16": bool(args.bf16)}


def show_wrong(problems: Sequence[tasks.Problem], found: Evaluation) -> None:
    """Prints wrong answers next to the right ones, to stderr."""
    for problem, text, right in zip(problems, found.texts, found.right, strict=True):
        if not right:
            print(f"--- {problem.group}\n{problem.prompt}\n{text}\n--- expected\n{problem.answer}", file=sys.stderr)


def format_worst_groups(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the worst groups of a report, in one line."""
    shown = [f"{name} {each['right']} of {each['problems']}" for name, each in list(groups.items())[:GROUPS_SHOWN]]
    return ", ".join([*shown, *["…"] * (len(groups) > GROUPS_SHOWN)])


def check_same(path: Path, other: Mapping[str, Any], where: Mapping[str, Any], left_out: list[int]) -> None:
    """Raises UserError unless a report has the problems of this run; those of `valid_surface` count as `valid`'s."""
    theirs, ours = [other[name] for name in where], list(where.values())
    plain = [[str(value).removesuffix("_surface") for value in values] for values in (theirs, ours)]
    if plain[0] != plain[1] or other["left_out"] != left_out:
        what = f"{theirs}, this run is of {ours}" if plain[0] != plain[1] else "other lines were left out"
        raise UserError(f"--against {path} is of other problems: {what}; evaluate both alike")


def compare(other: Mapping[str, Any], per_problem: Mapping[str, list[int]]) -> dict[str, Any]:
    """Compares this run with an earlier `--out` on the same problems: accuracy difference, ratio of forward passes."""
    theirs = other["per_problem"]
    difference = estimate_paired_difference(per_problem["right"], theirs["right"])
    return {
        "model": other["model"],
        "difference": round(difference.mean, 5),
        "difference_95": [round(difference.low, 5), round(difference.high, 5)],
        "fewer_forwards": round(sum(theirs["forwards"]) / sum(per_problem["forwards"]), 3),
    }


OPTIONS = (
    MODE_OPTION,
    option(
        "--threshold", type=float, help="threshold of the gate: a probability, nats or a factor (default: the model's)"
    ),
    option("--task", default="math", help="sample task: math, code, pronounce or intents (default: math)"),
    option("--data", type=Path, help="file of JSON lines with prompt and answer, instead of a task (default: none)"),
    option("--split", default="valid", help=SPLIT_HELP),
    option(
        "--count",
        type=int,
        help=f"number of problems, at most those of the split (default: {COUNT}; with --split all, every line)",
    ),
    option("--seed", type=int, default=0, help="seed that the problems are sampled by (default: 0)"),
    option("--out", type=Path, help="file to write the JSON report with each problem's outcome to (default: none)"),
    option("--against", type=Path, help="earlier --out on the same problems, for a paired comparison (default: none)"),
    option("--wrong", action="store_true", help="print wrong answers to stderr (default: off)"),
    option("--json", action="store_true", help="print the report as one JSON object"),
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    p = make_cli_parser("train.evaluate", (__doc__ or "").splitlines()[0])
    add_model_options(p)
    add_options(p, OPTIONS)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(lambda: execute(make_parser().parse_args(argv)))


def execute(args: argparse.Namespace) -> int:
    """Evaluates and prints the report."""
    report = assess(args)
    if args.json:
        print_json(report)
    else:
        for name, value in report.items():
            print(f"{name:20} {format_worst_groups(value) if name == 'by_group' else value}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
