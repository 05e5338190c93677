"""Decodes one request into events: finished blocks, the canvas if requested, and the End with its counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..decoding.batch import Step
from ..decoding.options import Threshold, choose_mode
from ..decoding.request_state import count_one_a_step
from ..model import Block, BlockReader, Model
from ..text.terminal import decode_tokens, find_end_of_canvas
from .deciding import DecisionResult, decide
from .request import ServerRequest
from .stop_strings import Stops


@dataclass(frozen=True, slots=True)
class Token:
    """Holds one token of the answer.

    text: the token decoded by itself; completes: the answer's text that the token completes, beginning at character
    `offset`; step: the forward pass, from 1, that unmasked the token, with `confidence`.
    """

    token: int
    text: str
    completes: str
    offset: int
    confidence: float
    step: int


@dataclass(frozen=True, slots=True)
class ShownToken:
    """Holds a piece of text on the canvas, from one or more positions.

    confidence, step: the lowest confidence and the last forward pass that unmasked them; None if one is masked.
    """

    text: str
    confidence: float | None
    step: int | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Holds an answer's progress: the unmasked tokens, the steps (forward passes with a masked position), all forward
    passes, commits included, and the mode."""

    tokens: int
    steps: int
    forwards: int
    mode: str = "block"

    @property
    def one_a_step(self) -> int:
        """Returns how many forward passes these tokens would take at one token per step."""
        return count_one_a_step(self.mode, self.tokens, self.steps, self.forwards)


@dataclass(frozen=True, slots=True)
class ShownBlock:
    """Holds the unfinished block after a step; its tokens are provisional."""

    block: int
    cells: tuple[ShownToken, ...]
    counts: Counts


@dataclass(frozen=True, slots=True)
class FinishedBlock:
    """Holds a finished block. text: what may be sent now; tokens: empty if not requested."""

    block: int
    text: str
    tokens: tuple[Token, ...]
    counts: Counts


