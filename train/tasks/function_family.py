"""Defines a family of functions of the code task, and values that the families' constants are sampled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FunctionFamily:
    """Describes functions that differ in their names and constants alone.

    `names`, `text` and `body` are format strings, whose fields are the arguments' names, `a` and `b`, and constants.

    Attributes:
        group: the family's name, for reports.
        names: function names, separated by `|`.
        argument_kinds: kinds of the arguments, separated by blanks, see `function_inputs`.
        text: completes "Write a function f(x) that ...".
        body: the right answer below its `def` line, not indented.
        pools: the values that each constant is sampled from, by its name.
    """

    group: str
    names: str
    argument_kinds: str
    text: str
    body: str
    pools: Mapping[str, Sequence[Any]]


def make_family(
    group: str, names: str, argument_kinds: str, text: str, body: str, **pools: Sequence[Any]
) -> FunctionFamily:
    """Returns a family; each keyword is the name of a constant, its value is what the constant is sampled from."""
    return FunctionFamily(group, names, argument_kinds, text, body, pools)


# Numbers that constants are sampled from.
N = tuple(range(2, 21))
SMALL = tuple(range(2, 7))
HIGH = tuple(range(21, 41))
# Words and what they mean in Python; a third entry is a short name for function names.
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
