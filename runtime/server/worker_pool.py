"""Queues requests for the threads that decode them, one by one or many in one running batch."""

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
from ..errors import DeviceError, NumericalError, UserError, describe_error
from ..model import Model, ModelPool
from .deciding import DecisionResult, decide
from .events import Counts, Deliver, End, Failure, PendingAnswer, answer, hand_out_decision
from .http_errors import Refusal
from .request import ServerRequest

LOG = logging.getLogger(__name__)
SLOTS = 16  # default maximum of sequences in the running batch


class Job:
    """Holds a queued request. deliver: receives its events; wanted: false once it is withdrawn.

    `deliver` is called on a worker's thread (by `withdraw` on the caller's), and last with an End or a Failure,
    whatever happens.
    """

    __slots__ = ("deliver", "request", "started", "wanted")

    def __init__(self, request: ServerRequest, deliver: Deliver) -> None:
        self.request, self.deliver, self.wanted = request, deliver, True
        self.started = 0.0  # time.perf_counter() when a worker took it


class Decoder(Protocol):
    """Takes jobs from the workers, on one thread, and ends each, until the workers are closed."""

    @property
    def places(self) -> int:
        """Returns how many jobs are decoded at once."""
        ...

    def run(self, workers: Workers) -> None: ...


class Workers:
    """Runs one thread per decoder. At most `room` requests wait for one, and are taken in order.

    threshold: for requests that give none; None for the gate's own.
    """

    def __init__(self, decoders: Sequence[Decoder], room: int, threshold: Callable[[], float] | None = None) -> None:
        self.room, self.threshold = room, threshold
        self._places = sum(decoder.places for decoder in decoders)
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed, self.running = False, 0  # running: how many are being answered
        self.broken = False  # whether a device has failed; never reset
        self._mean = 0.0  # seconds per answer, a moving average
        self._threads = [threading.Thread(target=decoder.run, args=(self,), daemon=True) for decoder in decoders]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    @property
    def most(self) -> int:
        """Returns how many requests, waiting and being answered, may be held at once."""
        return self.room + self._places

    def submit(self, *jobs: Job) -> None:
        """Queues requests, all of them or none. Raises what `check_room` raises."""
        with self._changed:
            self.check_room(len(jobs))
            self._jobs.extend(jobs)
            self._changed.notify(len(jobs))

    def check_room(self, count: int = 1) -> None:
        """Raises Refusal 429 if `count` more requests do not fit, 503 after `close`."""
        if self._closed:
            raise Refusal(503, "the server is shutting down; send the request to another one", code="draining")
        if len(self._jobs) + self.running + count > self.most:
            raise self._make_full_refusal(count)

    def withdraw(self, job: Job) -> None:
        """Withdraws a job: it leaves the queue now, or its worker after the current step."""
        with self._changed:
            job.wanted = False
            if job not in self._jobs:
                return
            self._jobs.remove(job)
        job.deliver(End("cancelled", Counts(0, 0, 0), None))

    def close(self) -> None:
        """Refuses further requests, waits until those queued and running are answered, and ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _make_full_refusal(self, count: int) -> Refusal:
        expected = self._mean * (len(self._jobs) + count) / self._places
        # The standard header has whole seconds; OpenAI's clients read retry-after-ms first.
        wait = {"retry-after": f"{max(1, math.ceil(expected))}", "retry-after-ms": f"{max(10, round(1000 * expected))}"}
        more = f" and {count} more do not fit" if count > 1 else ""
        waiting = len(self._jobs)
        message = f"{waiting} {'request is' if waiting == 1 else 'requests are'} waiting{more}; try again later"
        return Refusal(429, message, code="queue_full", headers=wait)

    def take(self, wait: bool) -> Job | None:
        """Takes the next job. Returns None if the queue is empty; with `wait`, if the workers are closed too."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            self.running += 1
            job = self._jobs.popleft()
        job.started = time.perf_counter()
        return job

    def choose_threshold(self, job: Job) -> Threshold | None:
        """Returns the threshold for a job's steps: the request's own, or the workers'."""
        own = job.request.options.threshold
        return self.threshold if own is None else own

    def record_end(self, job: Job) -> None:
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
            message = describe_error(error)
        else:
            LOG.error("an answer failed", exc_info=error)
        # Some mistakes in a decision show only while it runs, such as a value with a token that the model bars.
        job.deliver(Failure(message, mistake=isinstance(error, UserError) and job.request.decision is not None))
        self.record_end(job)


class SoloDecoder:
    """Answers one job after the other."""

    places = 1

    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, workers: Workers) -> None:
        while (job := workers.take(wait=True)) is not None:
            try:
                answer(self._model, job.request, workers.choose_threshold(job), lambda: job.wanted, job.deliver)
            except Exception as error:  # one request's failure must not end the thread
                workers.fail(job, error)
            else:
                workers.record_end(job)


