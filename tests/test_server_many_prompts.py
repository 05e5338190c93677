"""/v1/completions with a list of prompts: a choice for each, the same answers as of requests by themselves."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Paced, Served, served, until
from speaking import encode_ids, every_other, make_speaker
from test_server_batch import SLOTS, model_of
from test_server_load import asked, paced
from tiny import proposal

from runtime.backend import Forward, Proposal

PROMPTS = ["a", "walk the line", "é😀", "b" * 9, "a", "c c c", "zero"]


@pytest.fixture(params=[None, SLOTS], ids=["threads", "batch"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An engine without weights, whose answers are hashes of all that a row sees; both ways of decoding."""
    slots: int | None = request.param
    with served(model_of(tmp_path, slots or 1), workers=1, slots=slots) as made:
        yield made


SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 7, "temperature": 0.7, "seed": 5, "logprobs": 0},
    {"threshold": 0.2, "stop": ["!", "q"], "logprobs": 1},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_choice_is_the_answer_to_its_prompt_alone(server: Served, settings: dict[str, Any]) -> None:
    solo = [server.post({**settings, "prompt": prompt}).json() for prompt in PROMPTS]
    for prompts in (PROMPTS, [encode_ids(prompt) for prompt in PROMPTS], [PROMPTS[0], *map(encode_ids, PROMPTS[1:])]):
        got = server.post({**settings, "prompt": prompts}).json()
        alone = [{**each["choices"][0], "index": i, "blockstep": each["blockstep"]} for i, each in enumerate(solo)]
        assert got["choices"] == alone and "blockstep" not in got
        assert got["usage"] == {name: sum(each["usage"][name] for each in solo) for name in solo[0]["usage"]}
        assert set(got) == set(solo[0]) - {"blockstep"}


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_stream_has_the_blocks_of_all_choices_by_their_index(server: Served, settings: dict[str, Any]) -> None:
    whole = server.post({**settings, "prompt": PROMPTS}).json()
    body = {**settings, "prompt": PROMPTS, "stream": True, "stream_options": {"include_usage": True}}
    lines = [line.removeprefix("data: ") for line in server.post(body).text.splitlines() if line]
    assert lines[-1] == "[DONE]" and lines.count("[DONE]") == 1
    *chunks, last = map(json.loads, lines[:-1])
    assert last["usage"] == whole["usage"] and last["choices"] == []
    assert all(len(chunk["choices"]) == 1 and chunk["usage"] is None for chunk in chunks)
    for choice in whole["choices"]:
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(chunk["choices"][0]["text"] for chunk in own) == choice["text"]
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in own]
        assert reasons == [None] * (len(own) - 1) + [choice["finish_reason"]]
        assert own[-1]["blockstep"] == choice["blockstep"]
    places = [chunk["choices"][0]["index"] for chunk in chunks]
    if server.service.workers.most > 33:  # a batch: no choice waits for the end of another
        assert places != sorted(places)


