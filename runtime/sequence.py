"""One request on its way from prompt to answer: committed tokens, tokens to commit next, and the canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import Bools, Ints, Proposal
from .contract import Contract
from .layout import committed_prompt, prompt_visible

NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Result:
    """An answer and what it took.

    token_ids include the end token; finish: eos | length. steps: forwards with an open position; commits: finished
    blocks whose keys and values were kept; forwards: both, a fused one counted once, a prefill of its own not counted;
    blocks: blocks begun; cached: whether committed tokens were kept in a cache. Times in seconds; prefill_seconds is 0
    where the first forward was a step, with the prompt in it or none to prefill.
    """

    token_ids: tuple[int, ...]
    finish: str
    steps: int
    commits: int
    forwards: int
    blocks: int
    cached: bool
    seconds: float = 0.0
    prefill_seconds: float = 0.0

    @property
    def tokens_per_forward(self) -> float:
        return len(self.token_ids) / max(1, self.forwards)


@dataclass(frozen=True, slots=True)
class Inputs:
    """One sequence's part of a forward: ids [width], visible [width], rows [n], its committed length."""

    ids: Ints
    visible: Ints
    rows: Ints
    past: int


class Progress:
    """The state of one request. `inputs` says what the next forward needs, `receive` takes what came of it."""

    __slots__ = (
        "answer",
        "blocks",
        "candidate",
        "canvas",
        "closed",
        "commits",
        "contract",
        "forwards",
        "fused",
        "open",
        "past",
        "pending",
        "pending_visible",
        "result",
        "row",
        "steps",
        "suffix",
        "tail",
        "wanted",
    )  # fmt: skip

    def __init__(
        self, contract: Contract, row: int, prompt: Ints, wanted: int, fused: bool, suffix: Ints = NOTHING
    ) -> None:
        full = contract.attention == "full"
        start = len(prompt) if full else committed_prompt(contract, len(prompt))
        self.contract, self.row, self.wanted, self.fused = contract, row, wanted, fused or full
        self.suffix = suffix  # known tokens behind the wanted ones, on the canvas from the first step
        self.past = 0
        self.pending, self.pending_visible = prompt[:start], prompt_visible(contract, start)
        self.candidate: Proposal | None = None  # what the last committed row says of position 0, when `shift`
        self.answer: list[int] = []
        self.steps = self.commits = self.forwards = self.blocks = 0
        self.result: Result | None = None
        self._begin_block(prompt[start:])

    def _begin_block(self, given: Ints) -> None:
        block, done = self.contract.block, len(self.answer)
        self.canvas = np.concatenate((given, self._ahead(done, block - len(given))))
        self.open = np.arange(block) >= len(given)  # never `canvas == mask_id`: a prompt may hold one
        if len(self.suffix):  # nothing behind the suffix is asked for
            self.open &= np.arange(block) - len(given) + done < self.wanted
        self.tail, self.closed = len(given), int((~self.open).sum())
        self.blocks += 1

    def _ahead(self, first: int, count: int) -> Ints:
        """What stands on `count` answer positions from `first` before any step: masks, and the suffix in its place."""
        ids = np.full(count, self.contract.mask_id, np.int64)
        place = np.arange(first, first + count) - self.wanted  # of each position in the suffix
        inside = (place >= 0) & (place < len(self.suffix))
        ids[inside] = self.suffix[place[inside]]
        return ids

    @property
    def progress(self) -> float:
        """The share of the answer that is out."""
        return (len(self.answer) + int((~self.open).sum()) - self.closed) / self.wanted

    def known(self) -> Proposal | None:
        """The proposal for the whole canvas, where the candidate alone decides: blocks of one, as in an AR model."""
        if self.candidate is None or len(self.pending) or self.open[1:].any():
            return None
        return _each(self.candidate, lambda part: np.repeat(part, len(self.open)))

    def inputs(self) -> Inputs:
        """Pending tokens, the canvas, or both when fused; with `full` the whole sequence to the end of the canvas."""
        contract, behind = self.contract, self.past + len(self.pending)
        block = contract.block
        if contract.attention == "full":
            done = len(self.answer) + block
            ids = np.concatenate((self.pending, self.canvas, self._ahead(done, contract.canvas - done)))
            rows = behind + np.arange(block) - contract.shift
            return Inputs(ids, np.full(len(ids), len(ids)), rows, 0)
        if len(self.pending) == 0:
            rows = np.maximum(np.arange(block) - contract.shift, 0)
            return Inputs(self.canvas, np.full(block, behind + block), rows, self.past)
        if not self.fused:
            return Inputs(self.pending, self.pending_visible, np.array([len(self.pending) - 1]), self.past)
        ids = np.concatenate((self.pending, self.canvas))
        visible = np.concatenate((self.pending_visible, np.full(block, behind + block)))
        return Inputs(ids, visible, len(self.pending) + np.arange(block) - contract.shift, self.past)

    def receive(self, out: Proposal, slot: int) -> Proposal | None:
        """Takes its slot of a forward's proposals; returns those for the canvas [block], None if it was not in it."""
        contract, committing = self.contract, len(self.pending) > 0
        separate = committing and not self.fused
        own = _each(out, lambda part: part[slot, : 1 if separate else contract.block])
        cached = contract.attention != "full"
        commits = cached and committing and self.blocks > 1  # before the second block it is the prompt's prefill
        self.commits += commits
        self.steps += not separate
        self.forwards += commits or not separate
        if not cached:
            return own
        if contract.shift and committing:
            self.candidate = _each(own, lambda part: part[:1].copy())
        elif contract.shift and self.candidate is not None:
            kept = self.candidate
            own.token[0], own.confidence[0], own.entropy[0] = kept.token[0], kept.confidence[0], kept.entropy[0]
        self.past += len(self.pending)
        self.pending = NOTHING
        return None if separate else own

    def finalise(self, token: Ints, accepted: Bools) -> None:
        """Writes accepted tokens [block] into the canvas; ends the answer or begins the next block where it is time."""
        self.canvas[accepted] = token[accepted]
        self.open &= ~accepted
        block = self.contract.block
        settled = int(self.open.argmax()) if self.open.any() else block  # positions with no open one before them
        fresh = self.canvas[self.tail : settled].tolist()
        ends = [i for i, token_id in enumerate(fresh) if token_id in self.contract.eos_ids]
        left = self.wanted - len(self.answer)
        if ends and ends[0] < left:
            self._end(fresh[: ends[0] + 1], "eos")
        elif len(fresh) >= left:
            self._end(fresh[:left], "length")
        elif settled == block:
            self._commit_block()

    def _commit_block(self) -> None:
        contract = self.contract
        self.answer += self.canvas[self.tail :].tolist()
        if contract.attention == "full":
            self.pending = np.concatenate((self.pending, self.canvas))
        else:
            self.pending, self.pending_visible = self.canvas, np.full(contract.block, self.past + contract.block)
        self._begin_block(NOTHING)

    def _end(self, fresh: list[int], finish: str) -> None:
        cached = self.contract.attention != "full"
        self.answer += fresh
        self.result = Result(tuple(self.answer), finish, self.steps, self.commits, self.forwards, self.blocks, cached)


def _each(proposal: Proposal, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Proposal:
    return Proposal(change(proposal.token), change(proposal.confidence), change(proposal.entropy))
