"""Gives requests, in order, to the threads that decode them: each by itself, or many in one running batch."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from ..backend import Shareable
from ..decoding.batch import Step
from ..decoding.options import Threshold
from ..errors import DeviceError, NumericalError, UserError
from ..model import Model, ModelPool
from .deciding import Decided, decide
from .events import Counts, Deliver, End, Failure, PendingAnswer, answer, hand_out_decision
from .http_errors import Refusal
from .request import ServerRequest

LOG = logging.getLogger(__name__)
SLOTS = 16  # by default, of an engine that takes as many sequences or more


class Job:
    """Holds a queued request: what to generate, who receives it, whether it is still wanted, when it began.

    `deliver` is called on a worker's thread, with an End or a Failure at last, whatever happens.
    """

    __slots__ = ("ask", "deliver", "started", "wanted")

    def __init__(self, ask: ServerRequest, deliver: Deliver) -> None:
        self.ask, self.deliver, self.wanted = ask, deliver, True
        self.started = 0.0  # by time.perf_counter


class Decoder(Protocol):
    """What one thread runs: it takes jobs from the workers, until there are no more, and ends each."""

    @property
    def places(self) -> int:
        """How many jobs it decodes at once."""
        ...

    def run(self, workers: Workers) -> None: ...


class Workers:
    """One thread per decoder; at most `room` requests wait for one, and the first of them is taken first.

    threshold: what a step without a threshold of its own reads, None for the gate's own.
    """

    def __init__(self, decoders: Sequence[Decoder], room: int, threshold: Callable[[], float] | None = None) -> None:
        self.room, self._threshold = room, threshold
        self._places = sum(decoder.places for decoder in decoders)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed, self.running = False, 0  # whether no more come, and how many are being answered
        self.broken = False  # a device has failed, which lasts
        self._mean = 0.0  # seconds per answer, of the latest ones
        self._threads = [threading.Thread(target=decoder.run, args=(self,), daemon=True) for decoder in decoders]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    @property
    def most(self) -> int:
        """How many requests may wait and be answered together."""
        return self.room + self._places

    def submit(self, *jobs: Job) -> None:
        """Queues requests, all of them or none. Raises what `check_room` raises."""
        with self._changed:
            self.check_room(len(jobs))
            self._jobs.extend(jobs)
            self._changed.notify(len(jobs))

    def check_room(self, count: int = 1) -> None:
        """Raises Refusal 429 if too many requests wait for `count` more, 503 after `close`."""
        if self._closed:
            raise Refusal(503, "the server is shutting down; send the request to another one", code="draining")
        if len(self._jobs) + self.running + count > self.most:
            raise self._full(count)

    def withdraw(self, job: Job) -> None:
        """Gives up a job: it leaves the queue now, or its worker after the current step."""
        with self._changed:
            job.wanted = False
            if job not in self._jobs:
                return
            self._jobs.remove(job)
        job.deliver(End("cancelled", Counts(0, 0, 0), None))

    def close(self) -> None:
        """Takes no more requests, finishes those that there are, and ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _full(self, count: int) -> Refusal:
        expected = self._mean * (len(self._jobs) + count) / self._places
        # Seconds are whole in the standard header; OpenAI's clients read the finer one first.
        wait = {"retry-after": f"{max(1, math.ceil(expected))}", "retry-after-ms": f"{max(10, round(1000 * expected))}"}
        more = f" and {count} more do not fit" if count > 1 else ""
        waiting = len(self._jobs)
        message = f"{waiting} {'request is' if waiting == 1 else 'requests are'} waiting{more}; try again later"
        return Refusal(429, message, code="queue_full", headers=wait)

    def take(self, wait: bool) -> Job | None:
        """Returns the next job, begun; None if there is none now, or with `wait` if there will be none any more."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            self.running += 1
            job = self._jobs.popleft()
        job.started = time.perf_counter()
        return job

    def threshold(self, job: Job) -> Threshold | None:
        """Returns the threshold of a job's steps: its own, or what all others read."""
        own = job.ask.options.threshold
        return self._threshold if own is None else own

    def done(self, job: Job) -> None:
        """Notes that a job has ended."""
        with self._changed:
            self.running -= 1
            took = time.perf_counter() - job.started
            self._mean = took if not self._mean else 0.9 * self._mean + 0.1 * took

    def fail(self, job: Job, error: Exception) -> None:
        """Ends a job with a Failure."""
        message = "the answer failed inside the server; its log has the reason"
        if isinstance(error, UserError | NumericalError | DeviceError):
            LOG.error("an answer failed: %s", error)
            self.broken = self.broken or isinstance(error, DeviceError)
            message = " ".join(str(error).split())
        else:
            LOG.error("an answer failed", exc_info=error)
        # What a decision's values are to the model shows as late as here, as that it never gives one of their tokens.
        job.deliver(Failure(message, mistake=isinstance(error, UserError) and job.ask.decision is not None))
        self.done(job)


