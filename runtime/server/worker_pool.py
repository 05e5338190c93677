"""Threads that answer requests in their order, each with a cache of its own over one engine's weights."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from ..errors import DeviceError, NumericalError, UserError
from ..model import Model, ModelPool
from .events import Counts, Deliver, End, Failure, answer
from .http_errors import Refusal
from .request import ServerRequest

LOG = logging.getLogger(__name__)


class Job:
    """A request among the workers: what is asked, who hears of it, whether it is still wanted.

    `deliver` is called on a worker's thread, with an End or a Failure at last, whatever happens.
    """

    __slots__ = ("ask", "deliver", "wanted")

    def __init__(self, ask: ServerRequest, deliver: Deliver) -> None:
        self.ask, self.deliver, self.wanted = ask, deliver, True


class Workers:
    """One thread per model of the pool, which keeps it; at most `room` requests wait for one.

    threshold: what a step without a threshold of its own reads, None for the gate's own.
    """

    def __init__(self, pool: ModelPool, room: int, threshold: Callable[[], float] | None = None) -> None:
        self.room, self._threshold = room, threshold
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed, self.running = False, 0  # whether no more come, and how many are being answered
        self.broken = False  # a device has failed, which lasts
        self._mean = 0.0  # seconds an answer takes, of the latest ones
        self._threads = [threading.Thread(target=self._work, args=(pool.take(),), daemon=True) for _ in pool.models]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Queues a request. Raises what `check_room` raises."""
        with self._changed:
            self.check_room()
            self._jobs.append(job)
            self._changed.notify()

    def check_room(self) -> None:
        """Raises Refusal 429 if too many requests wait, 503 after `close`."""
        if self._closed:
            raise Refusal(503, "the server is going down; ask another one", code="draining")
        if len(self._jobs) + self.running >= self.room + len(self._threads):
            raise self._full()

    def withdraw(self, job: Job) -> None:
        """Nobody waits for it any more: it leaves the queue now, or its worker after the step in work."""
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

    def _full(self) -> Refusal:
        expected = self._mean * (len(self._jobs) + 1) / len(self._threads)
        # Seconds are whole in the standard header; OpenAI's clients read the finer one first.
        wait = {"retry-after": f"{max(1, math.ceil(expected))}", "retry-after-ms": f"{max(10, round(1000 * expected))}"}
        message = f"{len(self._jobs)} requests are waiting; try again later"
        return Refusal(429, message, code="queue_full", headers=wait)

    def _work(self, model: Model) -> None:
        while (job := self._next()) is not None:
            started = time.perf_counter()
            self._answer(model, job)
            with self._changed:
                self.running -= 1
                took = time.perf_counter() - started
                self._mean = took if not self._mean else 0.9 * self._mean + 0.1 * took

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            self.running += 1
            return self._jobs.popleft()

    def _answer(self, model: Model, job: Job) -> None:
        own = job.ask.options.threshold
        try:
            answer(model, job.ask, self._threshold if own is None else own, lambda: job.wanted, job.deliver)
        except (UserError, NumericalError, DeviceError) as error:
            LOG.error("an answer failed: %s", error)
            self.broken = self.broken or isinstance(error, DeviceError)
            job.deliver(Failure(" ".join(str(error).split())))
        except Exception:  # one request's failure must not take the thread away from the others
            LOG.exception("an answer failed")
            job.deliver(Failure("the answer failed inside the server; its log says why"))
