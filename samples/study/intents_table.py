"""Measures ways to fill the form of the task `intents` on held-out utterances: accuracy, time, forward passes.

    python -m samples.study.intents_table runs/intents --linear samples/results/intents_linear.json \\
        --out samples/results/intents.json

The folder is what samples/recipe.sh wrote, with a bundle of the baseline (`blockstep export onnx --ckpt
runs/intents/baseline.pt --candidates 128 --out runs/intents/baseline.bundle`). The student decides the form, `parallel`
or `ordered`, or writes JSON text, which is parsed; the autoregressive baseline scores the same values from left to
right (`ordered`: its block is one token), or writes the text. Every utterance is answered in every way before the next
one, in one process and one thread. `samples.study.intents_linear` writes the linear classifiers' file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from runtime.bundle import manifest
from runtime.cli import DONE, make_cli_parser, option
from runtime.cli import run as run_command
from runtime.decisions.form import Form, Probability
from runtime.errors import UserError
from runtime.model import Model
from runtime.open_bundle import load
from runtime.perf.conditions import read_processor_name
from train.evaluation.decisions import find_right_indices
from train.evaluation.intervals import estimate_paired_difference, estimate_proportion
from train.evaluation.temperature import collect, measure_calibration
from train.storage.output_files import check_file, replace_file
from train.tasks import Problem, intents

SPLITS = ("test", "test_surface")
TEXT = "JSON text"
STUDENT = ("ort-fp32", "ort-int8")
ACCURACIES = ("exact", "intent_accuracy", "slots_accuracy")
INTRO = """# Ways to fill a form

