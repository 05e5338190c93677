"""Limits what a server reads from each connection: a little in turn, so that no client's bytes hold up the others'."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

PART = 1024  # bytes parsed at a time: two milliseconds of work if they are chunks of one byte
HEAD = 16 << 10  # bytes of a request's headers; each header takes microseconds
KEEP_ALIVE = 75  # seconds; longer than the usual minute of a proxy, which would otherwise use a closing connection


class Protocol(H11Protocol):
    """uvicorn's, which parses all that a socket gives at once, and asyncio's sockets give up to 256 KiB."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a new connection."""
        transport.max_size = PART  # type: ignore[attr-defined]
        super().connection_made(transport)


def make_server(app: Starlette, drain: int) -> uvicorn.Server:
    """Returns a server of this application. drain: seconds for what has begun once it has to stop."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="asyncio",
        ws="none",
        h11_max_incomplete_event_size=HEAD,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE,
    )
    return uvicorn.Server(config)
