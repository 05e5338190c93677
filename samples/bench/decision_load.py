"""Loads a server with decisions of many clients: python -m samples.bench.decision_load decide.bundle > load.json

Each client sends one prompt and schema (of a chat's `response_format`) after the other, waits as long
as a 429 requires, and compares each reply with the solo one: its text and all distributions. What follows `--` goes to
the server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runtime import load

from .patience import post_patiently

ROOT = Path(__file__).resolve().parents[2]
UNITS = ["eggs", "boxes", "buttons", "apples"]
SCHEMAS: dict[str, dict[str, Any]] = {
    "one": {"type": "object", "properties": {"unit": {"enum": UNITS}}},
    "several": {
        "type": "object",
        "properties": {
            "unit": {"anyOf": [{"enum": UNITS}, {"type": "null"}]},
            "count": {"type": "integer", "minimum": 0, "maximum": 20},
            "known": {"type": "boolean"},
        },
    },
}
PROMPTS = [f"Ana has {count} {unit}. How many has she?" for count in (3, 20) for unit in UNITS]


@dataclass(frozen=True)
class ExpectedReply:
    """Holds a body of /v1/chat/completions and the solo reply: its text, and the decision with its distributions."""

    body: str
    text: str
    decision: dict[str, Any]


def collect_expected_replies(bundle: str, engine: str | None) -> list[ExpectedReply]:
    """Returns the clients' requests, each with the reply of a model that nobody else uses."""
    model, made = load(bundle, engine=engine), list[ExpectedReply]()
    for prompt in PROMPTS:
        for name, schema in SCHEMAS.items():
            for probability in ("parallel", "ordered"):
                solo = model.decide(prompt, schema, probability=probability)
                body = {"messages": [{"role": "user", "content": prompt}], "probability": probability}
                wanted = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
                said = json.loads(json.dumps(solo.as_json()))
                made.append(ExpectedReply(json.dumps({**body, "response_format": wanted}), solo.text, said))
    return made


@dataclass
class Client:
    """Holds one connection and its outcomes. differ: replies that differ from the solo ones, whole."""

    place: str
    wanted: Sequence[ExpectedReply]
    first: int
    over: threading.Event
    times: list[float] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    refused: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        connection, index = http.client.HTTPConnection(self.place, timeout=120), self.first
        while not self.over.is_set():
            index = (index + 1) % len(self.wanted)
            try:
                self._send_request(connection, self.wanted[index])
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self.unanswered[type(error).__name__] += 1
                if isinstance(error, ConnectionRefusedError):
                    return  # the server has stopped listening
        connection.close()

    def _send_request(self, connection: http.client.HTTPConnection, wanted: ExpectedReply) -> None:
        started = time.perf_counter()
        status, content, refused = post_patiently(connection, "/v1/chat/completions", wanted.body, self.over)
        self.refused += refused
        if status != 200:
            if status != 429:  # which comes at the end alone
                self.unanswered[f"HTTP {status}"] += 1
            return
        self.times.append(time.perf_counter() - started)
        reply = json.loads(content)
        text = reply["choices"][0]["message"]["content"]
        json.loads(text)
        if text != wanted.text or not close(reply["blockstep"]["decision"], wanted.decision):
            self.differ.append(content.decode())


def close(one: Any, other: Any) -> bool:
    """Returns whether two JSON values are equal, floats within 1e-6: the engine's threads may sum in another order."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6
    return bool(one == other)


def run_clients(url: str, expected_replies: Sequence[ExpectedReply], count: int, seconds: float) -> list[Client]:
    """Runs `count` clients for `seconds`; returns them."""
    over = threading.Event()
    clients = [Client(urlsplit(url).netloc, expected_replies, i * 5, over) for i in range(count)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    over.set()
    for thread in threads:
        thread.join(300)
    return clients


def summarize(clients: Sequence[Client], seconds: float) -> dict[str, Any]:
    """Returns what the clients saw; times in seconds."""
    times = sorted(took for client in clients for took in client.times) or [0.0]
    differ = [text for client in clients for text in client.differ]
    return {
        "clients": len(clients), "seconds": round(seconds, 2), "replies": sum(len(client.times) for client in clients),
        "clients_without_a_reply": sum(not client.times for client in clients), "differ_from_solo": len(differ),
        "first_that_differs": differ[:1], "refused_429": sum(client.refused for client in clients),
        "unanswered": dict(sum((client.unanswered for client in clients), Counter[str]())),
        "latency": {f"p{p}": round(times[len(times) * p // 100], 4) for p in (50, 95, 99)},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="bundle to serve, a folder")
    parser.add_argument("--clients", type=int, default=64, help="clients at once (default: 64)")
    parser.add_argument("--seconds", type=float, default=60, help="duration in seconds (default: 60)")
    parser.add_argument(
        "--engine", help="name of an engine in the bundle, for the server and the solo replies (default: the first)"
    )
    given = [*sys.argv[1:], "--"]
    cut = given.index("--")
    args = parser.parse_args(given[:cut])
    expected_replies = collect_expected_replies(args.bundle, args.engine)
    line = [sys.executable, "-m", "runtime.serve", args.bundle, "--port", "0", "--json", *given[cut + 1 : -1]]
    line += [] if args.engine is None else ["--engine", args.engine]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        url, started = json.loads(server.stdout.readline())["url"], time.perf_counter()  # type: ignore[union-attr]
        report = summarize(
            run_clients(url, expected_replies, args.clients, args.seconds), time.perf_counter() - started
        )
        server.terminate()
        report["exit_code"] = server.wait(120)
    print(json.dumps(report))
    return 0 if report["replies"] and not report["differ_from_solo"] + len(report["unanswered"]) else 1


if __name__ == "__main__":
    sys.exit(main())
