"""What an engine has to offer the decode loop: one forward over a cache that it owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .contract import Contract

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Forward:
    """Inputs of one forward of `width` tokens behind `past_length` committed ones, for as long as it runs.

    input_ids [batch, width]; past_length [batch]; visible [batch, width], how many cache positions each query sees, at
    least 1; rows [batch, n], n >= 1, which of the width's rows to predict.
    """

    input_ids: Ints
    past_length: Ints
    visible: Ints
    rows: Ints


@dataclass(frozen=True, slots=True)
class Proposal:
    """For each asked row the best token (never the mask token), its probability, and the entropy in nats. [batch, n]"""

    token: Ints
    confidence: Floats
    entropy: Floats

    def parts(self) -> tuple[NDArray[Any], ...]:
        return self.token, self.confidence, self.entropy


class Backend(Protocol):
    """An engine. A forward's keys and values lie behind `past_length`; they stay once the host counts them in."""

    @property
    def contract(self) -> Contract: ...

    @property
    def name(self) -> str: ...

    def open(self, batch: int, capacity: int) -> None:
        """Makes room, zeroed, for `batch` sequences of at most `capacity` positions."""

    def forward(self, forward: Forward) -> Proposal: ...

    def keep(self, rows: NDArray[Any]) -> None:
        """Goes on with these sequences of the batch alone, in this order."""


@runtime_checkable
class Shareable(Protocol):
    """A backend whose weights several threads may use at once, each through a backend with a cache of its own."""

    def share(self) -> Backend: ...
