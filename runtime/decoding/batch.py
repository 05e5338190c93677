"""Runs several requests on one backend: one forward pass and one decision of the gate for all of them."""

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

FEW = 0.75  # if at most this share of the places is needed, the others may be given up, see `Batch.fit`


@dataclass(frozen=True, slots=True)
class Step:
    """Holds what one step did to one sequence. tokens, open, accepted, confidence [block]: the canvas after the step.

    open: whether a position is still masked. confidence: of each position's latest prediction, so an unmasked position
    keeps the confidence of its acceptance; 0 for tokens that were given. targets [n]: the canvas positions that the
    forward pass predicted, in the order of its rows. row: the request's index. slot: its place in the forward pass, or
    -1 if none was needed. block: the block's index in the answer. given: how many of the canvas's first tokens belong
    to the prompt. steps, forwards: of the request so far, as in its `Result`.
    """

    row: int
    slot: int
    block: int
    given: int
    tokens: Ints
    open: Bools
    accepted: Bools
    confidence: Floats
    targets: Ints
    steps: int
    forwards: int
    result: Result | None


class Batch:
    """Decodes up to `slots` requests on a backend, which it opens for sequences of at most `capacity` positions.

    `reach` raises the capacity if the backend can grow. A place whose request has its answer is free for another
    request at any step, since each sequence has its own length. The backend computes as many sequences as there are
    places; `fit` changes their number, up to `slots`. What an earlier request left in the KV cache is not zeroed: the
    next request does not see it, and it is finite, or `step` would have raised. Raises UserError if the backend cannot
    run so many sequences.
    """

    def __init__(self, backend: Backend, rule: Gate, slots: int, capacity: int) -> None:
        if slots < 1:
            raise UserError(f"slots is {slots}; expected at least 1")
        self._backend, self._rule, self.capacity = backend, rule, capacity
        self._slots: list[Progress | None] = [None] * slots
        self._most, self._idle = slots, 0  # _idle: successive calls of `fit` at which many places were free
        self._clock = time.perf_counter()  # a new request's time starts here; opening the backend counts
        backend.open(slots, capacity)

    @property
    def busy(self) -> bool:
        """Whether any request lacks its answer."""
        return any(True for _ in self._list_live())

    def takes(self, request: Progress) -> bool:
        """Returns whether a place is free and there is room: a forward pass is as wide for all as for the widest."""
        past = [s.sequence.past for _, s in self._list_live()]
        room = self.capacity + PADDED * self._backend.contract.block
        return not past or (len(past) < len(self._slots) and max(past) + request.sequence.width <= room)

    @property
    def full(self) -> bool:
        """Whether every place is taken."""
        return sum(1 for _ in self._list_live()) == len(self._slots)

    def reach(self, request: Progress) -> None:
        """Grows the KV cache to what a request needs, also for its next forward pass together with the others.

        So a batch that grows takes requests at the same steps as one that was opened at full length.
        """
        contract = self._backend.contract
        beside = max((s.sequence.past for _, s in self._list_live()), default=0) + request.sequence.width
        needed = min(max(request.room, beside - PADDED * contract.block), contract.capacity)
        if needed > self.capacity and isinstance(self._backend, Growable):
            self._backend.grow(needed)
            self.capacity = needed

    def add(self, request: Progress) -> None:
        """Begins a request, for which `takes` must be true."""
        free = next(slot for slot, s in enumerate(self._slots) if s is None or s.result is not None)
        self._slots[free], request.started = request, self._clock

    def clear(self) -> None:
        """Frees every place."""
        self._slots = [None] * len(self._slots)

    def drop(self, request: Progress) -> None:
        """Frees the place of a request that nobody wants any more."""
        self._slots = [None if s is request else s for s in self._slots]

    def fit(self, waiting: int = 0, patience: int = 0) -> None:
        """Gives the batch places for the running requests and `waiting` more.

        Gives up places if many are free: at once if no request runs, else after `patience` further calls that found
        many free.
        """
        live = [slot for slot, _ in self._list_live()]
        if not live:  # no request has run since the last step
            self._clock = time.perf_counter()
        needed = min(max(1, len(live) + waiting), self._most)
        self._idle = self._idle + 1 if needed <= FEW * len(self._slots) else 0
        if needed <= len(self._slots) and self._idle <= (patience if live else 0):
            return
        self._idle = 0
        free = [live[0] if live else 0] * (needed - len(live))  # copies of any sequence, which nothing reads
        self._backend.keep(np.array(live + free))
        self._slots = [*(self._slots[slot] for slot in live), *(None for _ in free)]

    def step(self, only: Progress | None = None) -> list[Step]:
        """Runs one forward pass if a sequence needs one, and the gate on each canvas that was in it or needs none.

        only: the one request to step; None for all. Raises NumericalError for scores that are not numbers. After that,
        or an error of the backend, no request has advanced, and each may be stepped alone.
        """
        live = dict(self._list_live())
        chosen = {slot: s for slot, s in live.items() if only in (None, s)}
        inputs = {slot: own for slot, s in chosen.items() if (own := s.make_inputs()) is not None}
        ready = {slot: s for slot, s in chosen.items() if slot not in inputs}
        if inputs:
            out = self._backend.forward(self._assemble(live, inputs))
            if not _has_numbers(out, inputs):
                raise NumericalError(
                    "the model's scores are not finite numbers (NaN or infinity); its weights or engine are damaged"
                )
            ready |= {slot: live[slot] for slot, own in inputs.items() if live[slot].receive(out, slot, own.targets)}
        self._clock = time.perf_counter()
        for slot, s in chosen.items():
            if s.prefilled is None:  # the prefill took no time of its own if the canvas was in it, or none was needed
                s.prefilled = s.started if s.forwards or slot not in inputs else self._clock
        return self._decide(ready, inputs) if ready else []

    def _list_live(self) -> Iterator[tuple[int, Progress]]:
        for slot, s in enumerate(self._slots):
            if s is not None and s.result is None:
                yield slot, s

    def _assemble(self, live: Mapping[int, Progress], inputs: Mapping[int, Inputs]) -> Forward:
        """Joins the sequences' inputs to a batch; a sequence without inputs gets padding after its committed tokens."""
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
        proposed = zip(*(s.latest.list_arrays()[:3] for s in chosen), strict=True)
        token, confidence, entropy = (_stack(parts) for parts in proposed)
        limits = {read: read() for read in {s.threshold for s in chosen}}  # a shared threshold is read once
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
    # the targets without those of rejected drafts
    place, targets = (-1, NOTHING) if inputs is None else (slot, inputs.targets[: len(canvas)])
    result = s.result
    if result is not None and s.prefilled is not None:
        seconds = time.perf_counter() - s.started
        result = replace(result, seconds=seconds, prefill_seconds=s.prefilled - s.started)
    tokens, masked = canvas.copy(), still_open.copy()
    return Step(s.row, place, block, given, tokens, masked, accepted, sure, targets, s.steps, s.forwards, result)


def _has_numbers(out: Proposal, slots: Iterable[int]) -> bool:
    """Returns whether all scores of these slots are numbers. Other slots do not count: a failed request may have
    left NaN there, which nothing reads."""
    return _is_finite(out.list_arrays()) or all(
        _is_finite([part[slot] for part in out.list_arrays()]) for slot in slots
    )


def _is_finite(parts: Sequence[NDArray[Any]]) -> bool:
    """Returns whether a proposal's scores are numbers, by their sum, which is cheaper to check than each of them. A top
    token's log-probability may be -inf."""
    known = math.isfinite(float(parts[1].sum()) + float(parts[2].sum()))
    return known and not any(np.isnan(part).any() for part in parts[4:])


def _stack(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stacks arrays [block] into one [canvases, block], shorter ones padded with zeros; a single one is not copied."""
    if len(parts) == 1:
        return parts[0][None]
    try:
        return np.stack(parts)
    except ValueError:  # sizes differ, in few models; a check beforehand would cost the others time
        widest = max(map(len, parts))
        return np.stack([np.pad(part, (0, widest - len(part))) for part in parts])
