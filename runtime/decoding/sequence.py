"""Feeds a model the tokens of one request, forward pass after forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import numpy as np

from ..backend import Bools, Ints
from ..contract import Contract
from .block_layout import compute_block_ends, compute_committed_ends, count_committed

NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Holds one sequence's part of a forward pass: ids [width], visible [width], its committed length, and rows [n].

    targets [at most n]: the canvas positions that the first of these rows predict.
    """

    ids: Ints
    visible: Ints
    past: int
    rows: Ints
    targets: Ints


class Sequence(Protocol):
    """Feeds a model the tokens of one request. past: how many of them are in the KV cache."""

    past: int

    @property
    def width(self) -> int:
        """Tokens of the next forward pass."""
        ...


@final
class CachedBlocks:
    """Feeds a model that has a KV cache: `pending` tokens, which are not in it yet, and the block in progress.

    past: how many tokens are in the KV cache. fused: whether pending tokens share a forward pass with the block; never
    with blocks of one token, since the last committed row predicts them, nor in seeded models, since the seed is
    decided before the rest of the block.
    """

    __slots__ = ("_committed", "_contract", "_ends", "_first", "_fused", "past", "pending")

    def __init__(self, contract: Contract, prompt: Ints, answer: Ints, past: int, fused: bool) -> None:
        self._contract, self._fused = contract, fused and contract.block > 1 and not contract.seeded
        self._first = int(contract.shift or contract.seeded)  # canvas positions that the last committed row predicts
        self.past, self.pending = past, prompt[past : count_committed(contract, len(prompt))]
        # How far each position sees while its block is in progress, and once it is committed; [prompt + answer]
        self._ends = compute_block_ends(contract, len(prompt), len(answer))
        self._committed = compute_committed_ends(contract, len(prompt), len(answer))

    @property
    def width(self) -> int:
        """Tokens of the next forward pass."""
        start = self.past + len(self.pending)
        return len(self.pending) + (self._fused or not len(self.pending)) * (int(self._ends[start]) - start)

    def make_inputs(self, canvas: Ints, masked: Bools) -> Inputs | None:
        """Returns the pending tokens, the block, or both if fused.

        None if the last committed row has predicted everything, as with blocks of one token and `shift`.
        """
        shift, past, pending = self._contract.shift, self.past, len(self.pending)
        visible = self._committed[past : past + pending]
        if pending and not self._fused:
            targets = masked[: self._first].nonzero()[0]  # the last row predicts position 0, or nothing
            return Inputs(self.pending, visible, past, np.array([pending - 1]), targets)
        targets, ids = masked.nonzero()[0], canvas
        if pending:
            ids = np.concatenate((self.pending, canvas))
        elif self._first and masked[0]:
            targets = targets[1:]  # what the last committed row predicted of position 0 is known
        visible = np.concatenate((visible, self._ends[past + pending : past + len(ids)]))
        return Inputs(ids, visible, past, pending + targets - shift, targets) if len(targets) else None

    def receive(self) -> tuple[bool, bool]:
        """Notes that a forward pass was run. Returns whether it committed tokens and whether the block was in it."""
        pending, self.pending = len(self.pending), NOTHING
        self.past += pending
        return pending > 0, self._fused or not pending

    def commit(self, canvas: Ints) -> None:
        """Takes a finished block, whose keys and values the next forward pass writes to the KV cache."""
        self.pending = canvas


@final
class WholeCanvas:
    """Feeds a model without a KV cache: prompt and whole canvas in every forward pass. past, fused: ignored."""

    __slots__ = ("_contract", "_first", "_ids", "past")

    def __init__(self, contract: Contract, prompt: Ints, answer: Ints, past: int, fused: bool) -> None:
        self._contract, self._first, self.past = contract, len(prompt), 0
        self._ids = np.concatenate((prompt, answer))  # [prompt + canvas]

    @property
    def width(self) -> int:
        """Tokens of the next forward pass."""
        return len(self._ids)

    def make_inputs(self, canvas: Ints, masked: Bools) -> Inputs:
        """Returns the whole sequence, of which only the block in progress, `canvas`, is predicted."""
        targets, ids = masked.nonzero()[0], self._ids.copy()
        ids[self._first : self._first + len(canvas)] = canvas
        return Inputs(
            ids, compute_block_ends(self._contract, len(ids)), 0, self._first + targets - self._contract.shift, targets
        )

    def receive(self) -> tuple[bool, bool]:
        """Returns False, as no forward pass commits tokens, and True, as the block is always in it."""
        return False, True

    def commit(self, canvas: Ints) -> None:
        """Takes a finished block."""
        self._ids[self._first : self._first + len(canvas)] = canvas
        self._first += len(canvas)
