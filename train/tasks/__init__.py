"""The sample tasks and users' own data, all behind one small interface: `Task`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

from . import functions, jsonl, word_problems
from .problem import Problem

__all__ = ["Problem", "Task", "choose_tasks", "from_file"]


@dataclass(frozen=True, slots=True)
class Task:
    """`problems(split, count, seed)` yields problems; `grade_many(problems, texts)` says which texts are right."""

    name: str
    problems: Callable[[str, int, int], Iterator[Problem]]
    grade_many: Callable[[Sequence[Problem], Sequence[str]], list[bool]]


def _grade_math(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
    return [word_problems.grade(problem, text) for problem, text in zip(problems, texts, strict=True)]


TASKS = {
    "math": Task("math", word_problems.problems, _grade_math),
    "code": Task("code", functions.problems, functions.grade_many),
}


def choose_tasks(names: str) -> tuple[Task, ...]:
    """The tasks of a comma-separated list such as `math,code`. Raises UserError for an unknown name."""
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in TASKS:
            raise UserError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}, or give --data FILE.jsonl")
    return tuple(TASKS[name] for name in wanted)


def from_file(path: Path) -> Task:
    """One's own data as a task; see `jsonl.read` for the layouts. Raises UserError naming the line that is wrong."""
    lines = jsonl.read(path)

    def grade_many(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
        return jsonl.grade_many(problems, texts, _grade_math, functions.grade_many)

    return Task(path.stem, lambda split, count, seed: jsonl.draw_problems(lines, split, count, seed), grade_many)
