"""The HTTP server, asked over a real socket by OpenAI's own client: its answers are those of `runtime.generate`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from serving import PROMPTS, Served, served
from speaking import every_other, make_speaker, make_speaking_bundle

from runtime import Model, load
from runtime.server.request import COMPLETIONS, read_server_requests
from runtime.server.stop_strings import Stops

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> Model:
    return load(ROOT / "samples" / "student.bundle", threads=1)


@pytest.fixture(scope="module")
def student(model: Model) -> Iterator[Served]:
    with served(model.share(), workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def client(student: Served) -> Iterator[OpenAI]:
    with student.client() as made:
        yield made


@pytest.mark.parametrize("prompt", PROMPTS, ids=["math", "code"])
def test_whole_and_streamed_completions_are_what_generate_says(client: OpenAI, model: Model, prompt: str) -> None:
    expected = model.generate(prompt, raw=True)
    whole = client.completions.create(model="student", prompt=prompt)
    assert whole.choices[0].text == expected.text and whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None and whole.usage.completion_tokens == len(expected.result.token_ids)
    assert whole.usage.prompt_tokens == len(model.request(prompt, raw=True).prompt)
    options: Any = {"model": "student", "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(**options))
    pieces = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert [piece for piece in pieces if piece] == [
        block.text for block in model.stream(prompt, raw=True) if block.text
    ]
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.model_extra == {} for chunk in chunks[:-2])  # nothing provisional


@pytest.mark.parametrize("prompt", PROMPTS, ids=["math", "code"])
def test_chats_are_what_generate_says(client: OpenAI, model: Model, prompt: str) -> None:
    expected = model.generate(prompt)
    messages: Any = [{"role": "user", "content": prompt}]
    whole = client.chat.completions.create(model="student", messages=messages, temperature=0, seed=1)
    assert whole.choices[0].message.content == expected.text and whole.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(model="student", messages=messages, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    parts: Any = [
        {"role": "user", "content": [{"type": "text", "text": prompt[:9]}, {"type": "text", "text": prompt[9:]}]}
    ]
    again = client.chat.completions.create(model="student", messages=parts)
    assert again.choices[0].message.content == expected.text


def test_counts_and_thresholds_come_along(client: OpenAI, model: Model) -> None:
    for threshold in (None, 0.5, 1.0):
        expected = model.generate(PROMPTS[0], raw=True, threshold=threshold, mode="block")
        extra = {"mode": "block"} if threshold is None else {"threshold": threshold}
        got = client.completions.create(model="student", prompt=PROMPTS[0], extra_body=extra)
        own: Any = got.model_extra["blockstep"]  # type: ignore[index]
        assert got.choices[0].text == expected.text
        assert (own["steps"], own["forwards"], own["tokens"]) == (
            expected.result.steps,
            expected.result.forwards,
            len(expected.result.token_ids),
        )
        used = model.gate.threshold if threshold is None else threshold
        assert (own["threshold"], own["highest_threshold"]) == (used, used)
        assert own["one_a_step"] == len(expected.result.token_ids) and own["cached"] is expected.result.cached is True


def test_a_threshold_of_the_request_or_the_server_chooses_the_mode_block(model: Model) -> None:
    body = {"prompt": PROMPTS[0]}
    for fields, gated, mode in (
        (body, False, "speculative"), (body, True, "block"), ({**body, "threshold": 0.5}, False, "block"),
        ({**body, "mode": "causal"}, True, "causal"),
    ):  # fmt: skip
        [ask] = read_server_requests(model, "student", None, COMPLETIONS, fields, 1, gated)
        assert ask.options.mode == mode


def test_token_ids_make_a_prompt_too(client: OpenAI, model: Model) -> None:
    ids = model.tokenizer.encode(PROMPTS[1]).tolist()
    got = client.completions.create(model="student", prompt=ids, max_tokens=5)
    expected = model.generate(ids, max_new_tokens=5)
    assert got.choices[0].text == expected.text and got.choices[0].finish_reason == expected.result.finish == "length"


def test_log_probabilities_are_the_confidences(client: OpenAI, model: Model) -> None:
    sure: list[float] = []
    fixed: dict[int, float] = {}
    for step in model.steps(PROMPTS[0], raw=True):
        places = step.accepted.nonzero()[0]
        fixed |= {int(place): float(step.confidence[place]) for place in places}
        if step.result is not None or not step.open.any():
            sure += [fixed[place] for place in sorted(fixed)]
            fixed = {}
    got = client.completions.create(model="student", prompt=PROMPTS[0], logprobs=1).choices[0]
    scores: Any = got.logprobs
    assert "".join(scores.tokens) == got.text
    assert [got.text[at:].startswith(token) for at, token in zip(scores.text_offset, scores.tokens, strict=True)]
    n = len(scores.tokens)
    assert [pytest.approx(value, rel=1e-5) for value in sure[:n]] == [math.exp(log) for log in scores.token_logprobs]
    assert scores.top_logprobs[0] == {scores.tokens[0]: scores.token_logprobs[0]}
    chat = client.chat.completions.create(
        model="student", messages=[{"role": "user", "content": PROMPTS[0]}], logprobs=True, top_logprobs=1
    )
    entries: Any = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert [entry.logprob for entry in entries] == scores.token_logprobs
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == got.text
    assert entries[0].top_logprobs[0].token == entries[0].token


def test_a_canvas_streams_where_it_is_asked_for(client: OpenAI, model: Model) -> None:
    stream = client.completions.create(
        model="student", prompt=PROMPTS[0], stream=True, extra_body={"stream_canvas": True, "threshold": 0.99}
    )
    chunks: list[Any] = list(stream)
    expected = model.generate(PROMPTS[0], raw=True, threshold=0.99)
    drawn = [chunk.canvas for chunk in chunks if getattr(chunk, "canvas", None)]
    done = [canvas for canvas in drawn if canvas["done"]]
    assert "".join(cell["text"] for canvas in done for cell in canvas["cells"]) == expected.text
    assert [canvas["forwards"] for canvas in drawn] == sorted(canvas["forwards"] for canvas in drawn)
    steps = [canvas["steps"] for canvas in drawn]
    assert steps == sorted(steps) and steps[-1] == expected.result.steps == chunks[-1].blockstep["steps"]
    for canvas in drawn:
        assert all((cell["confidence"] is None) == (cell["step"] is None) for cell in canvas["cells"])
        assert all(cell["step"] is None or cell["step"] <= canvas["steps"] for cell in canvas["cells"])
    assert any(cell["step"] is None for canvas in drawn for cell in canvas["cells"])


@pytest.mark.parametrize("stop", [["=24"], ["zzz", "eggs"], [".\n####"], ["Ken"], ["never"]])
def test_a_stop_string_ends_the_text_before_it(client: OpenAI, model: Model, stop: list[str]) -> None:
    full = model.generate(PROMPTS[0], raw=True)
    found = [full.text.index(text) for text in stop if text in full.text]
    expected = full.text[: min(found)] if found else full.text
    options: Any = {"model": "student", "prompt": PROMPTS[0], "stop": stop}
    whole = client.completions.create(**options, logprobs=0)
    assert whole.choices[0].text == expected and whole.choices[0].finish_reason == "stop"
    assert "".join(whole.choices[0].logprobs.tokens)[: len(expected)] == expected  # type: ignore[union-attr, arg-type]
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)]
    assert "".join(pieces) == expected
    own: Any = whole.model_extra["blockstep"]  # type: ignore[index]
    assert own["forwards"] <= full.result.forwards and (own["finish"] == "stop") == bool(found)


@pytest.mark.parametrize("strings", [["ab"], ["aab", "b"], ["abab", "ba"], ["aaa"], ["x"], []])
def test_stop_strings_are_found_however_the_text_is_cut(strings: list[str]) -> None:
    for text in (f"{n:09b}".translate({48: "a", 49: "b"}) for n in range(512)):
        found = [(text.index(string) + len(string), text.index(string)) for string in strings if string in text]
        expected = text[: min(found)[1]] if found else text
        for cut in range(1, 5):
            stops = Stops(strings)
            pieces = [stops.push(text[i : i + cut]) for i in range(0, len(text), cut)]
            assert "".join(pieces) + stops.finish() == expected and stops.hit == bool(found)


WRONG: list[tuple[str, Any]] = [
    ("n", 2), ("top_p", 0.5), ("echo", True), ("best_of", 2), ("presence_penalty", 1), ("suffix", "x"),
    ("logit_bias", {"5": 1}), ("nonsense", 1), ("temperature", 7), ("temperature", "hot"), ("temperature", -1),
    ("logprobs", 2), ("stop", ["a"] * 33), ("stop", ""), ("stream", 1), ("threshold", 1.5), ("threshold", "low"),
    ("seed", "x"), ("stream_canvas", True), ("stream_options", {"include_usage": True}), ("prompt", ""),
    ("prompt", []), ("prompt", [1.5]), ("max_tokens", 1.5), ("messages", []), ("threshold", 10**400),
]  # fmt: skip


def test_a_field_that_is_wrong_or_not_supported_is_named(student: Served) -> None:
    for field, value in WRONG:
        answer = student.post({"model": "student", "prompt": "hello", field: value})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == field and field in error["message"], (field, error)
        assert "\n" not in error["message"]


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of an engine without top tokens."""
    with served(make_speaker(tmp_path_factory.mktemp("greedy"), "hi", "a quiet answer")) as server:
        yield server


