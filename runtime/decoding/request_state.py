"""Keeps the state of one request from prompt to answer, with the block in progress."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from ..backend import Bools, Ints, Proposal
from ..contract import Contract
from .block_layout import compute_block_bounds, count_committed, count_positions
from .sampling import Sampler
from .sequence import NOTHING, CachedBlocks, Inputs, Sequence, WholeCanvas


@dataclass(frozen=True, slots=True)
class Result:
    """Holds an answer and what it cost.

    token_ids include the end token; finish: eos | length. steps: forward passes with a masked position; commits:
    finished blocks whose keys and values were kept; forwards: forward passes that step or commit, a fused one counted
    once, a separate prefill not counted; blocks: blocks begun; cached: whether a KV cache kept committed tokens; seed:
    of the samples, None if nothing was sampled; mode: see `options.DecodeOptions`. Times in seconds;
    prefill_seconds is 0 if the first forward pass was a step already: the prompt was in it, or needed no prefill.
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
    mode: str = "block"

    @property
    def tokens_per_forward(self) -> float:
        return len(self.token_ids) / max(1, self.forwards)

    @property
    def one_a_step(self) -> int:
        """Returns the fewest forward passes for as many tokens at one per step; see the function `count_one_a_step`."""
        return count_one_a_step(self.mode, len(self.token_ids), self.steps, self.forwards)


class Progress(ABC):
    """Holds a request's state: `make_inputs` returns what the next forward pass needs, `receive` takes its results.

    room: the maximum of positions that the request occupies. canvas: the block in progress; open: which of its
    positions are masked; latest: the latest prediction for each; tail: how many of its first tokens belong to the
    prompt.
    """

    __slots__ = (
        "answer",
        "blocks",
        "canvas",
        "commits",
        "contract",
        "forwards",
        "latest",
        "mode",
        "open",
        "prefilled",
        "result",
        "room",
        "row",
        "sampler",
        "sequence",
        "started",
        "steps",
        "tail",
        "threshold",
        "wanted",
    )

    canvas: Ints
    open: Bools
    latest: Proposal
    sequence: Sequence
    tail: int

    def __init__(
        self,
        contract: Contract,
        row: int,
        mode: str,
        wanted: int,
        room: int,
        threshold: Callable[[], float],
        sampler: Sampler | None,
    ) -> None:
        self.contract, self.row, self.mode, self.wanted, self.room = contract, row, mode, wanted, room
        self.threshold = threshold
        self.started = 0.0  # seconds, as is `prefilled`, on the clock of the caller that runs the forward passes
        self.prefilled: float | None = None
        self.sampler = sampler  # None takes the top-1 tokens
        self.answer: list[int] = []
        self.steps = self.commits = self.forwards = self.blocks = 0
        self.result: Result | None = None

    @property
    @abstractmethod
    def progress(self) -> float:
        """Returns the share of the answer that is unmasked."""

    @abstractmethod
    def make_inputs(self) -> Inputs | None:
        """Returns what the next forward pass needs; None if none is needed before the gate decides."""

    @abstractmethod
    def receive(self, out: Proposal, slot: int, positions: Ints) -> bool:
        """Takes a slot's predictions of the requested positions. Returns whether its canvas is decided on now."""

    @abstractmethod
    def draw(self) -> None:
        """If the request is sampled, puts sampled tokens into the latest predictions of masked positions."""

    @abstractmethod
    def accept(self, choice: Bools) -> Bools:
        """Returns which masked positions are accepted. choice: the gate's choice. bool [block] each"""

    @abstractmethod
    def finalize(self, accepted: Bools) -> None:
        """Writes the latest tokens of accepted masked positions, bool [block], into the canvas; ends the answer or
        begins the next block if it is time."""

    def _check_end(self, fresh: list[int]) -> bool:
        """Ends the answer if these tokens, the next ones in it, contain its end. Returns whether they do."""
        ends = [i for i, token_id in enumerate(fresh) if token_id in self.contract.eos_ids]
        left = self.wanted - len(self.answer)
        if ends and ends[0] < left:
            self._end(fresh[: ends[0] + 1], "eos")
        elif len(fresh) >= left:
            self._end(fresh[:left], "length")
        return self.result is not None

    def _end(self, fresh: list[int], finish: str) -> None:
        self.answer += fresh
        self.result = Result(
            token_ids=tuple(self.answer),
            finish=finish,
            steps=self.steps,
            commits=self.commits,
            forwards=self.forwards,
            blocks=self.blocks,
            cached=self.contract.has_cache,
            seed=self.sampler.seed if self.sampler else None,
            mode=self.mode,
        )


