"""A contender of the bench without a model. Its processes import this file, so it is a light one."""

from __future__ import annotations

from collections.abc import Sequence
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

    def predict_top1(self) -> Ints:
        return np.array([len(self.places), self.steps])

    def describe(self) -> dict[str, Any]:
        return {"version": "1"}


def llama_scores(model: str, vocab: int, cells: Sequence[Cell]) -> list[tuple[Any, Any]]:
    """llama.cpp's logits [width, vocab] and top-1 tokens [width] of a step at each place, attention fused, not, either.

    For a process of its own: a build with AMX and without the Makefile's flags crashes where it stands.
    """
    from samples.bench.llama_step import LlamaStep

    found = []
    for flash in (True, False, None):
        stepper = LlamaStep(model, vocab, 1, flash)
        for cell in cells:
            stepper.place(cell)
            stepper.step()
            stepper.step()  # from where the first one began
            found.append((stepper.compute_scores().copy(), stepper.predict_top1()))
    return found
