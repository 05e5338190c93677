"""One request over HTTP: its body read, its job given to the workers, its events sent as one reply or as a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from .auth import LEFT
from .completions_json import Reply
from .events import End, Event, Failure, Finished
from .http_errors import Refusal, in_json
from .intake import parse_body
from .request import RESPONSES, Api, ServerRequest, read_server_request
from .responses_json import ResponsesReply
from .service import Service
from .worker_pool import Job

LOG = logging.getLogger(__name__)
BODY_SECONDS = 30.0  # for a request's body to arrive


async def complete(service: Service, api: Api, request: Request) -> Response:
    """One answer, whole or streamed. Raises Refusal if there is none."""
    started = time.perf_counter()
    try:
        content = await asyncio.wait_for(_body(request, service.body), BODY_SECONDS)
    except asyncio.TimeoutError:  # a class of its own in Python 3.10
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    except ClientDisconnect:
        return Response(status_code=LEFT)
    service.workers.check_room()  # before any work on what a client sent

    def read() -> tuple[Any, ServerRequest]:
        body = parse_body(content)
        return body, read_server_request(service.model, service.name, service.most, api, body)

    body, ask = await service.intake.run(len(content), read)
    feed: asyncio.Queue[Event] = asyncio.Queue()
    job = Job(ask, _into(feed))
    service.workers.submit(job)
    cached = service.model.contract.has_cache
    reply = ResponsesReply(ask, service.name, cached, body) if api is RESPONSES else Reply(ask, service.name, cached)
    events = _events(service, request, job, feed, started)
    if ask.stream:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_lines(reply, events), headers=headers, media_type="text/event-stream")
    return await _whole(reply, events)


async def _body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes long.

    Another content type is refused: any site's page may send one here without being asked.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the content type has to be application/json")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            message = f"the body is longer than {limit} bytes; shorten the prompt"
            raise Refusal(413, message, headers={"connection": "close"})
    return bytes(content)


def _into(feed: asyncio.Queue[Event]) -> Callable[[Event], None]:
    """Takes events on a worker's thread and puts them into a queue of the running loop."""
    loop = asyncio.get_running_loop()

    def deliver(event: Event) -> None:
        try:
            loop.call_soon_threadsafe(feed.put_nowait, event)
        except RuntimeError:  # the loop is closed: a drain that took too long was broken off
            return

    return deliver


async def _events(
    service: Service, request: Request, job: Job, feed: asyncio.Queue[Event], started: float
) -> AsyncGenerator[Event, None]:
    """A job's events to its last; a client that leaves takes the job back."""
    gone = asyncio.create_task(_withdraw_when_gone(service, request, job))
    first, event = True, None
    try:
        while not isinstance(event, End | Failure):
            event = await feed.get()
            if first and isinstance(event, Finished):
                service.counters.first_block(time.perf_counter() - started)
                first = False
            if isinstance(event, End) and event.finish != "cancelled":
                service.counters.answered(event, time.perf_counter() - started)
            yield event
    finally:
        gone.cancel()
        service.workers.withdraw(job)
        _log(service, request.url.path, job.ask, event, time.perf_counter() - started)


async def _withdraw_when_gone(service: Service, request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
    service.workers.withdraw(job)


async def _whole(reply: Reply | ResponsesReply, events: AsyncGenerator[Event, None]) -> Response:
    finished = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                finished.append(event)
            elif isinstance(event, Failure):
                raise Refusal(500, event.message, code="failed")
            elif isinstance(event, End) and event.finish != "cancelled":
                return await run_in_threadpool(_written, reply, finished, event)
    return Response(status_code=LEFT)


def _written(reply: Reply | ResponsesReply, finished: Sequence[Finished], end: End) -> Response:
    """The reply's JSON, which takes a while with log probabilities."""
    return in_json(reply.whole(finished, end))


async def _lines(reply: Reply | ResponsesReply, events: AsyncGenerator[Event, None]) -> AsyncIterator[bytes]:
    """The stream of server-sent events. A failure in the middle is one too, and no last line follows it."""
    for chunk in reply.opening():
        yield _line(chunk)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, End) and event.finish == "cancelled":
                return
            for chunk in reply.chunks(event):
                yield _line(chunk)
            if isinstance(event, End):
                yield reply.last


def _line(chunk: dict[str, Any]) -> bytes:
    """A server-sent event; one that has a type of its own is named by it."""
    name = f"event: {chunk['type']}\n".encode() if "type" in chunk else b""
    return name + b"data: " + json.dumps(chunk, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def _log(service: Service, path: str, ask: ServerRequest, last: Event | None, seconds: float) -> None:
    finish, done = (last.finish, last.counts) if isinstance(last, End) else ("unfinished", None)
    tokens, forwards = (done.tokens, done.forwards) if done else (0, 0)
    text = f" {json.dumps(service.model.tokenizer.decode(ask.prompt))}" if service.log_prompts else ""
    line = "%s %s: %d prompt tokens, %d tokens in %d forwards, %.3f s%s"
    LOG.info(line, path, finish, len(ask.prompt), tokens, forwards, seconds, text)
