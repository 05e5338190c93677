"""A real server on a free port, inside the test's process, and clients for it."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from openai import OpenAI

from runtime.backend import Forward, Proposal
from runtime.model import Model, ModelPool
from runtime.server.app import make_app
from runtime.server.connection_limits import make_server
from runtime.server.metrics import Counters
from runtime.server.service import Service
from runtime.server.sockets import format_url, listen
from runtime.server.worker_pool import BatchDecoder, SoloDecoder, Workers

SAMPLES = Path(__file__).parents[2] / "samples"
PROMPTS = [(SAMPLES / f"prompt_{task}.txt").read_text(encoding="utf-8").rstrip() for task in ("math", "code")]


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    service: Service
    server: uvicorn.Server

    def client(self, retries: int = 0, key: str = "none") -> OpenAI:
        """The official client, unmodified."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=retries, timeout=60)

    def post(self, body: Any, path: str = "/v1/completions", **headers: str) -> httpx.Response:
        """A request as bytes on the wire, for what the client would not send."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"content-type": "application/json", **own}
        # A context with certificates takes nine tenths of a request's time, and this is plain HTTP.
        return httpx.post(self.url + path, content=content, headers=sent, timeout=60, verify=False)

    def metric(self, name: str) -> float:
        """The value of a line of /metrics."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)


@contextmanager
def served(
    model: Model, workers: int = 1, room: int = 32, slots: int | None = None,
    threshold: Callable[[Callable[[], int]], Callable[[], float]] | None = None, drain: int = 20,
    name: str = "student",
    **settings: Any,
) -> Iterator[Served]:  # fmt: skip
    """A server; threshold: makes the one in force from a function that counts who waits; slots: of a batch."""
    pool = [BatchDecoder(model, slots)] if slots else [SoloDecoder(each) for each in ModelPool(model, workers).models]
    queue = Workers(pool, room, threshold and threshold(lambda: queue.waiting))
    counters = Counters(queue, threshold and threshold(lambda: queue.waiting))
    service = Service(model, name, queue, counters, **settings)
    with listen("127.0.0.1", 0) as place:
        url = format_url(place)
        server = make_server(make_app(service), drain)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        try:
            until(lambda: server.started)
            yield Served(url, service, server)
        finally:
            server.should_exit = True  # what its signal handler does
            thread.join(30)
            assert not thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Waits for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


class Paced:
    """A script whose forward passes wait until they are let through."""

    def __init__(self, script: Callable[[Forward], Proposal]) -> None:
        self._script, self._let = script, threading.Semaphore(0)
        self.begun = 0

    def __call__(self, forward: Forward) -> Proposal:
        self.begun += 1
        assert self._let.acquire(timeout=30)
        return self._script(forward)

    def let(self, forwards: int) -> None:
        self._let.release(forwards)


def outside(processes: Sequence[psutil.Process]) -> tuple[list[str], list[str]]:
    """Processes that another machine could reach, and such that are connected to one."""
    listening, connected = [], []
    for process in processes:
        for connection in process.net_connections("inet"):
            for end, found in ((connection.laddr, listening), (connection.raddr, connected)):
                if end and not ipaddress.ip_address(end.ip.removeprefix("::ffff:")).is_loopback:
                    found.append(" ".join(process.cmdline()))
    return listening, connected
