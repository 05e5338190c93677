"""Defines what an engine offers the decode loop: one forward pass over a KV cache that the engine owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .contract import Contract

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
PADDED = 2  # blocks of padding past `capacity` for which a backend that holds several sequences has room


@dataclass(frozen=True, slots=True)
class Forward:
    """Holds the inputs of one forward pass of `width` tokens after `past_length` committed ones.

    input_ids [batch, width]; past_length [batch]; visible [batch, width]: attention prefix length of each query, at
    least 1; rows [batch, n], n >= 1: the positions to predict, as indices in [0, width); top: whether to return the
    most probable tokens of each row too, as many as the contract's `top_k`; candidates [batch, n, C]: per row, the
    tokens whose log-probabilities to return, C at most the contract's `candidates`, never the mask token. The arrays
    may be views of the canvas: copy them to keep them beyond the forward pass.
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

    top_token, top_logprob [batch, n, K]: the most probable tokens, the best first, and their log-probabilities, nats;
    None if the forward pass did not request them. candidate_logprob [batch, n, C]: log-probabilities of the forward
    pass's candidates, of a softmax over all tokens but the mask token; None if it had no candidates.
    """

    token: Ints
    confidence: Floats
    entropy: Floats
    top_token: Ints | None = None
    top_logprob: Floats | None = None
    candidate_logprob: Floats | None = None

    def list_arrays(self) -> tuple[NDArray[Any], ...]:
        """Returns the arrays that decoding reads, in field order: the first three, then top tokens if there are any.

        Candidates are never among them.
        """
        reduced = (self.token, self.confidence, self.entropy)
        if self.top_token is None or self.top_logprob is None:
            return reduced
        return (*reduced, self.top_token, self.top_logprob)


class Backend(Protocol):
    """Runs a step graph. A forward pass stores its keys and values from position `past_length` on. A later pass commits
    those before its own `past_length`, and may overwrite the others."""

    @property
    def contract(self) -> Contract: ...

    @property
    def name(self) -> str: ...

    def open(self, batch: int, capacity: int) -> None:
        """Makes room for `batch` sequences of at most `capacity` positions; what an earlier `open` left is not read.

        With several sequences, a forward pass may write padding up to PADDED blocks past `capacity`.
        """

    def forward(self, forward: Forward) -> Proposal: ...

    def keep(self, rows: NDArray[Any]) -> None:
        """Keeps only these sequences of the batch, in this order; at most as many as `open` made room for.

        A repeated index makes a free place, for a sequence yet to begin: nothing reads it before it is overwritten.
        """


class Inspectable(Backend, Protocol):
    """Describes a backend whose KV cache can be read, to compare it with PyTorch's."""

    def read_cache(self) -> NDArray[Any]:
        """Returns the KV cache on the host: keys of layer 0, its values, keys of layer 1, ...

        [2 * layers, batch, kv_heads, capacity, head_dim]
        """
        ...


@runtime_checkable
class Growable(Protocol):
    """Describes a backend whose KV cache can grow while it holds sequences."""

    def grow(self, capacity: int) -> None:
        """Makes room for at least `capacity` positions per sequence, as `Backend.open` does; keeps the contents."""


@runtime_checkable
class Forkable(Protocol):
    """Describes a backend that can run copies of one sequence, all beginning with its committed tokens."""

    @property
    def most_copies(self) -> int:
        """Returns the maximum of copies; 1 if it cannot make any."""
        ...

    def fork(self, count: int) -> None:
        """Continues with `count` copies of the batch's first sequence, each in its own KV cache; 1 drops the copies."""


@runtime_checkable
class Shareable(Protocol):
    """Describes a backend whose weights several threads can use at once; each has a backend and KV cache of its own."""

    def share(self) -> Backend: ...


def check_candidates(forward: Forward, contract: Contract) -> None:
    """Raises ValueError for candidates of a wrong shape, outside the vocabulary, or that are the mask token.

    No engine notices these. The error means a bug of blockstep, not a user's mistake.
    """
    if (given := forward.candidates) is None:
        return
    if given.shape[:2] != forward.rows.shape or not 1 <= given.shape[2] <= contract.candidates:
        raise ValueError(
            f"candidates {given.shape} of rows {forward.rows.shape}; at most {contract.candidates} of each"
        )
    if given.min() < 0 or given.max() >= contract.vocab or (given == contract.mask_id).any():
        raise ValueError(f"candidates are outside [0, {contract.vocab}), or the mask token {contract.mask_id}")
