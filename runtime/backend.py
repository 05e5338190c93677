"""What an engine has to offer the decode loop: one forward pass over a KV cache that it owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .contract import Contract

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
PADDED = 2  # blocks after its own end, to which a backend of several sequences may have to pad one


@dataclass(frozen=True, slots=True)
class Forward:
    """Inputs of one forward pass of `width` tokens after `past_length` committed ones, for as long as it runs.

    input_ids [batch, width]; past_length [batch]; visible [batch, width], how many cache positions each query sees, at
    least 1; rows [batch, n], n >= 1, which of the width's rows to predict; top: whether the most likely tokens of each
    are wanted too, as many as the contract's `top_k`; candidates [batch, n, C]: tokens whose log-probabilities are
    wanted of each asked row, at most the contract's `candidates` of them, never the mask token.
    """

    input_ids: Ints
    past_length: Ints
    visible: Ints
    rows: Ints
    top: bool = False
    candidates: Ints | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """Holds, per row, the top-1 token (never the mask token), its probability, and the entropy in nats. [batch, n]

    top_token, top_logprob [batch, n, K]: the most likely tokens, the best first, and the logarithms of their
    probabilities, nats; None if the forward pass did not request them. candidate_logprob [batch, n, C]: those of the
    forward's candidates, over the whole vocabulary without the mask token; None where there were none.
    """

    token: Ints
    confidence: Floats
    entropy: Floats
    top_token: Ints | None = None
    top_logprob: Floats | None = None
    candidate_logprob: Floats | None = None

    def parts(self) -> tuple[NDArray[Any], ...]:
        """What decoding reads, in the order of the fields: without top tokens the first three; no candidates."""
        reduced = (self.token, self.confidence, self.entropy)
        if self.top_token is None or self.top_logprob is None:
            return reduced
        return (*reduced, self.top_token, self.top_logprob)


class Backend(Protocol):
    """Runs a step graph. New keys and values are stored after `past_length`; they stay once the host counts them."""

    @property
    def contract(self) -> Contract: ...

    @property
    def name(self) -> str: ...

    def open(self, batch: int, capacity: int) -> None:
        """Makes room for `batch` sequences of at most `capacity` positions, in which nothing of earlier ones is read;
        if there are several, a forward pass may pad each to two blocks after that."""

    def forward(self, forward: Forward) -> Proposal: ...

    def keep(self, rows: NDArray[Any]) -> None:
        """Goes on with these sequences of the batch alone, in this order, at most as many as `open` made room for.

        An index that comes again is a free place: nothing is read of it before it is written.
        """


class Inspectable(Backend, Protocol):
    """A backend whose KV cache can be looked at, by whoever compares."""

    def read_cache(self) -> NDArray[Any]:
        """Returns the KV cache on the host. [2 * layers, batch, kv_heads, capacity, head_dim], keys, values in turn"""
        ...


@runtime_checkable
class Growable(Protocol):
    """A backend whose KV cache can be made longer while there are sequences in it."""

    def grow(self, capacity: int) -> None:
        """Makes room for at least as many positions per sequence, as `Backend.open` does; what is there stays."""


@runtime_checkable
class Forkable(Protocol):
    """A backend that may go on with several copies of one sequence, which share what is committed."""

    @property
    def most_copies(self) -> int:
        """How many there may be; 1 for an engine that runs one sequence."""
        ...

    def fork(self, count: int) -> None:
        """Goes on with `count` copies of the batch's first sequence, each in a KV cache of its own; 1 ends that."""


@runtime_checkable
class Shareable(Protocol):
    """A backend whose weights several threads may use at once, each through a backend with a KV cache of its own."""

    def share(self) -> Backend: ...


def check_candidates(forward: Forward, contract: Contract) -> None:
    """Raises ValueError for candidates that are no tokens of the model, which engines do not notice. A bug of ours."""
    if (given := forward.candidates) is None:
        return
    if given.shape[:2] != forward.rows.shape or not 1 <= given.shape[2] <= contract.candidates:
        raise ValueError(
            f"candidates {given.shape} of rows {forward.rows.shape}; at most {contract.candidates} of each"
        )
    if given.min() < 0 or given.max() >= contract.vocab or (given == contract.mask_id).any():
        raise ValueError(f"candidates are outside [0, {contract.vocab}), or the mask token {contract.mask_id}")
