"""Runs many clients on one server, then SIGTERM: python -m samples.bench.load samples/student.bundle > load.json

What follows `--` goes to the server. Every client sends one request after another, waits as long as a 429 requires, and
compares each answer with the solo answer to the same prompt. Run it on an otherwise idle machine: the clients need its
cores too.
`--clients 4 16` measures 1, 4 and 16 clients in turn. An engine of several sequences is measured once with
`-- --slots 1`, each request by itself on threads, and once with `-- --slots 16`, all in one batch.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from runtime import Answer, load
from train import tasks
from train.tasks import Problem

from .patience import post_patiently

ROOT = Path(__file__).resolve().parents[2]
ENDED = re.compile(r"/v1/completions (\w+): ")  # the server's log, a line for each request that it began


@dataclass(frozen=True)
class Load:
    """Holds the server's address, prompts, and the solo answers to compare with; `over` ends the load."""

    url: str
    prompts: Sequence[str]
    solo: Sequence[Answer]
    over: threading.Event = field(default_factory=threading.Event)


@dataclass
class Client:
    """Holds a connection that sends one prompt after the other, and its outcomes. answers: (prompt, text, seconds)."""

    load: Load
    first: int
    tokens: int = 0
    forwards: int = 0
    refused: int = 0
    answers: list[tuple[int, str, float]] = field(default_factory=list)
    unanswered: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        place = urlsplit(self.load.url).netloc
        connection = http.client.HTTPConnection(place, timeout=60)
        index = self.first
        while not self.load.over.is_set():
            index = (index + 1) % len(self.load.prompts)
            try:
                self._send_request(connection, index)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self.unanswered[type(error).__name__] += 1
                if isinstance(error, ConnectionRefusedError):
                    return  # the server has stopped listening
        connection.close()

    def _send_request(self, connection: http.client.HTTPConnection, index: int) -> None:
        body = json.dumps({"prompt": self.load.prompts[index]})
        started = time.perf_counter()
        status, content, refused = post_patiently(connection, "/v1/completions", body, self.load.over)
        self.refused += refused
        if status != 200:
            if status != 429:  # which comes at the end alone
                self.unanswered[f"HTTP {status}"] += 1
            return
        answer = json.loads(content)
        self.answers.append((index, answer["choices"][0]["text"], time.perf_counter() - started))
        self.tokens += answer["usage"]["completion_tokens"]
        self.forwards += answer["blockstep"]["forwards"]