def test_a_temperature_is_refused_for_what_the_engine_lacks(greedy: Served) -> None:
    with greedy.client() as client:
        with pytest.raises(
            openai.BadRequestError, match=r"temperature is 1, .* top-1 token alone; .* --top-k 32"
        ) as told:
            client.completions.create(model="student", prompt="hi", temperature=1)
        assert (told.value.param, told.value.code) == ("temperature", "unsupported_value")
        assert client.completions.create(model="student", prompt="hi", temperature=0, seed=1).choices[0].text
        assert client.models.retrieve("student").model_extra["blockstep"]["top_k"] == 0  # type: ignore[index]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with top tokens, where every second place is open to four other characters."""
    folder = tmp_path_factory.mktemp("drawing")
    return load(make_speaking_bundle(folder, "hi", "a quiet answer", every_other, others="wxyz"), threads=1)


@pytest.fixture(scope="module")
def sampling(drawing: Model) -> Iterator[Served]:
    with served(drawing.share(), workers=2) as server:
        yield server


def test_answers_at_a_temperature_are_what_generate_says(sampling: Served, drawing: Model) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    texts = set()
    with sampling.client() as client:
        for seed in (0, 1, 2, -7, 2**62):
            expected = drawing.generate("hi", temperature=1.5, seed=seed)
            options: Any = {"model": "student", "temperature": 1.5, "seed": seed}
            whole = client.completions.create(prompt="hi", **options)
            assert whole.choices[0].text == expected.text
            own: Any = whole.model_extra["blockstep"]  # type: ignore[index]
            assert (own["seed"], own["tokens"], own["steps"]) == (
                seed,
                len(expected.result.token_ids),
                expected.result.steps,
            )
            chunks = list(client.completions.create(prompt="hi", stream=True, **options))
            assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
            chat = client.chat.completions.create(messages=messages, **options)
            assert chat.choices[0].message.content == expected.text
            texts.add(expected.text)
    assert len(texts) > 3


