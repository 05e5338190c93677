"""A server whose engine takes several sequences: one running batch, its answers those of a server that has none."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tiny
from remembering import Remembering, make_remembering_contract
from serving import Served, served, until
from speaking import VOCAB, make_byte_tokenizer, save_tokenizer
from test_server_load import asked, paced

from runtime.decoding.options import DecodeOptions
from runtime.errors import UserError
from runtime.model import Model
from runtime.server.events import End, Event, Failure, FinishedBlock
from runtime.server.request import ServerRequest
from runtime.server.worker_pool import BatchDecoder, Job, SoloDecoder, Workers, choose_decoders
from runtime.text.tokenizer import Tokenizer

SLOTS = 5


def model_of(folder: Path, batch: int, **changes: Any) -> Model:
    """A model of bytes over the engine without weights."""
    spec = make_remembering_contract(batch, vocab=VOCAB, **changes)
    return Model(
        Remembering(spec), Tokenizer(save_tokenizer(make_byte_tokenizer(), folder)), spec.gate, "remembering", "fp32"
    )


def body(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a request of any kind, with a seed."""
    text = "".join(rng.choices("abc é😀\n", k=rng.randint(1, 12)))
    made: dict[str, Any] = {"seed": rng.randrange(2**63), "max_tokens": rng.randint(1, 20)}
    if rng.random() < 0.5:
        made["temperature"] = rng.choice([0, 0.7, 3])
    if rng.random() < 0.5:
        made["threshold"] = rng.choice([0.0, 0.5, 1.0])
    if rng.random() < 0.3:
        made["stop"] = rng.sample([chr(place) for place in range(32, 126)], 8)
    if rng.random() < 0.3:
        made |= {"stream": True, "stream_canvas": True}
    if rng.random() < 0.3:
        return "/v1/chat/completions", {**made, "messages": [{"role": "user", "content": text}]}
    return "/v1/completions", {**made, "prompt": text, "logprobs": rng.choice([None, 0])}


def replies(server: Served, path: str, body: dict[str, Any]) -> list[Any]:
    answer = server.post(body, path)
    assert answer.status_code == 200, answer.text
    return parsed(answer.text)


def parsed(text: str) -> list[Any]:
    """A reply, or the events of a stream, without ids and times."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [json.loads(line, object_pairs_hook=without_ids) for line in lines if line != "[DONE]"]


def without_ids(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if name not in ("id", "created")}


@pytest.mark.parametrize("alignment", ["prompt", "absolute"])
def test_replies_are_those_of_a_server_without_a_batch(alignment: str, tmp_path: Path) -> None:
    seed = tiny.choose_seed()
    rng = random.Random(seed)
    sent = [body(rng) for _ in range(100)]
    with served(model_of(tmp_path, 1, alignment=alignment), room=100) as server:
        solo = [replies(server, *each) for each in sent]
    with served(model_of(tmp_path, SLOTS, alignment=alignment), slots=SLOTS, room=100) as server:
        leaving = threading.Thread(target=leave, args=(server, seed))
        leaving.start()
        with ThreadPoolExecutor(12) as pool:
            got = list(pool.map(lambda each: replies(server, *each), sent))
        leaving.join()
        until(lambda: server.service.workers.running == server.service.workers.waiting == 0)
        backend = server.service.model.backend
    for number, (ours, theirs) in enumerate(zip(got, solo, strict=True)):
        assert ours == theirs, f"{sent[number]}, BLOCKSTEP_SEED={seed}"
    assert isinstance(backend, Remembering) and max(sequences for sequences, _ in backend.computed) > 2


def leave(server: Served, seed: int) -> None:
    """Clients that go after the first line of their stream, or before."""
    rng = random.Random(seed)
    for _ in range(15):
        path, made = body(rng)
        made |= {"stream": True, "max_tokens": 20}
        if rng.random() < 0.5:
            with httpx.stream("POST", server.url + path, json=made, timeout=60, verify=False) as stream:
                next(stream.iter_lines())
        else:
            asked(server, {"prompt": "hi"}).close()


def test_a_client_that_leaves_gives_its_place_to_the_next_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model, script), left = paced(tmp_path, "hi", "abcdefghijkl", batch=2), threading.Event()
    withdraw = Workers.withdraw
    monkeypatch.setattr(Workers, "withdraw", lambda self, job: withdraw(self, job) or left.set())
    with ThreadPoolExecutor(2) as pool, served(model, slots=2) as server:
        leaving = asked(server, {"prompt": "hi"})
        until(lambda: script.begun == 1)
        staying = pool.submit(server.post, {"prompt": "hi"})
        until(lambda: server.service.workers.waiting == 1)  # it joins after the forward in work
        script.let(1)
        until(lambda: script.begun == 2 and server.service.workers.running == 2)
        third = pool.submit(server.post, {"prompt": "hi"})
        until(lambda: server.service.workers.waiting == 1)
        leaving.close()
        assert left.wait(20)
        script.let(1)
        until(lambda: script.begun == 3 and server.service.workers.waiting == 0)
        assert server.service.workers.running == 2
        script.let(1000)
        assert [each.result().json()["choices"][0]["text"] for each in (staying, third)] == ["abcdefghijkl"] * 2


def test_a_request_whose_events_cannot_be_made_leaves_the_others_alone(tmp_path: Path) -> None:
    model, heard, over = model_of(tmp_path, 2), dict[int, list[Event]](), threading.Semaphore(0)

    def job(number: int) -> Job:
        def deliver(event: Event) -> None:
            if number == 1 and isinstance(event, FinishedBlock):
                raise KeyError("a bug")
            heard.setdefault(number, []).append(event)
            if isinstance(event, End | Failure):
                over.release()

        return Job(ServerRequest(np.array([5 + number]), DecodeOptions(8), chat=False), deliver)

    workers = Workers([BatchDecoder(model, 2)], 8)
    for number in range(4):
        workers.submit(job(number))
    for _ in range(4):
        assert over.acquire(timeout=20)
    workers.close()
    assert isinstance(heard[1][-1], Failure) and "its log has the reason" in heard[1][-1].message
    assert all(isinstance(heard[number][-1], End) for number in (0, 2, 3))
    assert workers.running == workers.waiting == 0 and not workers.broken


def test_an_engine_of_several_sequences_is_given_a_batch_and_another_one_threads(tmp_path: Path) -> None:
    def chosen(batch: int, *options: int | None) -> list[tuple[type, int]]:
        decoders = choose_decoders(model_of(tmp_path, batch), *options)
        return [(type(decoder), decoder.places) for decoder in decoders]

    assert chosen(1, None, None) == chosen(4, 1, None) == chosen(4, 1, 1) == chosen(4, None, 1) == [(SoloDecoder, 1)]
    assert chosen(4, None, None) == [(BatchDecoder, 4)] and chosen(4, None, 3) == [(BatchDecoder, 3)]
    assert chosen(4096, None, None) == [(BatchDecoder, 16)] and chosen(4096, None, 20) == [(BatchDecoder, 20)]
    for device, slots, kind in (("cpu", None, SoloDecoder), ("cuda", None, BatchDecoder), ("cpu", 2, BatchDecoder)):
        shared = model_of(tmp_path, 4)
        shared.backend.share = partial(Remembering, shared.backend.contract)  # type: ignore[attr-defined]
        assert {type(each) for each in choose_decoders(shared, None, slots, device)} == {kind}
    with pytest.raises(UserError, match="slots is 5; expected 1 to 4"):
        chosen(4, None, 5)
    with pytest.raises(UserError, match="leave --workers 1 out"):
        chosen(4, 1, 2)
