"""Describes a family of functions of the code task, and the values that its texts are filled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FunctionFamily:
    """One kind of function.

    `names` are function names separated by `|`; `kinds` are the kinds of the arguments separated by blanks;
    `text` completes "Write a function f(x) that ..."; `body` is the answer below its `def` line, not indented.
    All four texts are format strings over the arguments `a`, `b` and over `draws`, from which values are sampled.
    """

    group: str
    names: str
    kinds: str
    text: str
    body: str
    draws: Mapping[str, Sequence[Any]]


def family(group: str, names: str, kinds: str, text: str, body: str, **draws: Sequence[Any]) -> FunctionFamily:
    """Returns the family with these texts and, by keyword, the values that each of its names is sampled from."""
    return FunctionFamily(group, names, kinds, text, body, draws)


N = tuple(range(2, 21))
SMALL = tuple(range(2, 7))
HIGH = tuple(range(21, 41))
COMPARISONS = (
    ("greater than", ">", "above"),
    ("less than", "<", "below"),
    ("at least", ">=", "from"),
    ("at most", "<=", "upto"),
)
PARITY = (("even", 0), ("odd", 1))
POWER = (("square", 2), ("cube", 3))
EXTREME = (("largest", "max"), ("smallest", "min"))
DIVISIBLE = (("divisible", "=="), ("not divisible", "!="))
ANY_WORDS = (("any number", "any"), ("every number", "all"))
ORDER = (("ascending", "", "up"), ("descending", ", reverse=True", "down"))
ARITHMETIC = (("sum", "+"), ("difference", "-"), ("product", "*"))
LABELS = (("big", "small"), ("high", "low"), ("yes", "no"), ("hot", "cold"), ("good", "bad"))
LETTERS = tuple("aeiorstln")
SEPARATORS = (("a dash", "-"), ("a comma", ","), ("a colon", ":"), ("a plus", "+"), ("a slash", "/"))