def test_a_seed_that_the_server_drew_gives_the_answer_again(sampling: Served) -> None:
    with sampling.client() as client:
        for stream in (False, True):
            asked: Any = {"model": "student", "prompt": "hi", "temperature": 2}
            made: Any = client.completions.create(stream=stream, **asked)
            parts = list(made) if stream else [made]
            text, own = "".join(part.choices[0].text for part in parts), parts[-1].model_extra["blockstep"]
            again = client.completions.create(seed=own["seed"], **asked)
            assert type(own["seed"]) is int and again.choices[0].text == text
        plain: Any = client.completions.create(model="student", prompt="hi").model_extra
        assert plain["blockstep"]["seed"] is None


def test_an_answer_of_a_full_model_says_that_no_cache_was_used(sampling: Served, drawing: Model) -> None:
    with sampling.client() as client:
        own: Any = client.completions.create(model="student", prompt="hi").model_extra
    assert (
        drawing.contract.attention == "full"
        and own["blockstep"]["cached"] is drawing.generate("hi").result.cached is False
    )


def test_log_probabilities_at_a_temperature_are_those_of_the_drawn_tokens(sampling: Served, drawing: Model) -> None:
    drawn = {
        round(float(step.confidence[place]), 5)
        for step in drawing.steps("hi", temperature=2.0, seed=1)
        for place in step.accepted.nonzero()[0]
    }
    with sampling.client() as client:
        asked: Any = {"model": "student", "prompt": "hi", "temperature": 2, "seed": 1}
        scores: Any = client.completions.create(logprobs=0, **asked).choices[0].logprobs
        assert {round(math.exp(log), 5) for log in scores.token_logprobs} <= drawn and len(drawn) > 1
        with pytest.raises(openai.BadRequestError, match="logprobs is 1; at a temperature only the sampled token"):
            client.completions.create(logprobs=1, **asked)


