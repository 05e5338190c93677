"""Measures how much PyTorch prefers each position's top-1 token, to tell a near tie from an error."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from runtime.backend import Floats
from runtime.decoding.batch import Step


class TokenGaps:
    """Holds the gap in probability between the top-1 token and the next one, per position of a canvas."""

    def __init__(self, block: int) -> None:
        self.recent: list[Floats] = []  # the gaps [n] of each forward pass's rows since the last step
        self._latest: Floats = np.ones(block, np.float32)  # the latest gap of each position

    def clear(self) -> None:
        """Forgets the forward passes since the last step."""
        self.recent = []

    def add(self, log_probs: Tensor) -> Floats:
        """Adds a forward pass; log_probs [n, vocab]. Returns its rows' gaps [n]."""
        best = log_probs.exp().topk(2).values  # [n, 2]
        self.recent.append((best[:, 0] - best[:, 1]).numpy())
        return self.recent[-1]

    def measure_canvas(self, step: Step) -> Floats:
        """Returns the gap of each position of the canvas, after a step. [block]"""
        own = step.slot >= 0  # False if the step needed no forward pass: a committed row had predicted it
        if len(self.recent) > own:
            self._latest[0] = self.recent[0][0]  # of an unfused commit: its last row predicts position 0 (`shift`)
        if own:
            self._latest[step.targets] = self.recent[-1]
        self.recent = []
        return self._latest[: len(step.open)].copy()
