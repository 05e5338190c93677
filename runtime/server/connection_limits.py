"""Limits how much the server reads from a connection at a time, so that no client's bytes delay the others'."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

PART = 1024  # bytes parsed at a time: two milliseconds of work if each byte is a chunk of its own
HEAD = 16 << 10  # bytes of a request's headers; each header takes microseconds
KEEP_ALIVE = 75  # seconds; longer than a proxy's usual minute, so that a proxy never uses a connection that closes


class Protocol(H11Protocol):
    """uvicorn's HTTP protocol, but given at most PART bytes at once; asyncio would give it up to 256 KiB to parse."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a new connection, and limits what is read from it at a time."""
        transport.max_size = PART  # type: ignore[attr-defined]
        super().connection_made(transport)


def make_server(app: Starlette, drain: int) -> uvicorn.Server:
    """Returns a server for this application. drain: seconds that requests in progress get when it has to stop."""
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
