"""Triton itself on a CPU, from NVIDIA's wheel: it loads what export.triton writes and answers as the runtime does.

The Makefile installs it in .triton; samples/triton_server/serve_on_cpu.sh, which docs/serve.md shows, starts it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import PROMPTS, outside

from export.triton import main
from runtime import Model, load
from train import tasks

pytestmark = [pytest.mark.smoke, pytest.mark.long]
ROOT = Path(__file__).parent.parent
BUNDLE, ENVIRONMENT = ROOT / "samples" / "student.bundle", ROOT / ".triton"
START = ROOT / "samples" / "triton_server" / "serve_on_cpu.sh"
LONG: dict[str, Any] = {"prompt": [400] * 16, "threshold": 1.0}  # 16 blocks, a forward pass per token: time to leave in
SENT = {"input_ids": LONG["prompt"], "threshold": 1.0, "stream": True}
CLIENTS, EACH = 8, 3
Pieces = list[list[str]]  # of each response: text and finish reason


@dataclass(frozen=True)
class Triton:
    """A running Triton."""

    url: str
    grpc: str
    process: psutil.Process
    log: Path

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/{path}", json=fields, timeout=120)

    def generate(self, **fields: Any) -> list[str]:
        """Text and finish reason of an answer in one response."""
        reply = self.post("generate", **fields)
        assert reply.status_code == 200, reply.text
        return [reply.json()["text_output"], reply.json()["finish_reason"]]

    def stream(self, **fields: Any) -> Pieces:
        reply = self.post("generate_stream", **{"stream": True, **fields})
        assert reply.status_code == 200, reply.text
        return pieces(reply.text.splitlines())

    def over_grpc(self, *requests: dict[str, Any]) -> list[Any]:
        """What Triton's own client gets."""
        line = [ENVIRONMENT / "bin" / "python", ROOT / "tests" / "clients" / "triton_grpc.py"]
        done = subprocess.run(
            [*line, self.grpc, json.dumps(requests)], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found: list[Any] = json.loads(done.stdout)
        return found

    def responses(self) -> int:
        """How many responses the model has sent, whether or not a client was there for them."""
        return self.log.read_text().count("add response output: output: text_output")


def pieces(lines: list[str]) -> Pieces:
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    return [[event["text_output"], event["finish_reason"]] for event in events]


def needs_triton() -> None:
    """Skips if the wheel is not installed, with the reason that it cannot be if that is so."""
    if (ENVIRONMENT / ".installed").exists():
        return
    libc, version = platform.libc_ver(), tuple(map(int, platform.python_version_tuple()[:2]))
    if (
        platform.machine() != "x86_64" or libc[0] != "glibc" or tuple(map(int, libc[1].split("."))) < (2, 35)
        or version not in ((3, 11), (3, 12))
    ):  # fmt: skip
        pytest.skip("there is no wheel of Triton for this machine; it needs x86-64, glibc 2.35, Python 3.11 or 3.12")
    pytest.skip(".triton is not there; make test-all installs it")


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    needs_triton()
    folder = tmp_path_factory.mktemp("triton")
    assert main([str(BUNDLE), "--out", str(folder / "models"), "--threads", "1", "--workers", "2"]) == 0
    http, grpc = free_ports(2)
    line = [str(START), str(ENVIRONMENT), str(folder / "models"), f"--http-port={http}", f"--grpc-port={grpc}"]
    with (folder / "log").open("w") as log:
        line += ["--log-verbose=1", "--exit-timeout-secs=120"]
        started = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
    process = psutil.Process(started.pid)
    try:
        end = time.monotonic() + 300
        while not is_ready(f"http://127.0.0.1:{http}/v2/health/ready"):
            assert started.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield Triton(f"http://127.0.0.1:{http}/v2/models/student", f"127.0.0.1:{grpc}", process, folder / "log")
    finally:
        with suppress(ProcessLookupError):  # the stub too, which outlives a server that ends before it
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


@pytest.fixture(scope="module")
def model() -> Model:
    return load(BUNDLE, threads=1)


def solo(model: Model, prompt: str | list[int], **options: Any) -> Pieces:
    """What the runtime streams."""
    blocks = list(model.stream(prompt, **options))
    return [[block.text, block.result.finish if block.result else ""] for block in blocks]


def whole(blocks: Pieces) -> list[str]:
    return ["".join(text for text, _ in blocks), blocks[-1][1]]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_and_their_blocks_are_the_runtime_s(server: Triton, model: Model, prompt: str) -> None:
    expected = solo(model, prompt)
    assert server.generate(text_input=prompt) == whole(expected) and whole(expected)[1] == "eos"
    assert server.stream(text_input=prompt) == expected and len(expected) > 1
    assert server.generate(input_ids=model.tokenizer.encode(prompt).tolist()) == whole(expected)


def test_a_threshold_and_a_limit_reach_the_runtime(server: Triton, model: Model) -> None:
    loose = solo(model, PROMPTS[0], threshold=0.5)
    assert server.stream(text_input=PROMPTS[0], threshold=0.5) == loose != solo(model, PROMPTS[0])
    cut = solo(model, PROMPTS[0], max_new_tokens=20)
    assert server.stream(text_input=PROMPTS[0], max_tokens=20) == cut and cut[-1][1] == "length"
    assert server.generate(text_input=PROMPTS[0], max_tokens=-1) == whole(solo(model, PROMPTS[0]))


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "expected either text_input or input_ids; send one of the two"),
    ({"text_input": "a", "input_ids": [5]}, "expected either text_input or input_ids; send one of the two"),
    ({"text_input": ""}, "the prompt is empty; give at least one character"),
    ({"input_ids": [10**6]}, "token id 1000000 is not in the vocabulary; expected 0 to 1535"),
    ({"text_input": "a", "threshold": 1.5}, "threshold 1.5 is outside [0, 1] of confidence; give one inside it"),
    ({"text_input": "a", "max_tokens": 0}, "max_tokens is 0; expected at least 1"),
    ({"text_input": "a", "max_tokens": 1000}, "leaves room for "),
    ({"text_input": "a", "temperature": 0.7}, "temperature is not supported here; leave it out"),
    ({"text_input": "a", "stop": "b"}, "stop is not supported here; leave it out"),
    ({"text_input": "a", "max_new_tokens": 8}, "max_new_tokens is not supported here; leave it out"),
]


