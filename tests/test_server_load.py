"""The HTTP server under load: queue, clients that leave, drains, thresholds that give way, failures."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from serving import PROMPTS, Paced, Served, served, until
from speaking import encode_ids, every_other, make_speaker, says
from tiny import Scripted, proposal

from runtime import DeviceError, Model, UserError, load
from runtime.backend import Forward, Proposal
from runtime.model import ModelPool
from runtime.server.adaptive_threshold import Pressure, parse_span

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Model:
    return load(ROOT / "samples" / "student.bundle", threads=1)


@pytest.fixture(scope="module")
def student(model: Model) -> Iterator[Served]:
    with served(model.share(), workers=2) as server:
        yield server


@pytest.fixture(params=[None, 1], ids=["threads", "batch"])
def slots(request: pytest.FixtureRequest) -> int | None:
    """Both ways of decoding, one request at a time."""
    way: int | None = request.param
    return way


def paced(folder: Path, prompt: str, answer: str, batch: int = 1) -> tuple[Model, Paced]:
    """A model that says `answer` four tokens a block, three steps a block, each when it is let."""
    made = make_speaker(folder, prompt, answer, every_other, batch=batch)
    script = Paced(says(len(encode_ids(prompt)), encode_ids(answer), every_other))
    made.backend.script = script  # type: ignore[attr-defined]
    return made, script


def test_requests_at_once_get_their_solo_answers(student: Served, model: Model) -> None:
    with student.client() as client, ThreadPoolExecutor(8) as pool:
        asked = [f"{PROMPTS[i % 2][: 40 + 7 * i]}" for i in range(12)]
        got = list(pool.map(lambda p: client.completions.create(model="student", prompt=p, max_tokens=40), asked))
    for prompt, answer in zip(asked, got, strict=True):
        assert answer.choices[0].text == model.generate(prompt, raw=True, max_new_tokens=40).text


def test_a_full_queue_is_429_and_the_client_comes_again(tmp_path: Path, slots: int | None) -> None:
    model, script = paced(tmp_path, "hi", "abcd")
    with ThreadPoolExecutor(3) as pool, served(model, slots=slots, room=1) as server, server.client() as client:
        first = pool.submit(says_hi, client)
        until(lambda: server.service.workers.running == 1)
        second = pool.submit(says_hi, client)
        until(lambda: server.service.workers.waiting == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            says_hi(client)
        assert int(refused.value.response.headers["retry-after"]) >= 1 and "1 request is waiting" in str(refused.value)
        third = pool.submit(says_hi, client.with_options(max_retries=1000))
        until(lambda: server.metric('blockstep_requests_total{path="/v1/completions",status="429"}') >= 2)
        script.let(1000)
        assert [first.result(), second.result(), third.result()] == ["abcd"] * 3


def says_hi(client: OpenAI) -> str:
    return client.completions.create(model="student", prompt="hi").choices[0].text


def test_a_client_that_leaves_frees_its_worker_within_a_step(
    tmp_path: Path, slots: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runtime.server.handler")
    model, script = paced(tmp_path, "hi", "abcdefghijkl")
    with served(model, slots=slots) as server:
        body = {"prompt": "hi", "stream": True, "stream_canvas": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as stream:
            until(lambda: script.begun == 1)
            script.let(1)
            lines = stream.iter_lines()  # kept: httpx closes the response with it
            assert "canvas" in next(lines)
            until(lambda: script.begun == 2)
        with asked(server, {"prompt": "hi"}):  # it gives up while it is still in the queue
            until(lambda: server.service.workers.waiting == 1)
        until(lambda: server.service.workers.waiting == 0)
        until(lambda: 'path="/v1/completions",status="499"' in httpx.get(f"{server.url}/metrics").text)
        assert script.begun == 2
        script.let(1)
        until(lambda: server.service.workers.running == 0)
        assert script.begun == 2  # no forward after the one that was in work
        until(lambda: caplog.text.count("cancelled: 2 prompt tokens, 0 tokens in 2 forward passes") == 1)
        assert caplog.text.count("cancelled: 2 prompt tokens, 0 tokens in 0 forward passes") == 1  # left the queue
        script.let(1000)
        assert server.post({"prompt": "hi"}).json()["choices"][0]["text"] == "abcdefghijkl"


def asked(server: Served, body: dict[str, str]) -> socket.socket:
    """A connection with a request on it, to be closed before the answer comes."""
    content = json.dumps(body)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    )
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30)
    connection.sendall(f"{head}\r\n\r\n{content}".encode())
    return connection


def test_a_drain_finishes_what_was_begun(tmp_path: Path, slots: int | None) -> None:
    model, script = paced(tmp_path, "hi", "abcdefgh")
    with served(model, slots=slots) as server, ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(server.post, {"prompt": "hi"}) for _ in range(2)]
        until(lambda: server.service.workers.running == server.service.workers.waiting == 1)
        server.server.should_exit = True
        until(lambda: refuses(server.url))
        script.let(1000)
        assert [done.result().json()["choices"][0]["text"] for done in begun] == ["abcdefgh"] * 2


def test_a_drain_that_takes_too_long_is_broken_off_within_a_step(tmp_path: Path, slots: int | None) -> None:
    model, script = paced(tmp_path, "hi", "abcdefgh")
    with served(model, slots=slots, drain=1) as server, ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(server.post, {"prompt": "hi"}) for _ in range(2)]
        until(lambda: server.service.workers.running == server.service.workers.waiting == 1)
        server.server.should_exit = True
        assert [done.result().status_code for done in begun] == [500, 500]
        until(lambda: server.service.workers.waiting == 0)
        script.let(1)
    assert script.begun == 1


def refuses(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=5)
    except httpx.TransportError:
        return True
    return False


def test_the_threshold_gives_way_as_the_queue_grows_and_comes_back(tmp_path: Path, slots: int | None) -> None:
    model, script = paced(tmp_path, "hi", "abcd")
    pressure = lambda waiting: Pressure(0.9, 0.2, 4, waiting)  # noqa: E731
    with served(model, slots=slots, threshold=pressure) as server, ThreadPoolExecutor(3) as pool:
        assert server.metric("blockstep_threshold") == pytest.approx(0.9)
        first = pool.submit(server.post, {"prompt": "hi"})
        until(lambda: script.begun == 1)
        rest = [pool.submit(server.post, {"prompt": "hi"}) for _ in range(2)]
        until(lambda: server.service.workers.waiting == 2)
        assert server.metric("blockstep_threshold") == pytest.approx(0.55)
        script.let(1000)
        told = [done.result().json()["blockstep"] for done in (first, *rest)]
        used = [pytest.approx(value) for value in (0.55, 0.725, 0.9)]
        assert sorted(own["threshold"] for own in told) == used
        assert server.metric("blockstep_threshold") == pytest.approx(0.9)
        given = server.post({"prompt": "hi", "threshold": 0.3}).json()["blockstep"]
        assert given["threshold"] == 0.3


def test_the_ends_of_an_adaptive_threshold_follow_the_gate(model: Model) -> None:
    entropy = replace(model.gate, metric="entropy", comparator="<=")
    assert parse_span("0.7:0.9", model.gate, 100) == (0.9, 0.7) and parse_span("0.2:1.5", entropy, 100) == (0.2, 1.5)
    for wrong in ("0.9", "0.9:0.7", "a:b", "0.5:1.5", "nan:nan", ""):
        with pytest.raises(UserError):
            parse_span(wrong, model.gate, 100)


def test_an_answer_that_fails_is_told_and_the_next_one_works(tmp_path: Path, slots: int | None) -> None:
    model = make_speaker(tmp_path, "hi", "abcd")
    good, left = model.backend.script, [1, 1]  # type: ignore[attr-defined]
    broken = lambda forward: proposal([[3] * 4], [[float("nan")] * 4]) if left and left.pop() else good(forward)  # noqa: E731
    model.backend.script = broken  # type: ignore[attr-defined]
    with served(model, slots=slots) as server, server.client() as client:
        with pytest.raises(openai.InternalServerError, match="not finite numbers"):
            client.completions.create(model="student", prompt="hi")
        with pytest.raises(openai.APIError, match="not finite numbers"):
            list(client.completions.create(model="student", prompt="hi", stream=True))
        assert client.completions.create(model="student", prompt="hi").choices[0].text == "abcd"


def test_a_device_that_fails_makes_the_server_unready(tmp_path: Path, slots: int | None) -> None:
    model = make_speaker(tmp_path, "hi", "abcd")

    def lost(forward: Forward) -> Proposal:
        raise DeviceError("the GPU is gone")

    model.backend.script = lost  # type: ignore[attr-defined]
    with served(model, slots=slots) as server:
        assert httpx.get(f"{server.url}/readyz").json() == {"ready": True, "proved": None}
        assert server.post({"prompt": "hi"}).json()["error"]["message"] == "the GPU is gone"
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_model_that_cannot_be_shared_says_so(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, "hi", "abcd")
    assert isinstance(model.backend, Scripted) and ModelPool(model).models == (model,)
    with pytest.raises(UserError, match="one request at a time"):
        ModelPool(model, 2)


def test_models_that_share_weights_decode_side_by_side(model: Model) -> None:
    one, other = model.share(), model.share()
    expected = model.generate(PROMPTS[0]).text
    stream = one.stream(PROMPTS[0])
    begun = next(stream).text
    assert other.generate(PROMPTS[1]).text == model.generate(PROMPTS[1]).text  # in the middle of the first
    assert begun + "".join(block.text for block in stream) == expected