def run_clients(
    load: Load, count: int, seconds: float, server: psutil.Process, end: bool
) -> tuple[list[Client], list[int]]:
    """Runs `count` clients for `seconds`; returns them, and the server's memory in bytes, read every half second.

    end: whether to send SIGTERM to the server while they send requests.
    """
    clients = [Client(load, i * 7) for i in range(count)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    memory, stop = [], time.monotonic() + seconds
    while time.monotonic() < stop:
        memory.append(server.memory_info().rss)
        time.sleep(0.5)
    if end:
        server.send_signal(signal.SIGTERM)  # the clients find out by themselves
    else:
        load.over.set()
    for thread in threads:
        thread.join(120)
    return clients, memory


def summarize(clients: Sequence[Client], load: Load, seconds: float) -> dict[str, Any]:
    """Returns the figures of one round; times in seconds."""
    answers = [answer for client in clients for answer in client.answers]
    times = sorted(took for _, _, took in answers) or [0.0]
    return {
        "clients": len(clients), "seconds": round(seconds, 2), "answers": len(answers),
        "differ_from_solo": sum(text != load.solo[index].text for index, text, _ in answers),
        "tokens_per_second": round(sum(client.tokens for client in clients) / seconds, 1),
        "tokens_per_forward": round(sum(c.tokens for c in clients) / max(1, sum(c.forwards for c in clients)), 2),
        "refused_429": sum(client.refused for client in clients),
        "latency": {f"p{p}": round(times[len(times) * p // 100], 4) for p in (50, 95, 99)},
        "unanswered": dict(sum((client.unanswered for client in clients), Counter[str]())),
    }  # fmt: skip


def score_answers(task: tasks.Task, problems: Sequence[Problem], clients: Sequence[Client]) -> float:
    """Returns the share of answers that solve their problems."""
    given = [(index, text) for client in clients for index, text, _ in client.answers]
    texts = sorted(set(given))
    graded = task.grade_many([problems[index] for index, _ in texts], [text for _, text in texts])
    good = {pair for pair, passed in zip(texts, graded, strict=True) if passed}
    return round(sum(pair in good for pair in given) / max(1, len(given)), 4)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all rounds over one server; returns them, its memory in the last one, and how it ended."""
    task = tasks.choose_tasks(args.task)[0]
    problems = list(task.problems("valid", args.prompts, 7))
    model = load(args.bundle, engine=args.engine)
    solo = [model.generate(problem.prompt, raw=True) for problem in problems]
    inside = sorted(model.generate(problem.prompt, raw=True).result.seconds for problem in problems)
    prompts, reports, everyone = [problem.prompt for problem in problems], [], []
    line = [sys.executable, "-m", "runtime.serve", args.bundle, "--port", "0", "--json", *args.server]
    line += [] if args.engine is None else ["--engine", args.engine]
    rounds = [(1, args.alone), *((count, args.seconds) for count in args.clients)]
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as server:
            url, process = json.loads(server.stdout.readline())["url"], psutil.Process(server.pid)  # type: ignore[union-attr]
            for number, (count, seconds) in enumerate(rounds, 1):
                work, started = Load(url, prompts, solo), time.perf_counter()
                clients, memory = run_clients(work, count, seconds, process, end=number == len(rounds))
                reports.append(summarize(clients, work, time.perf_counter() - started))
                reports[-1]["right"] = score_answers(task, problems, clients)
                everyone += clients
            code = server.wait(120)
        log.seek(0)
        ended = Counter(ENDED.findall(log.read()))
    for each in reports:
        each["throughput_ratio"] = round(each["tokens_per_second"] / max(1e-9, reports[0]["tokens_per_second"]), 3)
    warm = [used >> 20 for used in memory[len(memory) // 10 :]]
    return {
        "rounds": reports, "in_process_p50": round(inside[len(inside) // 2], 4),
        "memory_mb": {"after_a_tenth": warm[0], "last": warm[-1], "most": max(warm)},
        "ended_by_the_server": dict(ended), "answered": sum(len(client.answers) for client in everyone),
        "exit_code": code, "engine": args.engine, "server": args.server,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="bundle to serve, a folder")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[64], help="clients at once, one round per number (default: 64)"
    )
    parser.add_argument("--seconds", type=float, default=120, help="duration of each round, in seconds (default: 120)")
    parser.add_argument(
        "--alone",
        type=float,
        default=20,
        help="duration of a round with one client before them, in seconds (default: 20)",
    )
    parser.add_argument("--prompts", type=int, default=100, help="number of different prompts (default: 100)")
    parser.add_argument("--task", default="math", help="sample task of the prompts: math or code (default: math)")
    parser.add_argument(
        "--engine", help="name of an engine in the bundle, for the server and the solo answers (default: the first)"
    )
    given = [*sys.argv[1:], "--"]
    cut = given.index("--")
    args = parser.parse_args(given[:cut])
    args.server = given[cut + 1 : -1]
    report = measure(args)
    print(json.dumps(report))
    begun = sum(report["ended_by_the_server"].values())
    whole = report["ended_by_the_server"].get("eos", 0) + report["ended_by_the_server"].get("length", 0)
    same = not any(each["differ_from_solo"] for each in report["rounds"])
    adaptive = "--adaptive-threshold" in args.server  # answers differ then, and the report has to show it
    return 0 if begun == whole == report["answered"] and (same or adaptive) and report["exit_code"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
