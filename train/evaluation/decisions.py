"""Measures a model's confidence in the fields of forms and how often it is right, to calibrate decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from runtime.decisions.decide import DecisionOptions, decide
from runtime.decisions.form import Field, Form, Path
from runtime.decoding.options import convert_token_ids
from runtime.errors import UserError
from runtime.text.tokenizer import Tokenizer
from train import tasks
from train.tasks.table import TASKS

from .evaluated_model import EvaluatedModel
from .temperature import LabelledDecisions, collect, measure_calibration

Decide = Callable[[Sequence[int], Form], Sequence[Sequence[float]]]


@dataclass(frozen=True, slots=True)
class FieldOutcomes:
    """The decisions of one field: per problem, the probabilities of its values and the index of the right one."""

    probabilities: list[Sequence[float]]
    right: list[int]


def find_right_indices(form: Form, answer: str) -> list[int]:
    """Returns the index of each field's value in an answer, which is the form with one value per field.

    Raises UserError if no choice of values gives the answer, or several do.
    """
    # Indices chosen so far, and the rest of the answer.
    places: list[tuple[list[int], str]] = [([], answer)] if form.parts else []
    for part in form.parts:
        values = enumerate(part.values) if isinstance(part, Field) else [(-1, part)] if isinstance(part, str) else []
        options = list(values)
        places = [
            (chosen + [index] * (index >= 0), rest.removeprefix(text))
            for chosen, rest in places
            for index, text in options
            if rest.startswith(text)
        ]
    found = [chosen for chosen, rest in places if not rest]
    if len(found) != 1:
        raise UserError(f"{answer!r} fills the form in {len(found)} ways; expected one value of each field")
    return found[0]


def decide_with(subject: EvaluatedModel) -> Decide:
    """Returns what decides a form after a prompt's ids, by the model, at temperature 1, all fields at once."""
    tokenizer = Tokenizer(subject.tokenizer.to_str())

    def probabilities(prompt: Sequence[int], form: Form) -> list[Sequence[float]]:
        made = decide(
            subject.backend, tokenizer, subject.gate, convert_token_ids(list(prompt)), form, DecisionOptions()
        )
        return [field.probabilities for field in made.fields]

    return probabilities


def collect_outcomes(
    task: tasks.Task, problems: Sequence[tasks.Problem], prompts: Sequence[Sequence[int]], deciding: Decide
) -> dict[Path, FieldOutcomes]:
    """Decides a task's form for each problem; returns each field's outcomes. Raises UserError if it has no form."""
    if task.form is None:
        raise UserError(f"the answers of {task.name} are not filled forms; --decisions is for {list_form_names()}")
    form = task.form()
    fields = [part for part in form.parts if isinstance(part, Field)]
    found = {field.path: FieldOutcomes([], []) for field in fields}
    for problem, prompt in zip(tqdm(problems, unit="form", mininterval=2), prompts, strict=True):
        right = find_right_indices(form, problem.answer)
        for field, index, row in zip(fields, right, deciding(prompt, form), strict=True):
            found[field.path].probabilities.append(row)
            found[field.path].right.append(index)
    return found


def list_form_names() -> str:
    """Returns the names of the tasks that have forms."""
    return ", ".join(name for name, task in TASKS.items() if task.form is not None)


def join_outcomes(found: Mapping[Path, FieldOutcomes]) -> LabelledDecisions:
    """Returns the decisions of all fields in one table."""
    rows = [row for each in found.values() for row in each.probabilities]
    return collect(rows, [index for each in found.values() for index in each.right])


def summarize_fields(found: Mapping[Path, FieldOutcomes], temperature: float) -> dict[str, dict[str, Any]]:
    """Returns each field's share of right values, and its expected calibration error at temperature 1 and the given."""
    report = {}
    for path, each in found.items():
        decided = collect(each.probabilities, each.right)
        before, after = measure_calibration(decided, 1.0), measure_calibration(decided, temperature)
        right = sum(bin_.count * bin_.right for bin_ in before.bins) / len(each.right)
        errors = {"expected_calibration_error": round(before.error, 5), "calibrated": round(after.error, 5)}
        report[format_path(path)] = {"right": round(right, 5), **errors}
    return report


def format_path(path: Path) -> str:
    """Returns a field's path as text, such as `intent` or `items.0`."""
    return ".".join(map(str, path))
