"""Parses and runs the steps of word problems, and defines the rules on the size of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OBJECT_PRONOUNS = {"he": "him", "she": "her"}
POSSESSIVE_PRONOUNS = {"he": "his", "she": "her"}
LOWEST_RESULT = 2  # every noun in the texts is in the plural
HIGHEST_RESULT = 99
FACTORS = range(2, 10)  # operands of `*`, and divisors


@dataclass(frozen=True, slots=True)
class Calculation:
    """Describes the calculation `result = left op right`; each operand is the name of a variable or digits."""

    result: str
    left: str
    op: str
    right: str


def parse_steps(text: str) -> tuple[Calculation, ...]:
    """Parses steps written `total = boxes * each; left = total - eaten`.

    Raises ValueError for a step of another form, and for a later step that does not use a result of an earlier one.
    """
    steps: list[Calculation] = []
    for part in text.split(";"):
        match part.split():
            case [result, "=", left, ("+" | "-" | "*" | "/") as op, right]:
                step = Calculation(result, left, op, right)
            case _:
                raise ValueError(f"a step must read 'result = a op b', got {part.strip()!r}")
        if steps and not {left, right} & {earlier.result for earlier in steps}:
            raise ValueError(f"the step {part.strip()!r} uses no earlier result")
        steps.append(step)
    return tuple(steps)


def calculate(left: int, op: str, right: int) -> int | None:
    """Returns the result of one step, or None if it breaks a rule on the size of numbers."""
    if op == "+":
        result = left + right
    elif op == "-":
        result = left - right
    elif op == "*":
        if left not in FACTORS or right not in FACTORS:
            return None
        result = left * right
    else:
        if right not in FACTORS or left % right:
            return None
        result = left // right
    return result if LOWEST_RESULT <= result <= HIGHEST_RESULT else None


def run_steps(steps: Sequence[Calculation], values: dict[str, int], highest: int = HIGHEST_RESULT) -> bool:
    """Adds the results of the steps to `values`; returns False if one breaks a rule or exceeds `highest`."""
    for step in steps:
        result = calculate(values[step.left], step.op, values[step.right])
        if result is None or result > highest:
            return False
        values[step.result] = result
    return True