@dataclass(frozen=True, slots=True)
class End:
    """Holds the end of an answer. finish: eos | length | stop | cancelled.

    thresholds: the lowest and the highest that a step used, None if no step used one. decided: the request's decision,
    which is the reply or the choice of ordinary text; None if nothing had to be decided.
    """

    finish: str
    counts: Counts
    thresholds: tuple[float, float] | None
    decided: DecisionResult | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer could not be finished. mistake: whether the request is to blame."""

    message: str
    mistake: bool = False


Event = ShownBlock | FinishedBlock | End | Failure
Deliver = Callable[[Event], None]


def answer(
    model: Model, request: ServerRequest, threshold: Threshold | None, wanted: Callable[[], bool], deliver: Deliver
) -> None:
    """Decides or decodes one request outside of a batch, and delivers its events.

    Stops after the step at which `wanted` returns false. Raises what `Model.steps` raises.
    """
    decided = None if request.decision is None else decide(model, request, threshold, wanted)
    if decided is not None and hand_out_decision(decided, wanted(), deliver):
        return
    work = PendingAnswer(model, request, threshold, deliver, decided)
    steps = model.steps(work.decode_request.prompt, work.decode_request.options)
    try:
        for step in steps:
            if not work.take(step, wanted()):
                break
    finally:
        steps.close()
    work.end()


def hand_out_decision(decided: DecisionResult, wanted: bool, deliver: Deliver) -> bool:
    """Delivers a decision that is the whole reply, as an answer of one block, or the End of one no longer wanted.

    Returns whether the request has ended.
    """
    forwards = decided.decision.forwards
    counts = Counts(decided.tokens, forwards, forwards)
    if not wanted:
        deliver(End("cancelled", counts, None, decided))
    elif decided.is_whole:
        if decided.text is not None:
            deliver(FinishedBlock(0, decided.text, (), counts))
        deliver(End(decided.finish, counts, None, decided))
    return not wanted or decided.is_whole


class PendingAnswer:
    """Turns an answer's steps into events; keeps when and how confidently each position was unmasked.

    decided: the choice of ordinary text, if something had to be decided first. decode_request: its threshold
    is the given one, and notes each value that a step reads.
    """

    def __init__(
        self,
        model: Model,
        request: ServerRequest,
        threshold: Threshold | None,
        deliver: Deliver,
        decided: DecisionResult | None = None,
    ) -> None:
        self._decided = decided
        self._contract, self._tokenizer = model.contract, model.tokenizer
        self._request, self._deliver = request, deliver
        self._seen: list[float] = []  # thresholds that steps have read
        self._mode = choose_mode(model.contract, request.options.mode)
        read = _note_thresholds(model, threshold, self._seen) if self._mode == "block" else None
        self.decode_request = model.request(request.prompt, request.options, threshold=read)
        self._finish = "cancelled"  # why the answer ended
        self._stops, self._before = Stops(request.stop), 0  # _before: tokens in finished blocks
        self._blocks = BlockReader(model.tokenizer)
        self._spelling, self._offset = model.tokenizer.stream(), 0
        self._confidence = np.zeros(model.contract.block, np.float32)  # [block]
        self._fixed = np.zeros(model.contract.block, np.int64)  # [block], the forward pass, from 1
        self._steps = self._forwards = self._given = 0

    def take(self, step: Step, wanted: bool) -> bool:
        """Takes a step and delivers what it finishes; delivers nothing if the answer is not wanted any more.

        Returns whether the answer goes on; if not, `end` has to be called.
        """
        self._steps, self._forwards, self._given = step.steps, step.forwards, step.given
        self._confidence = step.confidence
        self._fixed[np.flatnonzero(step.accepted)] = max(1, step.forwards)
        if not wanted:
            return False
        if (block := self._blocks.read(step)) is not None:
            return self._hand_out(block)
        if self._request.canvas:
            self._deliver(self._make_canvas(step))
        return True

    def end(self) -> None:
        """Delivers the End."""
        seen = self._seen
        thresholds = (min(seen), max(seen)) if seen else None
        self._deliver(End(self._finish, self._make_counts(self._before), thresholds, self._decided))

    def _hand_out(self, block: Block) -> bool:
        """Delivers a finished block. Returns whether the answer goes on."""
        tokens = tuple(self._spell(block)) if self._request.logprobs or self._request.canvas else ()
        self._before += len(block.token_ids)
        text = self._stops.push(block.text)
        if block.result is not None and not self._stops.hit:
            text += self._stops.finish()
        self._deliver(FinishedBlock(block.index, text, tokens, self._make_counts(self._before)))
        if self._stops.hit:
            self._finish = "stop"
        elif block.result is not None:
            self._finish = block.result.finish
        return not self._stops.hit and block.result is None

    def _make_counts(self, tokens: int) -> Counts:
        """Returns the counts for a number of unmasked tokens."""
        return Counts(tokens, self._steps, self._forwards, self._mode)

    def _spell(self, block: Block) -> Iterator[Token]:
        """Yields the block's tokens with the text that each completes, but not the end token, which has no text."""
        ended = block.result is not None and block.result.finish == "eos"
        ids = block.token_ids[:-1] if ended else block.token_ids
        for place, token in enumerate(ids, self._given):
            completes = self._spelling.push([token])
            if block.result is not None and place == self._given + len(ids) - 1:
                completes += self._spelling.finish()
            own, sure = self._tokenizer.decode([token]), float(self._confidence[place])
            yield Token(token, own, completes, self._offset, sure, int(self._fixed[place]))
            self._offset += len(completes)

    def _make_canvas(self, step: Step) -> ShownBlock:
        last = find_end_of_canvas(step, self._contract.eos_ids, self._before)
        cells = []
        for text, places in decode_tokens(self._tokenizer, [], step, last):
            fixed = not step.open[places].any()
            sure = float(self._confidence[places].min()) if fixed else None
            cells.append(ShownToken(text, sure, int(self._fixed[places].max()) if fixed else None))
        out = self._before + int((~step.open[step.given : last]).sum())
        return ShownBlock(step.block, tuple(cells), self._make_counts(out))


def _note_thresholds(model: Model, threshold: Threshold | None, seen: list[float]) -> Threshold | None:
    """Returns a threshold with the given one's values, each added to `seen` when read; the given one if the gate has no
    threshold."""
    if model.gate.unit is None:
        return threshold
    given = model.gate.threshold if threshold is None else threshold

    def read() -> float:
        seen.append(given() if callable(given) else given)
        return seen[-1]

    return read