def test_sampling_out_of_range_is_named_by_its_field(sampling: Served) -> None:
    for field, value in (("temperature", 5.5), ("temperature", -1), ("seed", 2**63), ("seed", 1.5)):
        answer = sampling.post({"prompt": "hi", "temperature": 1, field: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field
        assert field in answer.json()["error"]["message"]


def test_fields_that_ask_for_nothing_are_taken(student: Served) -> None:
    body = {"prompt": "hi", "n": 1, "top_p": 1, "echo": False, "user": None, "suffix": None, "max_tokens": 1}
    assert student.post(body).status_code == 200


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": ""}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
        ({"role": "user", "content": "x", "name": "Eva"}, "messages[0].name"), ("hello", "messages"),
    ],
)  # fmt: skip
def test_messages_are_checked(student: Served, message: Any, param: str) -> None:
    answer = student.post({"messages": [message]}, "/v1/chat/completions")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


NO_REQUESTS: list[tuple[Any, int]] = [
    (b"{", 400), (b"[" * 100_000, 400), (b"[]", 400), (b"\xff", 400), ({"prompt": "x" * 2_000_000}, 413),
    ({"prompt": "hello", "model": "gpt"}, 404), ({"prompt": "hello " * 4000}, 400),
    ({"prompt": [7], "max_tokens": 0}, 400), ({"prompt": [99_999]}, 400), ({"prompt": [2**70]}, 400),
    ({"prompt": "x", "\ud800": 1}, 400), ({"prompt": "\ud800"}, 400),
]  # fmt: skip


def test_what_is_no_request_is_refused_in_one_line(student: Served) -> None:
    for body, status in NO_REQUESTS:
        answer = student.post(body)
        assert answer.status_code == status, (str(body)[:60], answer.text)
        assert "\n" not in answer.json()["error"]["message"]


