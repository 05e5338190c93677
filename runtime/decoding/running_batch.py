"""Runs a batch that requests join and leave between forward passes, for a server: first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ..backend import Backend, Growable
from ..contract import GateSpec
from ..errors import NumericalError, UserError
from .batch import Batch, Step
from .loop import ProgressMaker
from .options import Request
from .request_state import Progress

LONG = 2  # a KV cache longer than this times what is needed is given up when no request runs
PATIENCE = 8  # forward passes before free places are given up: that copies the KV cache, and they may be needed soon


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """Holds what one forward pass did. steps: of the requests whose block was in it; failed: errors by request."""

    steps: list[Step]
    failed: Mapping[int, Exception] = field(default_factory=dict)


class RunningBatch:
    """Runs at most `slots` requests at once, with a queue for more; one thread drives it.

    In fp32 every answer equals its solo run, whatever other requests join or leave. A request joins the batch at the
    first forward pass with a free place, after all requests that came before it. A wide prompt that has no room next to
    the others (see `Batch.takes`) waits, at most until they have their answers, and no request overtakes it. Each
    forward pass serves every request in the batch. gate: replaces the contract's.
    """

    def __init__(self, backend: Backend, gate: GateSpec | None, slots: int) -> None:
        self.slots = slots
        self._backend, self._begin = backend, ProgressMaker(backend.contract, gate, {})
        self._batch: Batch | None = None  # opened when it is first needed, and again after a failure
        self._damaged = False  # whether a request failed, which may have left NaN in the KV cache
        self._single = False  # whether the batch has one place, since memory was short; reopened when it is idle
        self._waiting: deque[Progress] = deque()
        self._running: dict[int, Progress] = {}  # by number, in the order in which they came
        self._count = 0

    @property
    def free(self) -> int:
        """Returns how many places no request has or waits for."""
        return max(0, self.slots - len(self._running) - len(self._waiting))

    @property
    def busy(self) -> bool:
        """Whether any request lacks its answer."""
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> int:
        """Queues a request. Returns its number, the `row` of its steps. Raises UserError if it does not fit."""
        progress = self._begin(self._count, request)
        self._waiting.append(progress)
        self._count += 1
        return progress.row

    def drop(self, number: int) -> None:
        """Gives up a request, in the queue or in the batch. Its place is free for the next forward pass."""
        self._waiting = deque(s for s in self._waiting if s.row != number)
        progress = self._running.pop(number, None)
        if progress is not None and self._batch is not None:
            self._batch.drop(progress)

    def release(self) -> None:
        """Gives up the KV cache, so that the engine can be used otherwise; the next step opens it again.

        Raises ValueError while a request runs.
        """
        if self._running:
            raise ValueError("the batch has requests in it")
        self._batch = None

    def step(self) -> ForwardResult:
        """Admits requests, runs one forward pass and decides on its blocks.

        A request that the engine refuses, or whose scores are not numbers, fails alone. A failed device, or an
        unforeseen error, ends all requests in the batch; waiting requests stay, unless there is no batch yet.
        """
        refused = dict[int, Exception]()
        try:
            batch = self._admit(refused)
            try:
                outcome = ForwardResult([] if batch is None else batch.step(), refused)
            except (UserError, NumericalError) as error:
                assert batch is not None
                outcome = self._step_each(batch, error, refused)
        except Exception as error:
            ended = [*self._running] or [s.row for s in self._waiting]
            self._batch, outcome = None, ForwardResult([], {**refused, **dict.fromkeys(ended, error)})
        self._damaged = self._damaged or bool(outcome.failed)
        for number in [*outcome.failed, *(step.row for step in outcome.steps if step.result is not None)]:
            self.drop(number)
        return outcome

    def _admit(self, refused: dict[int, Exception]) -> Batch | None:
        """Fills free places. After a failure no request joins until the others have left and the batch is opened again.

        Adds to `refused` the errors of requests whose KV cache does not fit into memory. Returns the batch, None if no
        request is left.
        """
        capacity = self._compute_needed()
        long = self._batch is not None and bool(self._waiting) and self._batch.capacity > LONG * capacity
        if not self._running and (self._damaged or long or self._single):
            self._batch, self._damaged = None, False
        if self._batch is None:
            self._batch = self._open(capacity, refused)
        if self._batch is not None and not self._damaged:
            with suppress(UserError):  # no memory for more places: who waits goes on waiting
                self._batch.fit(len(self._waiting), PATIENCE)
            while self._waiting and not self._batch.full:
                try:
                    self._batch.reach(self._waiting[0])
                except UserError as error:
                    refused[self._waiting.popleft().row] = error
                    continue
                if not self._batch.takes(self._waiting[0]):
                    break
                progress = self._waiting.popleft()
                self._running[progress.row] = progress
                self._batch.add(progress)
        return self._batch

    def _open(self, capacity: int, refused: dict[int, Exception]) -> Batch | None:
        """Opens the batch with all places, or with one, for the next request, if the KV cache does not fit into memory.

        Requests whose own KV cache does not fit are refused. Returns None if none is left.
        """
        self._single = False
        try:
            return Batch(self._backend, self._begin.rule, self.slots, capacity)
        except UserError:
            if self.slots > self._backend.contract.batch:
                raise
        while self._waiting:
            needed = self._waiting[0].room if isinstance(self._backend, Growable) else capacity
            try:
                batch = Batch(self._backend, self._begin.rule, 1, needed)
            except UserError as error:
                refused[self._waiting.popleft().row] = error
            else:
                self._single = True
                return batch
        return None

    def _compute_needed(self) -> int:
        """Returns the capacity to open a batch with: what waiting requests need if it can grow, else the contract's."""
        if not isinstance(self._backend, Growable):
            return self._backend.contract.capacity
        return max((progress.room for progress in self._waiting), default=1)

    def _step_each(self, batch: Batch, error: Exception, refused: Mapping[int, Exception]) -> ForwardResult:
        """Runs one forward pass per request, after one for all has failed, to find the requests that fail."""
        if len(self._running) == 1:
            return ForwardResult([], {**refused, **dict.fromkeys(self._running, error)})
        steps, failed = list[Step](), dict(refused)
        # The widest first, a new prompt's: once others have advanced, it might have no room next to them.
        for number, progress in sorted(self._running.items(), key=lambda item: -item[1].sequence.width):
            try:
                batch.reach(progress)  # the requests before it have advanced
                steps += batch.step(progress)
            except (UserError, NumericalError) as own:
                failed[number] = own
        return ForwardResult(steps, failed)
