"""Relaxes the threshold while requests wait: fewer steps per answer under load (CD4LM, arXiv 2601.02236)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..contract import GateSpec
from ..errors import UserError


@dataclass(frozen=True, slots=True)
class Pressure:
    """Computes the threshold of the moment: `idle` with an empty queue, `full` if `room` requests wait or more.

    It is linear in between. waiting: returns how many requests wait.
    """

    idle: float
    full: float
    room: int
    waiting: Callable[[], int]

    def __call__(self) -> float:
        share = min(1.0, self.waiting() / self.room)
        return self.idle + share * (self.full - self.idle)


def parse_span(text: str, gate: GateSpec, vocab: int) -> tuple[float, float]:
    """Parses LOW:HIGH, the value of --adaptive-threshold; returns the thresholds for an empty and for a full queue.

    The empty queue gets the stricter one: HIGH for confidences, LOW if a higher threshold accepts more. Raises
    UserError if they are not thresholds of the gate.
    """
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise UserError(f"--adaptive-threshold is {text!r}; expected LOW:HIGH with LOW below HIGH, as in 0.7:0.9")
    low, high = gate.check_threshold(low, vocab), gate.check_threshold(high, vocab)
    return (high, low) if gate.unit is not None and gate.unit.strict else (low, high)
