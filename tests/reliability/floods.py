"""Hostile requests of up to 1 MiB, eight at a time, next to a client that polls /healthz.

Run it as python tests/reliability/floods.py
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent.parent
SIZE = (1 << 20) - 1024  # bytes of a body, below the server's limit
AT_ONCE, REQUESTS, PAUSE = 8, 200, 0.005  # seconds between two polls
TEMPLATE = "{% for m in messages %}<|pad|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}<|pad|>assistant\n"
ANSWER = "ab" * 16
CHAT, RAW, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def chat(*messages: dict[str, Any], **fields: Any) -> str:
    return json.dumps({"messages": messages, **fields})


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def raw(prompt: Any = "hi", **fields: Any) -> str:
    return json.dumps({"prompt": prompt, **fields})


def filled(text: str) -> str:
    """A prompt of this text over and over, as much as a body holds, escapes included."""
    return raw(text * ((SIZE - 50) // len(json.dumps(text)[1:-1])))


def listed(item: str, before: str = "[", after: str = "]") -> str:
    """A JSON list of this item over and over, as much as a body holds."""
    return before + ",".join([item] * ((SIZE - len(before + after)) // (len(item) + 1))) + after


MESSAGE = json.dumps(user("a"))
PART = '{"type": "text", "text": "a"}'
NAMES = {f"{i:x}": "" for i in range(SIZE // 14)}
SHAPES: dict[str, tuple[str, Callable[[], str]]] = {
    "many messages": (CHAT, lambda: listed(MESSAGE, '{"messages": [', "]}")),
    "many messages, one with a special token":
        (CHAT, lambda: listed(MESSAGE, f'{{"messages": [{json.dumps(user("<|end|>"))},', "]}")),
    "many messages of special tokens": (CHAT, lambda: listed(json.dumps(user("<|end|>")), '{"messages": [', "]}")),
    "many parts of a message": (CHAT, lambda: listed(PART, '{"messages": [{"role": "user", "content": [', "]}]}")),
    "special tokens in a message": (CHAT, lambda: chat(user("<|end|>" * (SIZE // 7 - 20)))),
    "special tokens in a prompt": (RAW, lambda: filled("<|end|>")),
    "a template in a message": (CHAT, lambda: chat(user("{% for m in messages %}{{ m }}" * (SIZE // 31)))),
    "one token": (RAW, lambda: filled("a")),
    "one long word": (RAW, lambda: filled("thequickbrownfoxjumpsoverthelazydog")),
    "digits": (RAW, lambda: filled("1234567890")),
    "spaces": (RAW, lambda: filled(" ")),
    "line ends": (RAW, lambda: filled("\n")),
    "zero bytes": (RAW, lambda: filled("\0")),
    "combining marks": (RAW, lambda: '{"prompt": "a' + "\u0323\u0301" * (SIZE // 4 - 20) + '"}'),
    "characters of four bytes": (RAW, lambda: '{"prompt": "' + "😀" * (SIZE // 4 - 20) + '"}'),
    "half surrogate pairs": (RAW, lambda: '{"prompt": "' + "\\ud83d" * (SIZE // 6 - 20) + '"}'),
    "lists in lists": (RAW, lambda: "[" * SIZE),
    "lists in lists, closed": (RAW, lambda: listed("[" * 900 + "]" * 900, '{"prompt": [', "]}")),
    "objects in objects": (RAW, lambda: '{"a":' * (SIZE // 5)),
    "empty lists": (RAW, lambda: listed("[]", '{"prompt": [', "]}")),
    "a number of a million digits": (RAW, lambda: '{"max_tokens": ' + "9" * (SIZE - 50) + "}"),
    "numbers of 4,300 digits": (RAW, lambda: listed("9" * 4300, '{"prompt": [', "]}")),
    "numbers beyond all": (RAW, lambda: listed("1e999", '{"prompt": [', "]}")),
    "numbers next to nothing": (RAW, lambda: listed("1e-400", '{"prompt": "hi", "user": [', "]}")),
    "token ids": (RAW, lambda: listed("7", '{"prompt": [', "]}")),
    "biases": (RAW, lambda: raw(logit_bias={str(i): 1 for i in range(SIZE // 14)})),
    "unknown fields": (RAW, lambda: raw(**{f"field {i}": 1 for i in range(SIZE // 20)})),
    "an unknown field with a long name": (RAW, lambda: raw(**{"\x1b" * (SIZE // 6 - 20): 1})),
    "metadata of many names, streamed":
        (RESPONSES, lambda: json.dumps({"input": "hi", "stream": True, "metadata": NAMES})),
    "items of a response": (RESPONSES, lambda: listed(MESSAGE, '{"instructions": "<|end|>", "input": [', "]}")),
    "one field over and over": (RAW, lambda: listed('"prompt": "a"', "{", "}")),
    "a long model name": (RAW, lambda: raw(model="m" * (SIZE - 50))),
    "a long role": (CHAT, lambda: chat({"role": "r" * (SIZE - 90), "content": "a"})),
    "a role of lists": (CHAT, lambda: listed("[]", '{"messages": [{"role": [', '], "content": "a"}]}')),
    "long stop texts": (RAW, lambda: raw(stop=["ab" * (SIZE // 9)] * 4)),
    "stop texts like the answer": (RAW, lambda: raw(stop=[ANSWER + "a" * (SIZE // 5)] * 4, logprobs=1)),
}  # fmt: skip
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
WIRE: dict[str, Callable[[], bytes]] = {
    "a body in chunks of one byte":
        lambda: f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode() + b"1\r\n \r\n" * (SIZE // 6) + b"0\r\n\r\n",
    "many headers": lambda: HEAD.encode() + b"a:b\r\n" * 13_000 + b"content-length: 0\r\n\r\n",
    "a long path": lambda: HEAD.replace("POST /v1", "GET /v1/models/" + "%41" * 5_000).encode() + b"\r\n",
}  # fmt: skip


def wire(name: str) -> bytes:
    """One request as bytes."""
    if name in WIRE:
        return WIRE[name]()
    path, make = SHAPES[name]
    body = make().encode()
    assert len(body) <= 1 << 20, (name, len(body))
    return HEAD.replace(RAW, path).encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body


def post(place: tuple[str, int], content: bytes) -> tuple[int, float]:
    """Sends bytes. Returns the status, 0 if the server hung up, and the seconds until the answer's end."""
    started = time.perf_counter()
    with socket.create_connection(place, timeout=120) as connection:
        answer = b""
        with suppress(OSError):  # refused before all was sent
            connection.sendall(content)
        with suppress(OSError):
            while part := connection.recv(1 << 16):
                answer += part
    return int(answer[9:12] or 0), time.perf_counter() - started


