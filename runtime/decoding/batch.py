"""Requests side by side on one backend: one forward pass for all, one decision of the gate on all their canvases."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import PADDED, Backend, Bools, Floats, Forward, Growable, Ints, Proposal
from ..errors import NumericalError, UserError
from .gate import Gate
from .request_state import Progress, Result
from .sequence import NOTHING, Inputs

FEW = 0.75  # of the slots in use; below, the others are given up, if nobody waits for them


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did to one sequence. tokens, open, accepted, confidence [block]: the canvas after it.

    confidence: of each position's latest prediction, so an unmasked one keeps that of its acceptance; 0 for what was
    given. asked [n]: the positions that the forward pass predicted, in the order of its rows. `row` is the request's
    index; `slot` its place in the last forward pass, or -1 if none was needed; `block` counts the answer's blocks from
    0; `given` is how many of the canvas's first tokens belong to the prompt. steps, forwards: of the request so far, as
    in its `Result`.
    """

    row: int
    slot: int
    block: int
    given: int
    tokens: Ints
    open: Bools
    accepted: Bools
    confidence: Floats
    asked: Ints
    steps: int
    forwards: int
    result: Result | None


class Batch:
    """`slots` places for requests on a backend, which is opened for sequences of at most `capacity` positions.

    If the backend can, `reach` makes that more.

    A place whose request has its answer is free for another one at any step: each sequence has a length of its own.
    The backend computes as many sequences as there are places; `fit` makes them fewer or more, up to `slots`.
    What the one before left in the KV cache needs no zeroing: it is finite, or `step` would have raised, and unseen.
    Raises UserError if the backend cannot run so many.
    """

    def __init__(self, backend: Backend, rule: Gate, slots: int, capacity: int) -> None:
        if slots < 1:
            raise UserError(f"slots is {slots}; expected at least 1")
        self._backend, self._rule, self.capacity = backend, rule, capacity
        self._slots: list[Progress | None] = [None] * slots
        self._most, self._idle = slots, 0  # calls of `fit` in turn at which many places were free
        self._clock = time.perf_counter()  # start of a request's time: its place was there, opening included
        backend.open(slots, capacity)

    @property
    def busy(self) -> bool:
        """Whether any request lacks its answer."""
        return any(True for _ in self._live())

    def takes(self, request: Progress) -> bool:
        """Returns whether there is a place, and room: a forward pass is as wide for all as for the widest."""
        past = [s.sequence.past for _, s in self._live()]
        room = self.capacity + PADDED * self._backend.contract.block
        return not past or (len(past) < len(self._slots) and max(past) + request.sequence.width <= room)

    @property
    def full(self) -> bool:
        """Whether every place is taken."""
        return sum(1 for _ in self._live()) == len(self._slots)

    def reach(self, request: Progress) -> None:
        """Makes the KV cache as long as a request needs it, its next forward pass next to the others included.

        So a batch that grows takes the same requests at the same time as one that was opened at its longest.
        """
        contract = self._backend.contract
        beside = max((s.sequence.past for _, s in self._live()), default=0) + request.sequence.width
        needed = min(max(request.room, beside - PADDED * contract.block), contract.capacity)
        if needed > self.capacity and isinstance(self._backend, Growable):
            self._backend.grow(needed)
            self.capacity = needed

    def add(self, request: Progress) -> None:
        """Begins a request that it `takes`."""
        free = next(slot for slot, s in enumerate(self._slots) if s is None or s.result is not None)
        self._slots[free], request.started = request, self._clock

    def clear(self) -> None:
        """Frees every place."""
        self._slots = [None] * len(self._slots)

    def drop(self, request: Progress) -> None:
        """Frees the place of a request that nobody wants any more."""
        self._slots = [None if s is request else s for s in self._slots]

    def fit(self, waiting: int = 0, patience: int = 0) -> None:
        """Makes places for the requests at work and `waiting` more; gives up free ones if they are many and have been
        at `patience` calls before, or if nobody is at work."""
        live = [slot for slot, _ in self._live()]
        if not live:  # since the last step nobody was at work
            self._clock = time.perf_counter()
        needed = min(max(1, len(live) + waiting), self._most)
        self._idle = self._idle + 1 if needed <= FEW * len(self._slots) else 0
        if needed <= len(self._slots) and self._idle <= (patience if live else 0):
            return
        self._idle = 0
        free = [live[0] if live else 0] * (needed - len(live))  # a copy of any, which the host reads nothing of
        self._backend.keep(np.array(live + free))
        self._slots = [*(self._slots[slot] for slot in live), *(None for _ in free)]

    def step(self, only: Progress | None = None) -> list[Step]:
        """Runs one forward pass if a sequence needs one; decides on each canvas that was in it or needs none.

        only: this request alone goes on. Raises NumericalError for scores that are not numbers; then, as with what the
        backend raises, no request has gone on, and each may be tried alone.
        """
        live = dict(self._live())
        chosen = {slot: s for slot, s in live.items() if only in (None, s)}
        inputs = {slot: own for slot, s in chosen.items() if (own := s.inputs()) is not None}
        ready = {slot: s for slot, s in chosen.items() if slot not in inputs}
        if inputs:
            out = self._backend.forward(self._assemble(live, inputs))
            if not _numbers(out, inputs):
                raise NumericalError(
                    "the model's scores are not finite numbers (NaN or infinity); its weights or engine are damaged"
                )
            ready |= {slot: live[slot] for slot, own in inputs.items() if live[slot].receive(out, slot, own.asked)}
        self._clock = time.perf_counter()
        for slot, s in chosen.items():
            if s.prefilled is None:  # a first forward pass with the canvas in it is a step; so is none at all
                s.prefilled = s.started if s.forwards or slot not in inputs else self._clock
        return self._decide(ready, inputs) if ready else []

    def _live(self) -> Iterator[tuple[int, Progress]]:
        for slot, s in enumerate(self._slots):
            if s is not None and s.result is None:
                yield slot, s

    def _assemble(self, live: Mapping[int, Progress], inputs: Mapping[int, Inputs]) -> Forward:
        """Returns the sequences' inputs as a batch; one without inputs gets one padding token after its own."""
        batch, top = len(self._slots), any(live[slot].sampler is not None for slot in inputs)
        if batch == 1:
            own = inputs[0]
            return Forward(own.ids[None], np.array([own.past]), own.visible[None], own.rows[None], top)
        width, n = max(len(own.ids) for own in inputs.values()), max(len(own.rows) for own in inputs.values())
        ids = np.full((batch, width), self._backend.contract.pad_id, np.int64)
        visible, rows = np.ones((batch, width), np.int64), np.zeros((batch, n), np.int64)
        for slot, own in inputs.items():
            ids[slot, : len(own.ids)] = own.ids
            visible[slot, : len(own.ids)] = own.visible
            rows[slot, : len(own.rows)] = own.rows
        past = np.array([live[slot].sequence.past if slot in live else 0 for slot in range(batch)])
        return Forward(ids, past, visible, rows, top)

    def _decide(self, ready: Mapping[int, Progress], inputs: Mapping[int, Inputs]) -> list[Step]:
        """Lets the gate decide on all these canvases at once and records what it accepted."""
        chosen = list(ready.values())
        for s in chosen:
            s.draw()
        proposed = zip(*(s.latest.parts()[:3] for s in chosen), strict=True)
        token, confidence, entropy = (_stack(parts) for parts in proposed)
        limits = {read: read() for read in {s.threshold for s in chosen}}  # a shared one is read once
        accepted = self._rule(
            token,
            confidence,
            entropy,
            _stack([s.open for s in chosen]),
            [s.progress for s in chosen],
            [limits[s.threshold] for s in chosen],
        )
        rows = zip(ready.items(), accepted, strict=True)
        return [_step(slot, s, s.accept(own[: len(s.open)]), inputs.get(slot)) for (slot, s), own in rows]