@pytest.mark.parametrize(("fields", "told"), BAD)
def test_a_bad_request_is_a_400_with_the_reason(server: Triton, fields: dict[str, Any], told: str) -> None:
    reply = server.post("generate", **fields)
    assert reply.status_code == 400 and told in reply.json()["error"]
    streamed = server.post("generate_stream", stream=True, **fields)
    assert streamed.status_code == 400
    assert json.loads(streamed.text.removeprefix("data: ")) == reply.json()


def test_triton_s_own_client_gets_the_same_over_grpc(server: Triton, model: Model) -> None:
    expected, ids = solo(model, PROMPTS[0]), model.tokenizer.encode(PROMPTS[0]).tolist()
    sent = [
        {"text_input": PROMPTS[0], "stream": True}, {"input_ids": ids, "max_tokens": 20}, {},
        {"text_input": "a", "threshold": 1.5}, {"text_input": ["a", "b"]},
        {"text_input": "a", "given": {"temperature": "0.7"}},
    ]  # fmt: skip
    streamed, cut, none, high, two, sampled = server.over_grpc(*sent)
    assert streamed == [[*block, block is expected[-1]] for block in expected]
    assert cut == [[*whole(solo(model, ids, max_new_tokens=20)), True]]
    assert none == ["expected either text_input or input_ids; send one of the two"]
    assert high == ["threshold 1.5 is outside [0, 1] of confidence; give one inside it"]
    assert len(two) == 1 and "unexpected shape for input 'text_input'" in two[0]
    assert len(sampled) == 1 and "temperature is not supported here" in sampled[0]


@pytest.mark.parametrize("how", ["http", "grpc"])
def test_a_client_that_leaves_ends_its_answer(server: Triton, model: Model, how: str) -> None:
    expected, before = solo(model, **LONG), server.responses()
    if how == "http":
        with httpx.stream("POST", f"{server.url}/generate_stream", json=SENT, timeout=60) as stream:
            first = [next(line for line in stream.iter_lines() if line)]
        assert pieces(first) == expected[:1]
    else:
        [[first, error]] = server.over_grpc({**SENT, "leave": True})
        assert first == [*expected[0], False] and "ancel" in error
    # The same answer again takes as long as what is left of the other one would, on the other worker.
    assert server.stream(**SENT) == expected and len(expected) == 16
    assert 1 <= server.responses() - before - len(expected) < len(expected) // 2


def test_eight_clients_at_once_get_the_solo_answers(server: Triton, model: Model) -> None:
    problems = list(tasks.choose_tasks("math")[0].problems("valid", CLIENTS * EACH, 7))
    expected = [solo(model, problem.prompt, max_new_tokens=64) for problem in problems]

    def client(first: int) -> list[Any]:
        found = list[Any]()
        for index in range(first, len(problems), CLIENTS):
            ask = server.stream if index % 2 else server.generate
            found.append(ask(text_input=problems[index].prompt, max_tokens=64))
        return found

    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = list(threads.map(client, range(CLIENTS)))
    for index, blocks in enumerate(expected):
        assert answers[index % CLIENTS][index // CLIENTS] == (blocks if index % 2 else whole(blocks))


def test_sigterm_finishes_the_answer_in_work_and_nothing_was_open_to_others(server: Triton, model: Model) -> None:
    children = server.process.children(recursive=True)
    assert any("triton_python_backend_stub" in " ".join(child.cmdline()) for child in children)
    assert outside([server.process, *children]) == ([], [])
    with httpx.stream("POST", f"{server.url}/generate_stream", json=SENT, timeout=120) as stream:
        lines = stream.iter_lines()
        first = next(lines)
        server.process.send_signal(signal.SIGTERM)
        assert pieces([first, *lines]) == solo(model, **LONG)
    assert server.process.wait(120) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    def refused(*given: str) -> str:
        done = subprocess.run([START, *given], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        return done.stderr

    version = ".".join(platform.python_version_tuple()[:2])
    wheel = tmp_path / "own" / "lib" / f"python{version}" / "site-packages" / "pytriton" / "tritonserver"
    assert refused() == "error: got 0 arguments; expected ENVIRONMENT REPOSITORY [tritonserver's options]\n"
    assert refused("own", "models").startswith("error: no virtual environment at own")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "own"], cwd=tmp_path, check=True)
    assert "no Triton in " in refused("own", "models")
    executable(wheel / "bin" / "tritonserver")
    assert f"no stub for Python {version}" in refused("own", "models")
    executable(wheel / "python_backend_stubs" / version / "triton_python_backend_stub")
    (wheel.parents[1] / "numpy.py").write_text("__version__ = '2.0.0'\n")
    assert "pip install 'numpy<2'" in refused("own", "models")


def executable(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch(0o755)