def flood(place: tuple[str, int], names: list[str], at_once: int) -> None:
    """Sends these shapes and prints a JSON line for each."""
    made = {name: wire(name) for name in set(names)}
    with ThreadPoolExecutor(at_once) as pool:
        for name, (status, seconds) in zip(names, pool.map(lambda n: post(place, made[n]), names), strict=True):
            print(json.dumps([name, status, seconds]), flush=True)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """A server in a process of its own, over a model with a chat template."""
    from speaking import make_speaking_bundle

    bundle = make_speaking_bundle(folder, "hi", ANSWER, template=TEMPLATE)
    line = [sys.executable, "-m", "runtime.serve", str(bundle), "--port", "0", "--json"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        url = urlsplit(json.loads(server.stdout.readline())["url"])
        yield str(url.hostname), int(url.port or 0)
    finally:
        server.terminate()
        server.communicate(timeout=60)


def poll(place: tuple[str, int], going: Callable[[], bool]) -> list[float]:
    """The seconds of each GET /healthz, one after another as long as `going`."""
    connection, times = http.client.HTTPConnection(*place, timeout=120), []
    while going():
        started = time.perf_counter()
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status": "ok"}'
        times.append(time.perf_counter() - started)
        time.sleep(PAUSE)
    connection.close()
    return times


def measure(place: tuple[str, int], names: list[str], at_once: int = AT_ONCE) -> dict[str, Any]:
    """The polls' times while a process sends these shapes, and what became of them."""
    line = [sys.executable, __file__, "--flood", json.dumps([*place, at_once]), *names]
    with tempfile.TemporaryFile("w+") as out:
        sender = subprocess.Popen(line, cwd=ROOT, stdout=out)
        times = sorted(poll(place, lambda: sender.poll() is None))
        out.seek(0)
        rows = [json.loads(row) for row in out]
    assert sender.returncode == 0 and len(rows) == len(names)
    middle, high = times[len(times) // 2], times[len(times) * 99 // 100]
    return {
        "polls": len(times), "p50": round(middle, 4), "p99": round(high, 4), "worst": round(times[-1], 4),
        "statuses": dict(Counter(status for _, status, _ in rows)),
        "slowest": sorted(((round(seconds, 2), name) for name, _, seconds in rows), reverse=True)[:3],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help="names of shapes (default: all, 200 requests)")
    parser.add_argument("--each", action="store_true", help="one shape after another, eight requests each")
    parser.add_argument("--flood", help=argparse.SUPPRESS)  # in a process of its own: host, port, how many at once
    args = parser.parse_args()
    if args.flood:
        host, port, at_once = json.loads(args.flood)
        flood((host, port), args.shapes, at_once)
        return 0
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]
    known, worst = args.shapes or [*SHAPES, *WIRE], 0.0
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as place:
        for names in [[name] * AT_ONCE for name in known] if args.each else [(known * REQUESTS)[:REQUESTS]]:
            report = measure(place, names)
            worst = max(worst, report["worst"])
            print(names[0] if args.each else f"{len(names)} requests, {len(known)} shapes", json.dumps(report))
    return 0 if worst <= 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
