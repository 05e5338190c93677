"""One request on its way from prompt to answer: committed tokens, tokens to commit next, and the canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..backend import Bools, Ints, Proposal
from ..contract import Contract
from .block_layout import committed_prompt, prompt_visible
from .sampling import Sampler

NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Result:
    """An answer and what it took.

    token_ids include the end token; finish: eos | length. steps: forwards with an open position; commits: finished
    blocks whose keys and values were kept; forwards: both, a fused one counted once, a prefill of its own not counted;
    blocks: blocks begun; cached: whether committed tokens were kept in a cache; seed: of the draws, if there were
    any. Times in seconds; prefill_seconds is 0 where the first forward was a step, with the prompt in it or none to
    prefill.
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
    seed: int | None = None

    @property
    def tokens_per_forward(self) -> float:
        return len(self.token_ids) / max(1, self.forwards)


@dataclass(frozen=True, slots=True)
class Inputs:
    """One sequence's part of a forward: ids [width], visible [width], its committed length, and rows [n].

    asked [up to n]: which positions of the canvas the first of those rows predict.
    """

    ids: Ints
    visible: Ints
    past: int
    rows: Ints
    asked: Ints


class Progress:
    """The state of one request. `inputs` says what the next forward needs, `receive` takes what came of it."""

    __slots__ = (
        "answer",
        "blocks",
        "canvas",
        "closed",
        "commits",
        "contract",
        "draws",
        "forwards",
        "fused",
        "latest",
        "open",
        "past",
        "pending",
        "pending_visible",
        "prefilled",
        "result",
        "row",
        "sampler",
        "started",
        "steps",
        "suffix",
        "tail",
        "threshold",
        "visible",
        "wanted",
    )

    def __init__(
        self,
        contract: Contract,
        row: int,
        prompt: Ints,
        wanted: int,
        threshold: Callable[[], float],
        fused: bool = True,
        suffix: Ints = NOTHING,
        past: int = 0,
        sampler: Sampler | None = None,
    ) -> None:
        full, block = contract.attention == "full", contract.block
        start = len(prompt) if full else committed_prompt(contract, len(prompt))
        self.contract, self.row, self.wanted, self.threshold = contract, row, wanted, threshold
        self.fused = full or (fused and block > 1)  # with blocks of one the last committed row alone decides
        self.suffix = suffix  # known tokens behind the wanted ones, on the canvas from the first step
        self.past = past  # of the prompt's tokens so many are in the cache already
        self.pending, self.pending_visible = prompt[past:start], prompt_visible(contract, start)[past:]
        self.started = 0.0  # seconds, as is the next; of a clock that is read by who runs the forwards
        self.prefilled: float | None = None
        self.sampler, self.draws = sampler, 0  # None takes the best tokens
        self.latest = nothing_yet(block, contract.top_k if sampler else 0)
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
        self.visible = np.full(block, self.past + len(self.pending) + block)
        self.latest.confidence.fill(0)
        self.tail, self.closed = len(given), block - np.count_nonzero(self.open)
        self.blocks += 1

    def _ahead(self, first: int, count: int) -> Ints:
        """What stands on `count` answer positions from `first` before any step: masks, and the suffix in its place."""
        ids = np.full(count, self.contract.mask_id, np.int64)
        place = np.arange(first, first + count) - self.wanted  # of each position in the suffix
        inside = (place >= 0) & (place < len(self.suffix))
        ids[inside] = self.suffix[place[inside]]
        return ids

    @property
    def width(self) -> int:
        """Tokens of the next forward."""
        if self.contract.attention == "full":
            return len(self.pending) - len(self.answer) + self.contract.canvas
        return len(self.pending) + self.contract.block * (self.fused or not len(self.pending))

    @property
    def progress(self) -> float:
        """The share of the answer that is out."""
        settled = len(self.open) - np.count_nonzero(self.open)
        return (len(self.answer) + settled - self.closed) / self.wanted

    def inputs(self) -> Inputs | None:
        """Pending tokens, the canvas, or both when fused; with `full` the whole sequence to the end of the canvas.

        None where the last committed row has said all: of blocks of one with `shift`, as in an AR model.
        """
        contract, pending = self.contract, len(self.pending)
        if contract.attention == "full":
            asked, done = self.open.nonzero()[0], len(self.answer) + contract.block
            ids = np.concatenate((self.pending, self.canvas, self._ahead(done, contract.canvas - done)))
            return Inputs(ids, np.full(len(ids), len(ids)), 0, pending + asked - contract.shift, asked)
        if pending and not self.fused:
            asked = self.open[: contract.shift].nonzero()[0]  # the last row predicts position 0, or nothing
            return Inputs(self.pending, self.pending_visible, self.past, np.array([pending - 1]), asked)
        asked = self.open.nonzero()[0]
        if pending:
            ids = np.concatenate((self.pending, self.canvas))
            visible = np.concatenate((self.pending_visible, self.visible))
            return Inputs(ids, visible, self.past, pending + asked - contract.shift, asked)
        if contract.shift and self.open[0]:
            asked = asked[1:]  # what the last committed row said of position 0 is known
        return Inputs(self.canvas, self.visible, self.past, asked - contract.shift, asked) if len(asked) else None

    def receive(self, out: Proposal, slot: int, asked: Ints) -> bool:
        """Takes what its slot of a forward predicts of the asked positions. Returns whether its canvas was in it."""
        committing = len(self.pending) > 0
        separate = committing and not self.fused
        for kept, new in zip(self.latest.parts(), out.parts(), strict=False):  # a neighbour's top tokens are left out
            kept[asked] = new[slot, : len(asked)]
        cached = self.contract.attention != "full"
        commits = cached and committing and self.blocks > 1  # before the second block it is the prompt's prefill
        self.commits += commits
        self.steps += not separate
        self.forwards += commits or not separate
        if cached:
            self.past += len(self.pending)
            self.pending = NOTHING
        return not separate

    def draw(self) -> None:
        """Puts drawn tokens into the latest predictions of open positions, where the request is sampled."""
        if self.sampler is not None:
            drawn = self.sampler(self.latest, len(self.answer) - self.tail, self.draws)
            np.copyto(self.latest.token, drawn.token, where=self.open)
            np.copyto(self.latest.confidence, drawn.confidence, where=self.open)
            self.draws += 1

    def finalize(self, accepted: Bools) -> None:
        """Writes the latest tokens of accepted open positions, bool [block], into the canvas; ends the answer or begins
        the next block where it is time."""
        np.copyto(self.canvas, self.latest.token, where=accepted)
        self.open ^= accepted
        block, settled = self.contract.block, int(self.open.argmax())  # positions with no open one before them
        settled = settled if self.open[settled] else block
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
            self.pending, self.pending_visible = self.canvas, self.visible
        self._begin_block(NOTHING)

    def _end(self, fresh: list[int], finish: str) -> None:
        self.answer += fresh
        self.result = Result(
            token_ids=tuple(self.answer),
            finish=finish,
            steps=self.steps,
            commits=self.commits,
            forwards=self.forwards,
            blocks=self.blocks,
            cached=self.contract.attention != "full",
            seed=self.sampler.seed if self.sampler else None,
        )


def nothing_yet(block: int, top_k: int) -> Proposal:
    """Room for what the latest forward predicts of each position of a canvas."""
    most = (np.zeros((block, top_k), np.int64), np.zeros((block, top_k), np.float32)) if top_k else ()
    return Proposal(np.zeros(block, np.int64), np.zeros(block, np.float32), np.zeros(block, np.float32), *most)
