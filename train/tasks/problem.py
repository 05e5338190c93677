"""One problem of a task: what the model is asked, a right answer, and how to grade another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """`group` names the template or function family; `tests` are Python assertions (code) or empty (math)."""

    prompt: str
    answer: str
    group: str
    tests: tuple[str, ...] = ()