def test_the_official_client_reads_them(server: Served) -> None:
    with server.client() as client:
        alone = [client.completions.create(model="student", prompt=prompt).choices[0].text for prompt in PROMPTS]
        got = client.completions.create(model="student", prompt=PROMPTS)
        assert [choice.text for choice in got.choices] == alone
        assert [choice.index for choice in got.choices] == [*range(len(PROMPTS))]
        texts = [""] * len(PROMPTS)
        for chunk in client.completions.create(model="student", prompt=PROMPTS, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == alone
        one = client.completions.create(model="student", prompt=PROMPTS[:1])  # no batch: a reply as ever
        assert one.choices[0].text == alone[0] and one.model_extra is not None and "blockstep" in one.model_extra


def test_a_canvas_says_whose_it_is(server: Served) -> None:
    body = {"prompt": PROMPTS[:3], "stream": True, "stream_canvas": True, "threshold": 1.0}
    lines = [line.removeprefix("data: ") for line in server.post(body).text.splitlines() if line]
    canvases = [chunk["canvas"] for chunk in map(json.loads, lines[:-1]) if "canvas" in chunk]
    for place in range(3):
        own = [canvas for canvas in canvases if canvas["index"] == place]
        assert len(own) > 1 and [canvas["forwards"] for canvas in own] == sorted(canvas["forwards"] for canvas in own)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": ["a", "", "b"]}, "prompt[1]", "prompt[1] has to be a text or a list of token ids, and not empty"),
        ({"prompt": ["a", 5]}, "prompt[1]", "prompt[1] has to be a text or a list of token ids"),
        ({"prompt": ["a", None]}, "prompt[1]", "prompt[1] has to be a text or a list of token ids"),
        ({"prompt": [[4], [4, "x"]]}, "prompt[1]", "prompt[1] has to be a text or a list of token ids"),
        ({"prompt": ["a", ["b"]]}, "prompt[1]", "prompt[1] has to be a text or a list of token ids"),
        ({"prompt": ["a", [99_999]]}, "prompt[1]", "prompt[1]: "),
        ({"prompt": ["a", "b", "x" * 5000]}, "prompt[2]", "prompt[2]: "),
        ({"prompt": ["a", "x" * 50], "max_tokens": 16}, "max_tokens", "max_tokens of prompt[1]: "),
        ({"prompt": []}, "prompt", "prompt has to be a text, a list of token ids, or a list of these, and not empty"),
        ({"prompt": ["a"] * 500}, "prompt", "prompt has 500 entries; this server holds "),
        ({"prompt": ["a", "b"], "n": 2}, "n", "n is not supported here"),
        ({"prompt": ["a", "b"], "max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    ],
)
def test_one_that_is_wrong_refuses_all_by_name_before_any_work(
    server: Served, body: dict[str, Any], param: str, said: str
) -> None:
    answer = server.post(body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and error["message"].startswith(said)
    assert server.service.model.backend.computed == []  # type: ignore[attr-defined]
    assert server.service.workers.waiting == server.service.workers.running == 0


def test_each_prompt_has_a_place_of_its_own_in_the_queue(tmp_path: Path) -> None:
    model, script = paced(tmp_path, "hi", "abcd")
    with served(model, room=3) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.post, {"prompt": ["hi", "hi"]})
        until(lambda: server.service.workers.running == server.service.workers.waiting == 1)
        refused = server.post({"prompt": ["hi"] * 3})  # two places are left
        assert refused.status_code == 429 and "1 request is waiting and 3 more do not fit" in refused.text
        assert server.service.workers.waiting == 1
        second = pool.submit(server.post, {"prompt": ["hi", "hi"]})
        until(lambda: server.service.workers.waiting == 3)
        assert server.post({"prompt": "hi"}).status_code == 429
        script.let(1000)
        texts = [choice["text"] for done in (first, second) for choice in done.result().json()["choices"]]
        assert texts == ["abcd"] * 4
        until(lambda: server.service.workers.running == 0)  # a place is free a moment after its reply has left
        most = server.post({"prompt": ["hi"] * 4})  # as many as there are places
        assert most.status_code == 200
        assert "holds 4 requests at once, so send fewer" in server.post({"prompt": ["hi"] * 5}).text
        assert server.metric("blockstep_tokens_total") == 8 * 5


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_takes_all_of_its_prompts_along(tmp_path: Path, streamed: bool) -> None:
    model, script = paced(tmp_path, "hi", "abcdefghijkl")
    with served(model) as server:
        body: Any = {"prompt": ["hi"] * 5, "stream": streamed}
        with asked(server, body):
            until(lambda: server.service.workers.waiting == 4 and script.begun == 1)
        until(lambda: server.service.workers.waiting == 0)
        script.let(1)
        until(lambda: server.service.workers.running == 0)
        assert script.begun == 1  # no forward pass after the one that was in work


def test_one_that_fails_ends_the_others_and_is_named(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, "hi", "abcdefgh", every_other)
    good = model.backend.script  # type: ignore[attr-defined]
    each = model.generate("hi").result.forwards

    def script(forward: Forward) -> Proposal:  # the second answer's first scores are not numbers
        return proposal([[3] * 4], [[float("nan")] * 4]) if paces.begun == each + 1 else good(forward)

    paces = Paced(script)
    said = "prompt[1]: the model's scores are not finite numbers"
    with served(model) as server:
        for streamed in (False, True):
            paces = model.backend.script = Paced(script)  # type: ignore[attr-defined]
            paces.let(each + 1)
            answer = server.post({"prompt": ["hi"] * 9, "stream": streamed})
            if streamed:
                *texts, last = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
                assert {json.loads(line)["choices"][0]["index"] for line in texts} == {0}
                assert said in last and json.loads(last)["error"]["code"] == "failed"
            else:
                assert answer.status_code == 500 and answer.json()["error"]["message"].startswith(said)
            until(lambda: server.service.workers.waiting == 0)
            paces.let(1)
            until(lambda: server.service.workers.running == 0)
            assert paces.begun in (each + 1, each + 2)  # none is begun but one that may have been in work


def test_chats_have_one_conversation(server: Served) -> None:
    answer = server.post({"messages": ["a", "b"]}, "/v1/chat/completions")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
    assert httpx.get(f"{server.url}/healthz").status_code == 200
