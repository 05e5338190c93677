"""The server as an ASGI application: OpenAI's API, the page, health and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import UserError
from ..model import Model
from .answering import Canvas, End, Event, Failure, Finished
from .ask import Ask, read_ask, unknown_model
from .counters import Counters
from .door import LEFT, Door
from .refusal import Refusal, in_json, refused
from .replies import Reply
from .workers import Job, Workers

LOG = logging.getLogger(__name__)
BODY_SECONDS = 30.0  # for a request's body to arrive
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


@dataclass(frozen=True, slots=True)
class Service:
    """What a server serves, and how. most: new tokens of a request; body: bytes of one; hosts, keys: see `Door`."""

    model: Model
    name: str
    workers: Workers
    counters: Counters
    most: int | None = None
    body: int = 1 << 20
    hosts: tuple[str, ...] | None = None
    keys: tuple[str, ...] = ()
    log_prompts: bool = False
    started: int = field(default_factory=lambda: int(time.time()))

    def card(self) -> dict[str, Any]:
        """The model's entry in /v1/models, with what a page has to know of its gate."""
        contract, gate = self.model.contract, asdict(self.model.gate)
        own = {"engine": self.model.engine, "block": contract.block, "capacity": contract.capacity, "gate": gate}
        own |= {"vocab": contract.vocab, "most": self.most}
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "blockstep", "blockstep": own}


def make_app(service: Service) -> Starlette:
    """The application. Its shutdown waits until the workers have finished what they began."""
    page = (files(__package__) / "page.html").read_text(encoding="utf-8")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.workers.close)

    def get(path: str, answer: Callable[[Request], Response]) -> Route:
        async def endpoint(request: Request) -> Response:
            return answer(request)

        return Route(path, endpoint, methods=["GET"])

    def post(path: str, chat: bool) -> Route:
        return Route(path, partial(_complete, service, chat), methods=["POST"])

    return Starlette(
        routes=[
            get("/", lambda _: HTMLResponse(page, headers={"content-security-policy": POLICY})),
            get("/v1/models", lambda _: in_json({"object": "list", "data": [service.card()]})),
            get("/v1/models/{name}", partial(_card, service)),
            post("/v1/completions", False),
            post("/v1/chat/completions", True),
            get("/healthz", lambda _: in_json({"status": "ok"})),
            get("/readyz", partial(_ready, service)),
            get("/metrics", partial(_metrics, service)),
        ],
        middleware=[Middleware(Door, service.hosts, service.keys, service.counters.request)],
        exception_handlers={Refusal: _refuse, UserError: _mistake, HTTPException: _unknown},  # type: ignore[dict-item]
        lifespan=lifespan,
    )


async def _complete(service: Service, chat: bool, request: Request) -> Response:
    """One answer, whole or streamed."""
    started = time.perf_counter()
    try:
        body = await asyncio.wait_for(_body(request, service.body), BODY_SECONDS)
    except asyncio.TimeoutError:  # a class of its own in Python 3.10
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    except ClientDisconnect:
        return Response(status_code=LEFT)
    ask = await run_in_threadpool(read_ask, service.model, service.name, service.most, chat, body)
    feed: asyncio.Queue[Event] = asyncio.Queue()
    job = Job(ask, _into(feed))
    service.workers.submit(job)
    events, reply = _events(service, request, job, feed, started), Reply(ask, service.name)
    if ask.stream:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_lines(reply, events), headers=headers, media_type="text/event-stream")
    return await _whole(reply, events)


async def _body(request: Request, limit: int) -> Any:
    """The body's JSON. Another content type is refused: any site's page may send one here without being asked."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the content type has to be application/json")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            message = f"the body is longer than {limit} bytes; shorten the prompt"
            raise Refusal(413, message, headers={"connection": "close"})
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON ({str(error)[:100]})") from None


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


async def _whole(reply: Reply, events: AsyncGenerator[Event, None]) -> Response:
    finished = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                finished.append(event)
            elif isinstance(event, Failure):
                raise Refusal(500, event.message, code="failed")
            elif isinstance(event, End) and event.finish != "cancelled":
                return in_json(reply.whole(finished, event))
    return Response(status_code=LEFT)


async def _lines(reply: Reply, events: AsyncGenerator[Event, None]) -> AsyncIterator[bytes]:
    """The stream of server-sent events. A failure in the middle is one too, and no [DONE] follows it."""
    for chunk in reply.opening():
        yield _line(chunk)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Canvas):
                yield _line(reply.canvas(event))
            elif isinstance(event, Finished):
                for chunk in reply.block(event):
                    yield _line(chunk)
            elif isinstance(event, Failure):
                yield _line(Refusal(500, event.message, code="failed").body)
            elif event.finish != "cancelled":
                for chunk in reply.closing(event):
                    yield _line(chunk)
                yield b"data: [DONE]\n\n"


def _line(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def _log(service: Service, path: str, ask: Ask, last: Event | None, seconds: float) -> None:
    finish, done = (last.finish, last.counts) if isinstance(last, End) else ("unfinished", None)
    tokens, forwards = (done.tokens, done.forwards) if done else (0, 0)
    text = f" {json.dumps(service.model.tokenizer.decode(ask.prompt))}" if service.log_prompts else ""
    line = "%s %s: %d prompt tokens, %d tokens in %d forwards, %.3f s%s"
    LOG.info(line, path, finish, len(ask.prompt), tokens, forwards, seconds, text)


def _card(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    if name != service.name:
        raise unknown_model(name, service.name)
    return in_json(service.card())


def _ready(service: Service, request: Request) -> Response:
    return in_json({"ready": not service.workers.broken}, 503 if service.workers.broken else 200)


def _metrics(service: Service, request: Request) -> Response:
    content, kind = service.counters.page()
    return Response(content, media_type=kind)


async def _refuse(request: Request, error: Refusal) -> Response:
    return refused(error)


async def _mistake(request: Request, error: UserError) -> Response:
    return refused(Refusal(400, " ".join(str(error).split())))


async def _unknown(request: Request, error: HTTPException) -> Response:
    return refused(Refusal(error.status_code, error.detail, headers=error.headers or {}))
