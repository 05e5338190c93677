"""Measures how much PyTorch prefers each position's best token, to tell a near tie from an error."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from runtime.backend import Floats
from runtime.decoding.batch import Step


class TokenGaps:
    """Holds by how much probability the best token leads the second, per position of a canvas."""

    def __init__(self, block: int) -> None:
        self.recent: list[Floats] = []  # since the last step: those of the rows [n] of each forward pass
        self._latest: Floats = np.ones(block, np.float32)  # of each position

    def clear(self) -> None:
        """Forgets the forward passes since the last step."""
        self.recent = []

    def add(self, log_probs: Tensor) -> Floats:
        """Adds a forward pass; log_probs [n, vocab]. Returns its rows' gaps [n]."""
        best = log_probs.exp().topk(2).values  # [n, 2]
        self.recent.append((best[:, 0] - best[:, 1]).numpy())
        return self.recent[-1]

    def of_canvas(self, step: Step) -> Floats:
        """Returns the gap of each position, as of the step just made. [block]"""
        own = step.slot >= 0  # else the last committed row's prediction was enough
        if len(self.recent) > own:
            self._latest[0] = self.recent[0][0]  # an unfused commit, which with `shift` predicts what follows
        if own:
            self._latest[step.asked] = self.recent[-1]
        self.recent = []
        return self._latest[: len(step.open)].copy()
