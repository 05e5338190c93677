"""Defines a problem of a task, and finds the split of a prompt by its hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """Holds a prompt, one right answer, and what other answers are graded by.

    Attributes:
        group: name of the template or of the family of functions; reports list accuracies by it.
        tests: Python assertions that a right program passes; empty if answers are not programs.
        line: the problem's line in its file, from 1, for messages; 0 if it is not from a file.
    """

    prompt: str
    answer: str
    group: str
    tests: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)


def find_split(prompt: str) -> str:
    """Returns the split that a prompt is hashed to: train (90 %), valid (5 %) or test (5 %)."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 90 else "valid" if bucket < 95 else "test"


def find_sample_split(prompt: str) -> str:
    """Returns the split that a sample task's prompt is hashed to.

    These prompts once ended in a newline. It is still hashed, so that every problem stays in its split.
    """
    return find_split(f"{prompt}\n")
