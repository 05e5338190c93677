"""Sends a request again as long as a server is full (HTTP 429), after the wait that it names."""

from __future__ import annotations

import http.client
import threading
import time


def post_patiently(
    connection: http.client.HTTPConnection, path: str, body: str, over: threading.Event
) -> tuple[int, bytes, int]:
    """Posts JSON. Returns status and content of the reply, and how often the server was full before.

    The status is 429 only if `over` was set in the meantime.
    """
    refused = 0
    while True:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 429:
            return response.status, content, refused
        refused += 1
        later = response.headers["retry-after-ms"]  # of a full queue alone
        time.sleep(float(response.headers["retry-after"]) if later is None else float(later) / 1000)
        if over.is_set():
            return 429, content, refused