def test_paths_methods_and_content_types(student: Served) -> None:
    assert student.post({"prompt": "x"}, content_type="text/plain").status_code == 415
    assert httpx.get(f"{student.url}/v1/completions").status_code == 405
    assert httpx.get(f"{student.url}/v2").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{student.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{student.url}/readyz").json() == {"ready": True, "proved": True}
    page = httpx.get(f"{student.url}/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]


def test_models_are_listed(client: OpenAI) -> None:
    assert [entry.id for entry in client.models.list()] == ["student"]
    assert client.models.retrieve("student").owned_by == "blockstep"
    with pytest.raises(openai.NotFoundError, match="expected student"):
        client.models.retrieve("other")


def test_metrics_count_what_happened(student: Served) -> None:
    def seen() -> list[float]:
        names = ["blockstep_first_block_seconds_count", "blockstep_tokens_per_forward_count", "blockstep_tokens_total"]
        ok = 'blockstep_requests_total{path="/v1/completions",status="200"}'
        return [student.metric(name) for name in [*names, ok]]

    student.post({"prompt": "hello", "max_tokens": 3})  # so that every line exists
    before = seen()
    answer = student.post({"prompt": "hello", "max_tokens": 3}).json()
    tokens = answer["usage"]["completion_tokens"]
    assert [b - a for a, b in zip(before, seen(), strict=True)] == [1, 1, tokens, 1]
    assert student.metric("blockstep_queue_waiting") == student.metric("blockstep_queue_running") == 0


def test_limits_of_tokens_keys_and_hosts(model: Model) -> None:
    with served(model.share(), most=8, keys=("one", "two"), hosts=("127.0.0.1",)) as server:
        with server.client(key="two") as client:
            got = client.completions.create(model="student", prompt=PROMPTS[0])
            assert got.choices[0].text == model.generate(PROMPTS[0], raw=True, max_new_tokens=8).text
            with pytest.raises(openai.BadRequestError, match="max_tokens is 9; this server gives at most 8"):
                client.completions.create(model="student", prompt="x", max_tokens=9)
        with server.client(key="three") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert server.post({"prompt": "x"}).status_code == 401
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        foreign = httpx.get(f"{server.url}/", headers={"host": "evil.example:80"})
        assert foreign.status_code == 403


def test_characters_split_over_blocks_are_whole_in_every_chunk(tmp_path: Path) -> None:
    said = "a€b😀ç, ok"
    with served(make_speaker(tmp_path, "hi", said, every_other)) as server, server.client() as client:
        stream = client.completions.create(
            model="student", prompt="hi", stream=True, extra_body={"stream_canvas": True}
        )
        chunks: list[Any] = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == said
        cells = [
            c["text"]
            for chunk in chunks
            if getattr(chunk, "canvas", None) and chunk.canvas["done"]
            for c in chunk.canvas["cells"]
        ]
        assert "".join(cells) == said


def test_a_chat_gives_the_template_arguments_of_its_own(tmp_path: Path) -> None:
    template = "{% if padded %}<|pad|>{% endif %}{{ messages[0]['content'] }}{{ said }}"
    with served(make_speaker(tmp_path, "hi", "a", template=template)) as server:

        def chat(**fields: Any) -> httpx.Response:
            messages = [{"role": "user", "content": "hi"}]
            return server.post({"model": "student", "messages": messages, **fields}, "/v1/chat/completions")

        for given, tokens in (
            ({}, 2), ({"padded": True}, 3), ({"padded": False, "other": 1}, 2), ({"said": "xyz"}, 5), (None, 2),
        ):  # fmt: skip
            assert chat(chat_template_kwargs=given).json()["usage"]["prompt_tokens"] == tokens
        for wrong, reason in (
            ([], "expected an object"), ({"messages": []}, "messages is given by the renderer itself"),
            ({"a b": 1}, "not a variable's name"), ({"a": "x" * (1 << 17)}, "expected at most 65536"),
        ):  # fmt: skip
            refused = chat(chat_template_kwargs=wrong)
            assert refused.status_code == 400 and reason in refused.json()["error"]["message"]
            assert refused.json()["error"]["param"] == "chat_template_kwargs"
        assert "holds <|end|>" in chat(chat_template_kwargs={"said": "<|end|>"}).json()["error"]["message"]
