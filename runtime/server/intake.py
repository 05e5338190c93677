"""Reads request bodies off the event loop, so that one client's long text does not delay other clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from ..bundle import strict_json
from .http_errors import Refusal

SHORT = 1 << 14  # bytes; a body up to this takes milliseconds to read, and does not wait for others
MOST_HELD = 32  # longer bodies, waiting or being read, at once
CONTAINERS = 1 << 16  # most lists and objects in a body; a valid request of 1 MiB, the largest body, has fewer

Result = TypeVar("Result")


class Intake:
    """Reads bodies on threads; of the longer bodies, one at a time per size class (powers of two).

    So a body never waits for another of twice its size or more, and at most seven threads, one per size class, read
    longer bodies at the same time.
    """

    def __init__(self) -> None:
        self._locks: dict[int, asyncio.Semaphore] = {}
        self._held = 0

    async def run(self, size: int, read: Callable[[], Result]) -> Result:
        """Runs `read` for a body of `size` bytes. Raises Refusal 429 if too many long bodies are held."""
        if size <= SHORT:
            return await run_in_threadpool(read)
        if self._held >= MOST_HELD:
            message = f"{self._held} long requests are being read; try again later"
            raise Refusal(429, message, code="queue_full", headers={"retry-after": "1"})
        reading = self._locks.setdefault(size.bit_length(), asyncio.Semaphore(1))
        self._held += 1
        try:
            async with reading:
                return await run_in_threadpool(read)
        finally:
            self._held -= 1


def parse_body(content: bytes) -> Any:
    """Parses a body's JSON. Raises Refusal 400 if it is not JSON, or has more than CONTAINERS lists and objects.

    A key that occurs twice in one object is refused, because parsers differ on which one counts. CONTAINERS limits how
    long json.loads and the garbage collector stop all other threads. NaN and Infinity are accepted.
    """
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        if has_many_containers(text):
            raise Refusal(400, f"the body has more than {CONTAINERS} lists and objects; send fewer")
        return json.loads(
            text,
            object_pairs_hook=strict_json.check_unique,
            parse_int=strict_json.parse_whole,
            parse_float=_parse_float,
        )
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body cannot be read as JSON ({str(error)[:100]})") from None


def _parse_float(digits: str) -> float:
    """Calls `float` from Python code, so that other threads may run between two numbers.

    Otherwise a body of numbers alone would stop them for its whole parse: 150,000 times 1e-400 take 0.3 s.
    """
    return float(digits)


def has_many_containers(text: str) -> bool:
    """Returns whether a JSON text has more than CONTAINERS lists and objects, in a few passes over the text."""
    if text.count("[") + text.count("{") <= CONTAINERS:  # brackets inside strings included
        return False
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    return outside.count("[") + outside.count("{") > CONTAINERS