def _step(slot: int, s: Progress, accepted: Bools, inputs: Inputs | None) -> Step:
    """Records what the gate accepted of a canvas, whether or not a forward pass was run for it."""
    block, given, canvas, still_open, sure = s.blocks - 1, s.tail, s.canvas, s.open, s.latest.confidence.copy()
    s.finalize(accepted)
    place, asked = (-1, NOTHING) if inputs is None else (slot, inputs.asked[: len(canvas)])  # what is confirmed alone
    result = s.result
    if result is not None and s.prefilled is not None:
        seconds = time.perf_counter() - s.started
        result = replace(result, seconds=seconds, prefill_seconds=s.prefilled - s.started)
    return Step(
        s.row, place, block, given, canvas.copy(), still_open.copy(), accepted, sure, asked, s.steps, s.forwards, result
    )


def _numbers(out: Proposal, slots: Iterable[int]) -> bool:
    """Returns whether all scores of these slots are numbers. Nobody reads the other places: a request that
    failed may have left something else there."""
    return _finite(out.parts()) or all(_finite([part[slot] for part in out.parts()]) for slot in slots)


def _finite(parts: Sequence[NDArray[Any]]) -> bool:
    """Returns whether a proposal's parts are numbers: a sum is not a number if one of them is not, and is cheaper than
    a look at each. A top token's probability may be 0."""
    known = math.isfinite(float(parts[1].sum()) + float(parts[2].sum()))
    return known and not any(np.isnan(part).any() for part in parts[4:])


def _stack(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stacks arrays [block] to one [canvases, block]; without a copy if it is one, zeros after a smaller block's."""
    if len(parts) == 1:
        return parts[0][None]
    try:
        return np.stack(parts)
    except ValueError:  # of other sizes, which few models have: a look at each would cost the others time
        widest = max(map(len, parts))
        return np.stack([np.pad(part, (0, widest - len(part))) for part in parts])
