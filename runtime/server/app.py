"""Makes the server's ASGI application: OpenAI's API, the page, health and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ..errors import UserError, describe_error
from .auth import AccessCheck
from .handler import complete
from .http_errors import Refusal, make_json_response, make_refusal_response
from .request import CHAT, COMPLETIONS, RESPONSES, refuse_unknown_model
from .service import Service

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def make_app(service: Service) -> Starlette:
    """Returns the application. Its shutdown waits until the workers have answered all accepted requests."""
    page = (files(__package__) / "page.html").read_text(encoding="utf-8")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.workers.close)

    return Starlette(
        routes=[
            _get("/", lambda _: HTMLResponse(page, headers={"content-security-policy": POLICY})),
            _get("/v1/models", lambda _: make_json_response({"object": "list", "data": [service.make_card()]})),
            _get("/v1/models/{name:path}", partial(_reply_card, service)),
            Route("/v1/completions", partial(complete, service, COMPLETIONS), methods=["POST"]),
            Route("/v1/chat/completions", partial(complete, service, CHAT), methods=["POST"]),
            Route("/v1/responses", partial(complete, service, RESPONSES), methods=["POST"]),
            _get("/healthz", lambda _: make_json_response({"status": "ok"})),
            _get("/readyz", partial(_reply_ready, service)),
            _get("/metrics", partial(_reply_metrics, service)),
        ],
        middleware=[Middleware(AccessCheck, service.hosts, service.keys, service.counters.count_request)],
        exception_handlers={Refusal: _refuse, UserError: _reply_mistake, HTTPException: _answer_unknown},  # type: ignore[dict-item]
        lifespan=lifespan,
    )


def _get(path: str, answer: Callable[[Request], Response]) -> Route:
    async def endpoint(request: Request) -> Response:
        return answer(request)

    return Route(path, endpoint, methods=["GET"])


def _reply_card(service: Service, request: Request) -> Response:
    name = request.path_params["name"].removesuffix("/")  # a final slash, which other paths redirect
    if name != service.name:
        raise refuse_unknown_model(name, service.name)
    return make_json_response(service.make_card())


def _reply_ready(service: Service, request: Request) -> Response:
    broken = service.workers.broken
    return make_json_response({"ready": not broken, "proved": service.model.proved}, 503 if broken else 200)


def _reply_metrics(service: Service, request: Request) -> Response:
    content, kind = service.counters.format_page()
    return Response(content, media_type=kind)


async def _refuse(request: Request, error: Refusal) -> Response:
    return make_refusal_response(error)


async def _reply_mistake(request: Request, error: UserError) -> Response:
    return make_refusal_response(Refusal(400, describe_error(error)))


async def _answer_unknown(request: Request, error: HTTPException) -> Response:
    return make_refusal_response(Refusal(error.status_code, error.detail, headers=error.headers or {}))
