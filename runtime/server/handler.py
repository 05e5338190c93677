"""Handles an HTTP request: reads its body, submits its jobs to the workers, sends the reply whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from .auth import LEFT
from .completions_json import Reply, make_refusal
from .events import End, Event, Failure, FinishedBlock
from .http_errors import Refusal, make_json_response
from .intake import parse_body
from .request import RESPONSES, Api, ServerRequest, read_server_requests
from .responses_json import ResponsesReply, make_writable
from .service import Service
from .worker_pool import Job

LOG = logging.getLogger(__name__)
BODY_SECONDS = 30.0  # for a request's body to arrive

Feed = asyncio.Queue[tuple[int, Event]]  # events of a request's jobs, each with its job's index
_TASKS: set[asyncio.Task[None]] = set()  # asyncio itself holds tasks by weak references only


async def complete(service: Service, api: Api, request: Request) -> Response:
    """Returns the reply, whole or streamed, with an answer to each prompt. Raises Refusal if it cannot be answered."""
    started = time.perf_counter()
    try:
        content = await asyncio.wait_for(_read_body(request, service.body), BODY_SECONDS)
    except asyncio.TimeoutError:  # a class of its own in Python 3.10
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    except ClientDisconnect:
        return Response(status_code=LEFT)
    service.workers.check_room()  # before any work on the body

    def read() -> tuple[Any, tuple[ServerRequest, ...]]:
        body, most = parse_body(content), service.workers.most
        gated = service.workers.threshold is not None
        requests = read_server_requests(service.model, service.name, service.most, api, body, most, gated)
        return make_writable(body) if api is RESPONSES and requests[0].decision is not None else body, requests

    body, requests = await service.intake.run(len(content), read)
    feed: Feed = asyncio.Queue()
    jobs = [Job(each, _make_deliver(feed, index)) for index, each in enumerate(requests)]
    service.workers.submit(*jobs)
    cached = service.model.contract.has_cache
    name, responses = service.name, api is RESPONSES
    reply = ResponsesReply(requests[0], name, cached, body) if responses else Reply(requests, name, cached)
    events = _receive_events(service, request, jobs, feed, started)
    if requests[0].stream:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_format_lines(reply, events), headers=headers, media_type="text/event-stream")
    return await _reply_whole(reply, events, len(jobs))


async def _read_body(request: Request, limit: int) -> bytes:
    """Returns the body. Raises Refusal if it is longer than `limit` bytes or its content type is not JSON.

    Content types other than JSON are refused because any site's page may send them here without a preflight.
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


def _make_deliver(feed: Feed, index: int) -> Callable[[Event], None]:
    """Returns a function that queues a job's events with the job's index; any thread may call it."""
    loop = asyncio.get_running_loop()

    def deliver(event: Event) -> None:
        try:
            loop.call_soon_threadsafe(feed.put_nowait, (index, event))
        except RuntimeError:  # the loop is closed, as draining took too long
            return

    return deliver


async def _receive_events(
    service: Service, request: Request, jobs: Sequence[Job], feed: Feed, started: float
) -> AsyncGenerator[tuple[int, Event], None]:
    """Yields the jobs' events, each with its job's index, up to the last End or the first Failure.

    All jobs are withdrawn if the client leaves or one of them fails.
    """
    watcher = asyncio.create_task(_withdraw_when_gone(service, request, jobs))
    begun, ended = set[int](), dict[int, tuple[Event, float]]()
    event: Event | None = None
    try:
        while len(ended) < len(jobs) and not isinstance(event, Failure):
            index, event = await feed.get()
            seconds = time.perf_counter() - started
            if isinstance(event, FinishedBlock) and index not in begun:
                service.counters.record_first_block(seconds)
                begun.add(index)
            if isinstance(event, End) and event.finish != "cancelled":
                service.counters.answer(event, seconds)
            if isinstance(event, End | Failure):
                ended[index] = event, seconds
            if isinstance(event, Failure) and len(jobs) > 1:
                event = replace(event, message=f"prompt[{index}]: {event.message}")
            yield index, event
    finally:
        watcher.cancel()
        _withdraw(service, jobs)
        # If the client left, a worker is still in a job's last forward pass; its End comes after that, with the counts.
        task = asyncio.create_task(_log_jobs(service, request.url.path, jobs, feed, ended, started))
        _TASKS.add(task)
        task.add_done_callback(_TASKS.discard)


async def _log_jobs(
    service: Service, path: str, jobs: Sequence[Job], feed: Feed, ended: dict[int, tuple[Event, float]], started: float
) -> None:
    """Logs each job once all have ended. ended: the last events of those that have, with their seconds; is added to."""
    try:
        while len(ended) < len(jobs):
            index, event = await feed.get()
            if isinstance(event, End | Failure):
                ended[index] = event, time.perf_counter() - started
    finally:
        for index, job in enumerate(jobs):
            last, seconds = ended.get(index, (None, time.perf_counter() - started))
            _log(service, path, job.request, last, seconds)


async def _withdraw_when_gone(service: Service, request: Request, jobs: Sequence[Job]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
    _withdraw(service, jobs)


def _withdraw(service: Service, jobs: Sequence[Job]) -> None:
    for job in jobs:
        service.workers.withdraw(job)


async def _reply_whole(
    reply: Reply | ResponsesReply, events: AsyncGenerator[tuple[int, Event], None], count: int
) -> Response:
    finished, ends = [list[FinishedBlock]() for _ in range(count)], dict[int, End]()
    async with aclosing(events):
        async for index, event in events:
            if isinstance(event, FinishedBlock):
                finished[index].append(event)
            elif isinstance(event, Failure):
                raise make_refusal(event)
            elif isinstance(event, End):
                if event.finish == "cancelled":
                    return Response(status_code=LEFT)
                ends[index] = event
    return await run_in_threadpool(_write_json, reply, [(finished[index], ends[index]) for index in range(count)])


def _write_json(reply: Reply | ResponsesReply, answers: Sequence[tuple[Sequence[FinishedBlock], End]]) -> Response:
    """Returns the reply's JSON; with log-probabilities it takes long enough to need a thread."""
    return make_json_response(reply.make_body(answers))


async def _format_lines(
    reply: Reply | ResponsesReply, events: AsyncGenerator[tuple[int, Event], None]
) -> AsyncIterator[bytes]:
    """Yields the stream of server-sent events. A Failure is sent as the last event, without the final `[DONE]`."""
    for chunk in reply.make_opening():
        yield _format_line(chunk)
    async with aclosing(events):
        async for index, event in events:
            if isinstance(event, End) and event.finish == "cancelled":
                return
            for chunk in reply.make_chunks(index, event):
                yield _format_line(chunk)
            if isinstance(event, Failure):
                return
    yield reply.last


def _format_line(chunk: dict[str, Any]) -> bytes:
    """Returns a chunk as a server-sent event, whose name is the chunk's `type` if it has one."""
    name = f"event: {chunk['type']}\n".encode() if "type" in chunk else b""
    return name + b"data: " + json.dumps(chunk, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def _log(service: Service, path: str, request: ServerRequest, last: Event | None, seconds: float) -> None:
    finish, done = (last.finish, last.counts) if isinstance(last, End) else ("unfinished", None)
    tokens, forwards = (done.tokens, done.forwards) if done else (0, 0)
    text = f" {json.dumps(service.model.tokenizer.decode(request.prompt))}" if service.log_prompts else ""
    line = "%s %s: %d prompt tokens, %d tokens in %d forward passes, %.3f s%s"
    LOG.info(line, path, finish, len(request.prompt), tokens, forwards, seconds, text)