class SoloDecoder:
    """Answers one job after the other."""

    places = 1

    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, workers: Workers) -> None:
        while (job := workers.take(wait=True)) is not None:
            try:
                answer(self._model, job.ask, workers.threshold(job), lambda: job.wanted, job.deliver)
            except Exception as error:  # one request's failure must not take the thread away from the others
                workers.fail(job, error)
            else:
                workers.done(job)


class BatchDecoder:
    """Answers up to `places` jobs in one running batch, which they join and leave between forward passes."""

    def __init__(self, model: Model, places: int) -> None:
        self.places, self._model, self._batch = places, model, model.batch(places)
        self._jobs: dict[int, tuple[Job, PendingAnswer]] = {}  # by number in the batch
        # Decides between two steps of the batch: on a KV cache of its own, or on the batch's while nobody is in it.
        self._own_cache = isinstance(model.backend, Shareable)
        self._decider = model.share() if self._own_cache else replace(model, _busy=threading.Lock())
        self._held: Job | None = None  # a decision that waits until nobody is in the batch

    def run(self, workers: Workers) -> None:
        while self._fill(workers):
            outcome = self._batch.step()
            for step in outcome.steps:
                self._hear(workers, step)
            for number, error in outcome.failed.items():
                workers.fail(self._jobs.pop(number)[0], error)

    def _fill(self, workers: Workers) -> bool:
        """Takes back what nobody wants, and a job for each free place. Returns whether there are any."""
        for number in [number for number, (job, _) in self._jobs.items() if not job.wanted]:
            self._end(workers, number)
        while self._batch.free and (job := self._next(workers)) is not None:
            try:
                self._begin(workers, job)
            except Exception as error:
                workers.fail(job, error)
        return bool(self._jobs)

    def _next(self, workers: Workers) -> Job | None:
        """The next job, None if there is none now. One that has to wait for the batch's KV cache is held, and nobody
        overtakes it."""
        job, self._held = self._held or workers.take(wait=not self._jobs), None
        if job is not None and job.ask.decision is not None and self._jobs and not self._own_cache:
            job, self._held = None, job
        return job

    def _begin(self, workers: Workers, job: Job) -> None:
        """Decides a job, or takes it into the batch."""
        decided: Decided | None = None
        if job.ask.decision is not None:
            try:
                decided = decide(self._decider, job.ask, workers.threshold(job), lambda: job.wanted)
            finally:
                if not self._own_cache:
                    self._batch.release()
            if hand_out_decision(decided, job.wanted, job.deliver):
                return workers.done(job)
        work = PendingAnswer(self._model, job.ask, workers.threshold(job), job.deliver, decided)
        self._jobs[self._batch.add(work.request)] = job, work
        return None

    def _hear(self, workers: Workers, step: Step) -> None:
        job, work = self._jobs[step.row]
        try:
            if not work.take(step, job.wanted):
                self._end(workers, step.row)
        except Exception as error:  # as in its text; the others go on
            self._batch.drop(step.row)
            self._jobs.pop(step.row, None)
            workers.fail(job, error)

    def _end(self, workers: Workers, number: int) -> None:
        """Ends a job and frees its place, whether or not its answer is whole."""
        self._batch.drop(number)
        job, work = self._jobs.pop(number)
        work.end()
        workers.done(job)


def choose_decoders(model: Model, workers: int | None, slots: int | None, device: str = "cpu") -> Sequence[Decoder]:
    """Returns one running batch if the engine takes several sequences in a forward pass, or else threads that share it.

    On the CPU, whose cores threads fill as well, a batch is slower (LOG.md, 2026-11-30) and not the default.
    workers: threads, however many sequences the engine takes. slots: of the batch, by default as many as the engine
    takes, at most SLOTS; 1 means no batch. Raises UserError for both of them, and for more than the engine takes.
    """
    if workers is not None and slots is not None and slots > 1:
        raise UserError(f"--slots {slots} is one batch on one thread; leave --workers {workers} out, or give --slots 1")
    threads = workers is not None or (device == "cpu" and isinstance(model.backend, Shareable))
    most = slots or (1 if threads else min(model.contract.batch, SLOTS))
    if most > 1:
        return (BatchDecoder(model, most),)
    return [SoloDecoder(each) for each in ModelPool(model, workers).models]
