"""The Ray Serve sample: local replicas behind the server's own API, one of them killed under load."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI
from serving import outside

from runtime import Answer, load
from samples.ray_serve.__main__ import main
from train import tasks

ROOT = Path(__file__).parent.parent
BUNDLE = str(ROOT / "samples" / "student.bundle")
CLIENTS, TOKENS = 10, 32


@contextmanager
def fleet(folder: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """The command's URL and process, ended by force where the test has not ended it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "samples.ray_serve", BUNDLE, "--port", str(port), "--json", *options]
    session = tempfile.mkdtemp(prefix="ray-")  # not in `folder`: Ray's sockets lie there, whose paths have to be short
    own = {**os.environ, "HOME": str(folder), "RAY_TMPDIR": session}
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(line, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=log, text=True)
    process = psutil.Process(started.pid)
    try:
        assert started.stdout is not None
        told = started.stdout.readline()
        assert told, (folder / "log").read_text()
        yield json.loads(told)["url"], process
    finally:
        left = process.children(recursive=True) if process.is_running() else []
        for each in (process, *left):
            if each.is_running():
                each.kill()
        started.wait()
        started.stdout.close()  # type: ignore[union-attr]
        shutil.rmtree(session, ignore_errors=True)


def replicas(process: psutil.Process) -> list[psutil.Process]:
    """The replicas' processes."""
    found = []
    for child in process.children(recursive=True):
        try:
            found += [child] if "ServeReplica" in " ".join(child.cmdline()) else []
        except psutil.Error:  # gone meanwhile
            continue
    return found


def since(url: str) -> int:
    """When the replica was started that answers this."""
    created: int = httpx.get(f"{url}/v1/models/student", timeout=400).json()["created"]
    return created


def until(true: Callable[[], bool], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


class Client(threading.Thread):
    """OpenAI's client, unmodified, that asks one prompt after the other until it is told to stop.

    answers: the prompt's index and the text; retries: how often it tried again.
    """

    def __init__(self, url: str, prompts: Sequence[str], first: int) -> None:
        super().__init__(daemon=True)
        self._prompts, self._next, self.over = prompts, first, threading.Event()
        self.asked, self.retries, self.answers = 0, 0, list[tuple[int, str]]()
        self._openai = OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=20, timeout=400,
            http_client=httpx.Client(event_hooks={"request": [self._sent]}),
        )  # fmt: skip

    def _sent(self, request: httpx.Request) -> None:
        self.retries += int(request.headers["x-stainless-retry-count"]) > 0

    def run(self) -> None:
        with self._openai:
            while not self.over.is_set():
                index, self._next, self.asked = self._next % len(self._prompts), self._next + 1, self.asked + 1
                prompt = self._prompts[index]
                reply = self._openai.completions.create(model="student", prompt=prompt, max_tokens=TOKENS)
                self.answers.append((index, reply.choices[0].text))


@contextmanager
def load_on(url: str, prompts: Sequence[str], solo: Sequence[Answer]) -> Iterator[list[Client]]:
    """Clients at work; at the end, no request is lost and each answer is the solo one."""
    clients = [Client(url, prompts, first) for first in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.over.set()
    for client in clients:
        client.join(400)
        assert len(client.answers) == client.asked > 0
        assert [text for _, text in client.answers] == [solo[index].text for index, _ in client.answers]


@pytest.mark.smoke
@pytest.mark.long
def test_a_fleet_grows_under_load_loses_a_replica_and_no_request_and_drains(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'blockstep[ray]'")
    model = load(BUNDLE, threads=1)
    prompts = [problem.prompt for problem in tasks.choose_tasks("math")[0].problems("valid", 8, 7)]
    solo = [model.generate(prompt, raw=True, max_new_tokens=TOKENS) for prompt in prompts]
    with fleet(tmp_path, "--replicas", "1:2", "--cpus", "1", "--", "--workers", "1") as (url, process):
        assert len(replicas(process)) == 1
        assert httpx.get(f"{url}/readyz").json() == {"ready": True, "proved": True}
        body = {"prompt": prompts[0], "stream": True, "max_tokens": TOKENS}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as stream:
            events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        pieces = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
        assert events[-1] == "[DONE]" and "".join(pieces) == solo[0].text and len(pieces) > 1

        with load_on(url, prompts, solo) as clients:
            until(lambda: len(replicas(process)) == 2)
            before, started = replicas(process), set[int]()
            until(lambda: bool(started.add(since(url)) or len(started) == 2))
            before[0].kill()
            until(lambda: sum(client.retries for client in clients) > 0)
            until(lambda: len(replicas(process)) == 2 and before[0] not in replicas(process))

        children = process.children(recursive=True)
        listening, connected = outside([process, *children])
        assert connected == [] and all("ServeReplica" in name for name in listening)

        with httpx.stream(
            "POST", f"{url}/v1/completions", json={**body, "max_tokens": 200, "threshold": 1.0}, timeout=60
        ) as stream:
            lines = (line.removeprefix("data: ") for line in stream.iter_lines() if line)
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-1] == "[DONE]"
        assert process.wait(120) == 0
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--replicas", "3:1"], "3 is more than 1"), (["--replicas", "0"], "from 1 to 999999999"),
        (["--", "--queue", "0"], "from 1 to 999999999"), (["--", "--engine", "none"], "has no engine"),
        (["--", "--device", "cuda"], "CUDA has no kernels"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line_before_anything_is_started(
    given: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([BUNDLE, *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in (
        "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S",
    ):  # fmt: skip
        monkeypatch.setenv(name, "")  # the command sets them
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main([BUNDLE, "--port", str(port)]) == 2
    assert capsys.readouterr().err == "error: ray is not installed; pip install 'blockstep[serve,ray]'\n"
