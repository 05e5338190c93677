"""Defines a problem of a task: its prompt, a right answer, and tests of other answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem. `group` names the template or function family; `tests` are Python assertions (code) or empty (math).

    line: the problem's line in its file, from 1, for messages; 0 if it is not from a file.
    """

    prompt: str
    answer: str
    group: str
    tests: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)


def split_of(prompt: str) -> str:
    """Returns the split of a problem, by its prompt alone: train (90 %), valid (5 %) or test (5 %)."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 90 else "valid" if bucket < 95 else "test"


def split_of_sample(prompt: str) -> str:
    """Returns the split of a sample task's problem.

    Prompts of sample tasks once ended in a newline. It is still hashed, so that every problem stays in its split.
    """
    return split_of(f"{prompt}\n")
