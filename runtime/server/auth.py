"""Admits requests by the `Host` header and the API key, and counts them by path and status."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .http_errors import Refusal, make_refusal_response

PATHS = frozenset(
    ("/", "/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/healthz", "/readyz", "/metrics")
)
LEFT = 499  # status counted if the client left before the reply; no client ever reads it


def parse_host_name(host: str) -> str:
    """Returns the name in a `Host` header or in a URL's part after //, in lower case, without port and final dot."""
    if host.count(":") > 1 and not host.startswith("["):
        return f"[{host.lower()}]"  # an IPv6 address by itself
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")


class AccessCheck:
    """Admits and counts requests, as ASGI middleware.

    hosts: names that `Host` may hold, None for any. Without the check, another site's page could point its own name at
    a loopback address and read answers. keys: if there are any, /v1/ requires one of them.
    """

    def __init__(
        self, app: ASGIApp, hosts: Sequence[str] | None, keys: Sequence[str], count: Callable[[str, int], None]
    ) -> None:
        self._app, self._count = app, count
        self._hosts = None if hosts is None else frozenset(map(parse_host_name, hosts))
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = LEFT

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._find_refusal(Headers(scope=scope), scope["path"])
            await (self._app if refusal is None else make_refusal_response(refusal))(scope, receive, note_status)
        except Exception:
            status = 500  # the server sends this reply outside of the middleware
            raise
        finally:
            self._count(scope["path"] if scope["path"] in PATHS else "other", status)

    def _find_refusal(self, headers: Headers, path: str) -> Refusal | None:
        if self._hosts is not None and parse_host_name(headers.get("host", "")) not in self._hosts:
            return Refusal(
                403, "this server does not go by that name; call it by localhost, or start it with --allow-host"
            )
        if not self._keys or not path.startswith("/v1/"):
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode("utf-8", "replace")
        # Every key is compared, so that the time reveals nothing about them.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() == "bearer" and any(matches):
            return None
        challenge = {"www-authenticate": "Bearer"}
        return Refusal(
            401, "no API key that is known here; send Authorization: Bearer KEY", None, "invalid_api_key", challenge
        )
