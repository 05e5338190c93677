"""20,000 requests through one running batch: each reply its solo one, and nothing is left of any of them."""

from __future__ import annotations

import gc
import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from serving import Served, served, until
from test_server_batch import SLOTS, body, leave, model_of, parsed

COUNT, CLIENTS, KINDS = 20_000, 16, 200
OBJECTS, BYTES = 500, 4 << 20  # more, from one half of the requests to the other, would be a leak

pytestmark = pytest.mark.long


def test_twenty_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    seed = tiny.choose_seed()
    rng = random.Random(seed)
    sent = [body(rng) for _ in range(KINDS)]
    with served(model_of(tmp_path, 1), room=KINDS) as server:
        solo = list(ask(server, sent, list(range(KINDS))))
    with served(model_of(tmp_path, SLOTS), slots=SLOTS, room=CLIENTS) as server:
        first, second = (half(server, sent, solo, seed + number) for number in range(2))
    assert second[0] - first[0] < OBJECTS and second[1] - first[1] < BYTES, f"{first}, {second}, BLOCKSTEP_SEED={seed}"


def half(server: Served, sent: list[tuple[str, Any]], solo: list[list[Any]], seed: int) -> tuple[int, int]:
    """Half of the requests, of many clients at once, while others leave: how many objects and bytes there are then."""

    def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        order = [rng.randrange(KINDS) for _ in range(COUNT // 2 // CLIENTS)]
        for kind, reply in zip(order, ask(server, sent, order), strict=True):
            assert reply == solo[kind], f"{sent[kind]}, BLOCKSTEP_SEED={seed}"

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        leaving = pool.submit(leave, server, seed)
        list(pool.map(client, range(CLIENTS)))
        leaving.result()
    workers, backend = server.service.workers, server.service.model.backend
    until(lambda: workers.running == workers.waiting == 0)
    backend.computed.clear()  # type: ignore[attr-defined]
    gc.collect()
    return len(gc.get_objects()), psutil.Process().memory_info().rss


def ask(server: Served, sent: list[tuple[str, Any]], order: list[int]) -> Any:
    """The replies to these requests, one after the other on one connection."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    for kind in order:
        path, made = sent[kind]
        connection.request("POST", path, json.dumps(made), {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == 200, text
        yield parsed(text)
    connection.close()
