"""A problem of a task: the prompt, a right answer, and how to grade another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem. `group` names the template or function family; `tests` are Python assertions (code) or empty (math).

    line: its line in its file, from 1, to name it by; 0 for a problem that is in none.
    """

    prompt: str
    answer: str
    group: str
    tests: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)


def split_of(prompt: str) -> str:
    """Returns the split of a problem, by its prompt alone: nine tenths train, a twentieth each valid and test."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 90 else "valid" if bucket < 95 else "test"


def split_of_sample(prompt: str) -> str:
    """Returns the split of a sample task's problem.

    Its prompts once ended in a newline; it is still hashed, to keep every problem in its split.
    """
    return split_of(f"{prompt}\n")
