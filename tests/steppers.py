"""A contender of the bench without a model. Its processes import this file, so it is a light one."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.backend import Ints
from samples.bench.contender import Cell


class Counting:
    """It counts what it is asked. fails: `making` or `wide`, with more than one token; None never."""

    def __init__(self, fails: str | None = None) -> None:
        self.places: list[Cell] = []
        self.steps, self.fails = 0, fails
        if fails == "making":
            raise ValueError("no such\nmodel")

    def place(self, cell: Cell) -> None:
        self.places.append(cell)

    def step(self) -> None:
        self.steps += 1
        if self.fails == "wide" and self.places[-1].width > 1:
            raise RuntimeError("it broke")

    def best(self) -> Ints:
        return np.array([len(self.places), self.steps])

    def about(self) -> dict[str, Any]:
        return {"version": "1"}