@final
class BlockProgress(Progress):
    """A request whose blocks are filled as the gate accepts tokens."""

    __slots__ = ("ahead", "closed", "draws", "ends", "most", "seeding")

    sequence: CachedBlocks | WholeCanvas

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
        mode: str = "block",
    ) -> None:
        room = count_positions(contract, len(prompt), wanted)
        super().__init__(contract, row, mode, wanted, room, threshold, sampler)
        # The answer's positions before any step: masks, and after the wanted ones the suffix, known from the start.
        self.ahead = np.full(room - len(prompt), contract.mask_id)
        self.ahead[wanted : wanted + len(suffix)] = suffix
        self.ends = compute_block_bounds(contract, len(prompt), len(self.ahead))[1]  # where each position's block ends
        self.most = wanted if len(suffix) else len(self.ahead)  # nothing after the suffix is requested
        self.draws, self.seeding = 0, False  # seeding: whether only the block's first token is decided now
        self.latest = make_empty_proposal(contract.block, contract.top_k if sampler else 0)
        kind: type[CachedBlocks | WholeCanvas] = CachedBlocks if contract.has_cache else WholeCanvas
        self.sequence = kind(contract, prompt, self.ahead, past, fused)
        self._begin_block(prompt[count_committed(contract, len(prompt)) :])

    def _begin_block(self, given: Ints) -> None:
        prompt, done = len(self.ends) - len(self.ahead), len(self.answer) - len(given)
        self.canvas = np.concatenate((given, self.ahead[len(self.answer) : self.ends[prompt + done] - prompt]))
        place = np.arange(len(self.canvas))
        # Never `canvas == mask_id`: a prompt may contain the mask token.
        self.open = (place >= len(given)) & (place + done < self.most)
        if len(place) == len(self.latest.token):
            self.latest.confidence.fill(0)
        else:
            self.latest = make_empty_proposal(len(place), self.contract.top_k if self.sampler else 0)
        self.tail, self.closed = len(given), len(place) - np.count_nonzero(self.open)
        self.blocks += 1

    @property
    def progress(self) -> float:
        """Returns the share of the answer that is unmasked."""
        return (len(self.answer) + len(self.open) - np.count_nonzero(self.open) - self.closed) / self.wanted

    def make_inputs(self) -> Inputs | None:
        """Returns what the next forward pass needs; None if none is needed before the gate decides."""
        return self.sequence.make_inputs(self.canvas, self.open)

    def receive(self, out: Proposal, slot: int, positions: Ints) -> bool:
        """Takes a slot's predictions of the requested positions. Returns whether the canvas was in the forward pass, or
        the committed tokens predict its first token, which is then decided alone."""
        for kept, new in zip(
            self.latest.list_arrays(), out.list_arrays(), strict=False
        ):  # top tokens only if this request samples
            kept[positions] = new[slot, : len(positions)]
        committing, stepping = self.sequence.receive()
        commits = committing and self.blocks > 1  # in the first block that was the prompt's prefill
        self.commits += commits
        self.steps += stepping
        self.forwards += commits or stepping
        self.seeding = self.contract.seeded and not stepping
        return stepping or self.seeding

    def draw(self) -> None:
        """If the request is sampled, puts sampled tokens into the latest predictions of masked positions."""
        if self.sampler is not None:
            sampled = self.sampler(self.latest, len(self.answer) - self.tail, self.draws)
            np.copyto(self.latest.token, sampled.token, where=self.open)
            np.copyto(self.latest.confidence, sampled.confidence, where=self.open)
            self.draws += 1

    def accept(self, choice: Bools) -> Bools:
        """Returns which masked positions are accepted: the gate's choice, or the seed alone. bool [block]"""
        return self.open & (np.arange(len(self.open)) == 0) if self.seeding else choice

    def finalize(self, accepted: Bools) -> None:
        """Writes the latest tokens of accepted masked positions, bool [block], into the canvas; ends the answer or
        begins the next block if it is time."""
        np.copyto(self.canvas, self.latest.token, where=accepted)
        self.open ^= accepted
        settled = int(self.open.argmax())  # positions with no masked one before them
        settled = settled if self.open[settled] else len(self.open)
        fresh = self.canvas[self.tail : settled].tolist()
        if not self._check_end(fresh) and settled == len(self.open):
            self.answer += fresh
            self.sequence.commit(self.canvas)
            self._begin_block(NOTHING)


def count_one_a_step(mode: str, tokens: int, steps: int, forwards: int) -> int:
    """Returns the fewest forward passes that `tokens` tokens take at one token per step.

    In the mode `block` separate commits (`forwards - steps`) are added; in the others the prompt's forward pass, which
    is not counted here, gives the first token.
    """
    return tokens + forwards - steps if mode == "block" else max(0, tokens - 1)


def make_empty_proposal(block: int, top_k: int) -> Proposal:
    """Returns an empty proposal for a canvas of `block` positions, to be filled with the latest predictions."""
    most = (np.zeros((block, top_k), np.int64), np.zeros((block, top_k), np.float32)) if top_k else ()
    return Proposal(np.zeros(block, np.int64), np.zeros(block, np.float32), np.zeros(block, np.float32), *most)