class BatchDecoder:
    """Answers up to `places` jobs in one running batch; jobs join and leave it between forward passes."""

    def __init__(self, model: Model, places: int) -> None:
        self.places, self._model, self._batch = places, model, model.batch(places)
        self._jobs: dict[int, tuple[Job, PendingAnswer]] = {}  # by number in the batch
        # The decider runs on its own KV cache, by turns with the batch, a forward pass each, or on the batch's KV cache
        # while that is empty.
        self._own_cache = isinstance(model.backend, Shareable)
        self._decider = model.share() if self._own_cache else replace(model, _busy=threading.Lock())
        self._held: Job | None = None  # a decision that waits until the batch is empty, or for the one that runs

    def run(self, workers: Workers) -> None:
        while self._fill(workers):
            self._step(workers)

    def _step(self, workers: Workers) -> None:
        """Runs one forward pass of the batch and delivers what it did."""
        outcome = self._batch.step()
        for step in outcome.steps:
            self._deliver_step(workers, step)
        for number, error in outcome.failed.items():
            workers.fail(self._jobs.pop(number)[0], error)

    def _step_meanwhile(self, workers: Workers) -> None:
        """Runs one forward pass of the batch before each of a decision, so that no answer waits for its end.

        Free places are filled too, up to the next decision, which is held. Does nothing if they share a KV cache.
        """
        if not self._own_cache:
            return
        while self._held is None and self._batch.free and (job := workers.take(wait=False)) is not None:
            if job.request.decision is None:
                self._start(workers, job)
            else:
                self._held = job
        if self._jobs:
            self._step(workers)

    def _fill(self, workers: Workers) -> bool:
        """Ends jobs that are not wanted any more, and fills free places. Returns whether the batch has jobs."""
        for number in [number for number, (job, _) in self._jobs.items() if not job.wanted]:
            self._end(workers, number)
        while self._batch.free and (job := self._take_next(workers)) is not None:
            self._start(workers, job)
        return bool(self._jobs)

    def _start(self, workers: Workers, job: Job) -> None:
        try:
            self._begin(workers, job)
        except Exception as error:
            workers.fail(job, error)

    def _take_next(self, workers: Workers) -> Job | None:
        """Returns the next job, None if there is none now. A decision that has to wait for the batch's KV cache is
        held, and no other job overtakes it."""
        job, self._held = self._held or workers.take(wait=not self._jobs), None
        if job is not None and job.request.decision is not None and self._jobs and not self._own_cache:
            job, self._held = None, job
        return job

    def _begin(self, workers: Workers, job: Job) -> None:
        """Decides a job that wants a decision; adds the job to the batch unless the decision is its whole reply."""
        decided: DecisionResult | None = None

        def step_batch_if_wanted() -> bool:  # called before each forward pass of the decision
            self._step_meanwhile(workers)
            return job.wanted

        if job.request.decision is not None:
            try:
                decided = decide(self._decider, job.request, workers.choose_threshold(job), step_batch_if_wanted)
            finally:
                if not self._own_cache:
                    self._batch.release()
            if hand_out_decision(decided, job.wanted, job.deliver):
                return workers.record_end(job)
        work = PendingAnswer(self._model, job.request, workers.choose_threshold(job), job.deliver, decided)
        self._jobs[self._batch.add(work.decode_request)] = job, work
        return None

    def _deliver_step(self, workers: Workers, step: Step) -> None:
        job, work = self._jobs[step.row]
        try:
            if not work.take(step, job.wanted):
                self._end(workers, step.row)
        except Exception as error:  # such as in its text; the other jobs go on
            self._batch.drop(step.row)
            self._jobs.pop(step.row, None)
            workers.fail(job, error)

    def _end(self, workers: Workers, number: int) -> None:
        """Ends a job and frees its place, whether or not its answer is complete."""
        self._batch.drop(number)
        job, work = self._jobs.pop(number)
        work.end()
        workers.record_end(job)


def choose_decoders(model: Model, workers: int | None, slots: int | None, device: str = "cpu") -> Sequence[Decoder]:
    """Returns one running batch if the engine takes several sequences per forward pass, else threads that share it.

    On the CPU threads are the default: they fill the cores too, and a batch is slower (LOG.md, 2026-11-30).
    workers: number of threads; if given, there is no batch. slots: sequences in the batch, 1 for no batch; by default
    as many as the engine takes, up to SLOTS. Raises UserError for `workers` with a batch, and for more than the engine
    takes.
    """
    if workers is not None and slots is not None and slots > 1:
        raise UserError(f"--slots {slots} is one batch on one thread; leave --workers {workers} out, or give --slots 1")
    threads = workers is not None or (device == "cpu" and isinstance(model.backend, Shareable))
    most = slots or (1 if threads else min(model.contract.batch, SLOTS))
    if most > 1:
        return (BatchDecoder(model, most),)
    return [SoloDecoder(each) for each in ModelPool(model, workers).models]