{} utterances per split of task `intents`, whose families no model has seen; {}, one thread. A whole form is the intent
and nine slots. 95 % intervals in parentheses; times are medians of one utterance, tokenizing included. Made by
`python -m samples.study.intents_table`; every figure is in `intents.json`.
"""
CALIBRATION_INTRO = """
Calibration: expected calibration error of the fields' values on the same utterances, at temperature 1 and at the
bundle's own, which `blockstep train calibrate --decisions` fitted on other ones.
"""

HEADS = (
    "model", "values by", "whole form right, %", "to the first row", "intent, %", "slots, %", "within the schema",
    "forward passes", "ms",
)  # fmt: skip
CALIBRATION_HEADS = (
    "split", "model", "probabilities", "temperature", "error at 1, %", "error, %", "log-likelihood at 1",
    "log-likelihood",
)  # fmt: skip

Row = dict[str, Any]


@dataclass(slots=True)
class Outcomes:
    """Holds the outcomes of one way to fill the form.

    Attributes:
        texts: per utterance, the form as JSON text.
        forwards: per utterance, forward passes.
        milliseconds: per utterance, by the clock.
        cpu_milliseconds: per utterance, of all threads.
        probabilities: per field of every decided form, the probabilities of its values at temperature 1.
        right: per field of every decided form, the index of the right value.
    """

    texts: list[str] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    cpu_milliseconds: list[float] = field(default_factory=list)
    probabilities: list[Sequence[float]] = field(default_factory=list)
    right: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ModelFill:
    """Names a way to fill the form: a model, and how it does it: `parallel`, `ordered` or TEXT."""

    model: str
    how: str


def fill_form(model: Model, way: ModelFill, problem: Problem, form: Form, outcomes: Outcomes) -> None:
    """Fills the form of one utterance and adds its outcome to `outcomes`."""
    cpu_start, start = time.process_time(), time.perf_counter()
    if way.how == TEXT:
        answer = model.generate(problem.prompt)
        text, forwards = answer.text, answer.result.forwards
    else:
        decision = model.decide_form(problem.prompt, form, probability=cast(Probability, way.how), temperature=1.0)
        text, forwards = decision.text, decision.forwards
    outcomes.milliseconds.append(1000 * (time.perf_counter() - start))
    outcomes.cpu_milliseconds.append(1000 * (time.process_time() - cpu_start))
    outcomes.texts.append(text)
    outcomes.forwards.append(forwards)
    if way.how != TEXT:
        outcomes.probabilities += [field.probabilities for field in decision.fields]
        outcomes.right += find_right_indices(form, problem.answer)


def measure(
    models: Mapping[str, Model], ways: Sequence[ModelFill], problems: Sequence[Problem]
) -> dict[ModelFill, Outcomes]:
    """Fills the form of every utterance in every way, utterance by utterance; returns the outcomes by way."""
    form, outcomes = intents.make_form(), {way: Outcomes() for way in ways}
    for problem in tqdm(problems, unit="utterance", mininterval=2):
        for previous, way in zip([None, *ways], ways, strict=False):
            if previous is None or previous.model != way.model:
                # Not measured: the first answer after another model's reads all weights from memory again.
                fill_form(models[way.model], way, problem, form, Outcomes())
            fill_form(models[way.model], way, problem, form, outcomes[way])
    return outcomes


def grade_by_part(problems: Sequence[Problem], texts: Sequence[str]) -> dict[str, list[bool]]:
    """Returns, by name in ACCURACIES, which utterances are right."""
    answers = [intents.read_answer(text) or {} for text in texts]
    right_answers = [json.loads(problem.answer) for problem in problems]
    verdicts = [
        {name: answer.get(name, "") == right[name] for name in intents.FIELDS}
        for answer, right in zip(answers, right_answers, strict=True)
    ]
    slots = [all(verdict[slot] for slot in intents.SLOTS) for verdict in verdicts]
    intent = [verdict["intent"] for verdict in verdicts]
    return {
        "exact": [a and b for a, b in zip(slots, intent, strict=True)],
        "intent_accuracy": intent,
        "slots_accuracy": slots,
    }


def make_row(
    way: ModelFill, model: Model, outcomes: Outcomes, problems: Sequence[Problem], first: Sequence[bool]
) -> Row:
    """Returns a way's figures. first: which whole forms the first way filled right, for the paired difference."""
    row: Row = {"model": way.model, "how": way.how, "problems": len(problems)}
    by_name = grade_by_part(problems, outcomes.texts)
    for name, right in by_name.items():
        share = estimate_proportion(right)
        row |= {name: round(share.mean, 5), f"{name}_95": [round(share.low, 5), round(share.high, 5)]}
    difference = estimate_paired_difference(by_name["exact"], first)
    row["exact_to_first"] = [round(value, 5) for value in (difference.mean, difference.low, difference.high)]
    row["within_schema"] = sum(intents.read_answer(text) is not None for text in outcomes.texts)
    row["forwards"] = round(statistics.fmean(outcomes.forwards), 3)
    row["ms"] = round(statistics.median(outcomes.milliseconds), 3)
    row["cpu_ms"] = round(statistics.fmean(outcomes.cpu_milliseconds), 3)
    if way.how != TEXT:
        decisions = collect(outcomes.probabilities, outcomes.right)
        temperatures = (1.0, model.decision_temperature)
        row["calibration"] = [measure_calibration(decisions, temperature).as_dict() for temperature in temperatures]
    return row


