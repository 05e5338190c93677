"""The tools that put a server under load: a request comes again as late as a full server says."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from samples.bench.patience import post_patiently

FULL = [(429, {"retry-after": "1", "retry-after-ms": "10"}), (429, {"retry-after": "0"})]  # of the queue, of the intake


class Replies(BaseHTTPRequestHandler):
    """Replies in turn; the last of them again and again."""

    protocol_version = "HTTP/1.1"
    left: list[tuple[int, dict[str, str]]] = []  # noqa: RUF012 - the class is made by the server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status, headers = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def connection() -> Iterator[http.client.HTTPConnection]:
    with HTTPServer(("127.0.0.1", 0), Replies) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        made = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        yield made
        made.close()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("last", [200, 400])
def test_a_request_comes_again_while_the_server_is_full(connection: http.client.HTTPConnection, last: int) -> None:
    Replies.left = [*FULL, (last, {})]
    assert post_patiently(connection, "/", '{"a": 1}', threading.Event()) == (last, b'{"a": 1}', 2)


def test_nobody_waits_for_a_full_server_after_the_end(connection: http.client.HTTPConnection) -> None:
    Replies.left, over = [FULL[1]], threading.Event()
    over.set()
    assert post_patiently(connection, "/", "{}", over) == (429, b"{}", 1)
