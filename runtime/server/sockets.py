"""Listens on an address, and returns its URL."""

from __future__ import annotations

import ipaddress
import socket

from ..errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; clients that connect before the server runs wait. Raises UserError if it fails."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(place)
            opened.listen(2048)
        except OSError:
            opened.close()
            raise
        return opened
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port} ({error}); give another --host or --port") from None


def format_url(place: socket.socket) -> str:
    """Returns the URL of a listening socket."""
    host, port = place.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(host: str) -> bool:
    """Returns whether only this machine can reach the address `host`."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
