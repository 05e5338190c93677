"""Lists the sample tasks, and makes a task of users' own data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runtime.decisions.form import Field, Form
from runtime.errors import UserError
from train.huggingface.token_merging import QWEN2_SPLIT

from . import functions, intents, jsonl, pronunciation, word_problems
from .problem import Problem, find_split


@dataclass(frozen=True, slots=True)
class Task:
    """A source of problems and their grading.

    Attributes:
        problems: called with split, count, seed; yields problems.
        grade_many: called with problems and texts; returns which texts are right.
        measure: called with problems and texts; returns more figures, by name, for a report.
        shares: names of those figures that are shares of the problems; a report gives their confidence intervals.
        form: called without arguments; returns the form that every answer fills. None if the task has no form.
        split_pattern: regular expression that pre-tokenizes texts: no token spans two of its matches.
    """

    name: str
    problems: Callable[[str, int, int], Iterator[Problem]]
    grade_many: Callable[[Sequence[Problem], Sequence[str]], list[bool]]
    measure: Callable[[Sequence[Problem], Sequence[str]], Mapping[str, float]] = lambda problems, texts: {}
    split_pattern: str = QWEN2_SPLIT
    shares: tuple[str, ...] = ()
    form: Callable[[], Form] | None = None

    def list_form_values(self) -> list[str]:
        """Returns all values of the form's fields, as texts; none if the task has no form."""
        parts = self.form().parts if self.form else ()
        return [value for part in parts if isinstance(part, Field) for value in part.values]


def make_grade_many(grade: Callable[[Problem, str], bool]) -> Callable[[Sequence[Problem], Sequence[str]], list[bool]]:
    """Returns a function that grades many texts by calling `grade` for each."""
    return lambda problems, texts: [grade(problem, text) for problem, text in zip(problems, texts, strict=True)]


def _make_pronounce(name: str, **options: Any) -> Task:
    return Task(
        name,
        partial(pronunciation.sample_problems, **options),
        make_grade_many(pronunciation.grade),
        pronunciation.compute_error_rates,
        pronunciation.SPLIT_PATTERN,
        pronunciation.SHARES,
    )


_grade_math = make_grade_many(word_problems.grade)

TASKS = {
    "math": Task("math", word_problems.sample_problems, _grade_math),
    "code": Task("code", functions.sample_problems, functions.grade_many),
    "pronounce": _make_pronounce("pronounce"),
    "pronounce_by_word": _make_pronounce("pronounce_by_word", find_word_split=find_split),  # as in published splits
    "intents": Task(
        "intents",
        intents.sample_problems,
        make_grade_many(intents.grade),
        intents.measure,
        intents.SPLIT_PATTERN,
        intents.SHARES,
        intents.make_form,
    ),
}


def choose_tasks(names: str, data: Path | None = None) -> tuple[Task, ...]:
    """Returns users' own data as a task, or the tasks of a comma-separated list such as `math,code`.

    Raises UserError for an unknown name.
    """
    if data is not None:
        return (from_file(data),)
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in TASKS:
            raise UserError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}, or give --data FILE.jsonl")
    return tuple(TASKS[name] for name in chosen)


def from_file(path: Path) -> Task:
    """Returns users' own data as a task; layouts: see `jsonl.read`. Raises UserError naming the line that is wrong."""
    lines = jsonl.read(path)

    def grade_many(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
        return jsonl.grade_many(problems, texts, _grade_math, functions.grade_many)

    return Task(path.stem, lambda split, count, seed: jsonl.sample_problems(lines, split, count, seed), grade_many)