def format_tables(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the page: a table per split, and the table of calibration."""
    yield INTRO.format(report["count"], report["cpu"])
    for split, rows in report["splits"].items():
        yield f"\n## {split}\n"
        yield f"| {' | '.join(HEADS)} |"
        yield f"|{'---|' * len(HEADS)}"
        for index, row in enumerate(rows):
            shares = format_shares(row)
            mean, low, high = map(format_percent, row["exact_to_first"])
            difference = f"{mean} ({low} to {high})" if index else ""
            cells = [row["model"], row["how"], shares[0], difference, *shares[1:], f"{row['within_schema']:,}"]
            yield f"| {' | '.join(cells)} | {row['forwards']:.2f} | {row['ms']:.2f} |"
        for row in report["linear"]:
            shares = format_shares(row[split])
            cells = [f"linear classifiers, {row['size']:,} utterances", "", shares[0], "", *shares[1:], "all", ""]
            yield f"| {' | '.join(cells)} | {row['ms']:.2f} |"
    yield CALIBRATION_INTRO
    yield f"| {' | '.join(CALIBRATION_HEADS)} |"
    yield f"|{'---|' * len(CALIBRATION_HEADS)}"
    for split, rows in report["splits"].items():
        for row in rows:
            if "calibration" in row:
                before, after = row["calibration"]
                errors = [format_percent(each["expected_calibration_error"], 2) for each in (before, after)]
                likelihoods = [f"{-each['negative_log_likelihood']:.4f}" for each in (before, after)]
                cells = [split, row["model"], row["how"], f"{after['temperature']:.3f}", *errors, *likelihoods]
                yield f"| {' | '.join(cells)} |"


def format_shares(figures: Mapping[str, Any]) -> list[str]:
    """Returns the accuracies in percent, with their 95 % intervals, as texts."""
    return [
        f"{format_percent(figures[name])} ({' to '.join(map(format_percent, figures[f'{name}_95']))})"
        for name in ACCURACIES
    ]


def format_percent(share: float, digits: int = 1) -> str:
    """Returns a share in percent, without the sign."""
    return f"{100 * share:.{digits}f}"


def open_models(runs: Path) -> tuple[dict[str, Model], list[ModelFill]]:
    """Returns the models by name, and the ways to fill the form in the order of the table."""
    models, ways = dict[str, Model](), list[ModelFill]()
    for engine in STUDENT:
        name = f"student, {engine}"
        models[name] = load(runs / "student.bundle", engine=engine, threads=1, allow_spinning=False)
        ways += [ModelFill(name, how) for how in ("parallel", "ordered", TEXT)]
    models["baseline, ort-fp32"] = load(runs / "baseline.bundle", engine=STUDENT[0], threads=1, allow_spinning=False)
    ways += [ModelFill("baseline, ort-fp32", how) for how in ("ordered", TEXT)]
    return models, ways


def read_linear(path: Path) -> list[Row]:
    """Returns the rows of the linear classifiers. Raises UserError if the file lacks figures of the table."""
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        complete = all(
            "ms" in row and all(name in row[split] for split in SPLITS for name in ACCURACIES) for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--linear {path} cannot be read ({error}); make it with samples.study.intents_linear"
        ) from None
    if not complete:
        raise UserError(f"--linear {path} lacks times or slots; make it anew with samples.study.intents_linear")
    return rows


def execute(args: argparse.Namespace) -> int:
    """Measures, writes the report and its page, and prints the page."""
    check_file(args.out)
    if args.out.suffix != ".json":
        raise UserError(f"--out is {args.out}; expected a .json file, next to which the page is written as .md")
    if args.count < 1:
        raise UserError(f"--count is {args.count}; expected at least one utterance per split")
    linear = read_linear(args.linear) if args.linear else []
    models, ways = open_models(args.runs)
    report: dict[str, Any] = {"count": args.count, "cpu": read_processor_name(), "linear": linear, "splits": {}}
    report["engines"] = {
        name: {engine.name: engine.model for engine in manifest.read(args.runs / f"{name}.bundle").engines}
        for name in ("student", "baseline")
    }
    for split in SPLITS:
        problems = [*intents.sample_problems(split, args.count, 0)]
        outcomes = measure(models, ways, problems)
        first = grade_by_part(problems, outcomes[ways[0]].texts)["exact"]
        report["splits"][split] = [make_row(way, models[way.model], outcomes[way], problems, first) for way in ways]
    values = json.dumps(report, indent=1) + "\n"
    replace_file(args.out, lambda path: path.write_text(values, encoding="utf-8"))
    text = "\n".join(format_tables(report)) + "\n"
    replace_file(args.out.with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))
    print(text)
    return DONE


OPTIONS = (
    option("runs", type=Path, metavar="RUNS", help="folder that the recipe wrote"),
    option("--linear", type=Path, help="report of samples.study.intents_linear (default: none)"),
    option("--count", type=int, default=2000, help="utterances per split (default: 2000)"),
    option("--out", type=Path, required=True, help="JSON file to write; the page is written next to it, as .md"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    p = make_cli_parser("samples.study.intents_table", (__doc__ or "").splitlines()[0], OPTIONS)
    return run_command(lambda: execute(p.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
