"""The steps of word problems: how one is written, and the rules on the size of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HIM = {"he": "him", "she": "her"}
HIS = {"he": "his", "she": "her"}
LOWEST_RESULT = 2  # so that every noun in the texts is rightly in the plural
HIGHEST_RESULT = 99
FACTORS = range(2, 10)


@dataclass(frozen=True, slots=True)
class Calculation:
    """A calculation `result = left op right`; an operand is a variable or a number written out."""

    result: str
    left: str
    op: str
    right: str


def parse_steps(text: str) -> tuple[Calculation, ...]:
    """Parses steps written `total = boxes * each; left = total - eaten`.

    Raises ValueError for a step of another form, and for one that uses no result of an earlier step.
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
    """Adds the results of the steps to `values`; returns False if one breaks a rule or is above `highest`."""
    for step in steps:
        result = calculate(values[step.left], step.op, values[step.right])
        if result is None or result > highest:
            return False
        values[step.result] = result
    return True
