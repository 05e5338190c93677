"""What OpenAI's, vLLM's and llama.cpp's servers take: requests that ask for nothing more pass, all else is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Served, served
from speaking import make_speaker

from runtime.server.auth import parse_host_name
from runtime.server.conversation import read_messages
from runtime.server.http_errors import Refusal
from runtime.server.neutral_fields import ANY, NEUTRAL, SAMPLING, check_neutral, is_same
from runtime.server.request import CHAT, COMPLETIONS

TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }} {% endfor %}a:"
USER = {"role": "user", "content": "hi"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "u:hi a:", "max_tokens": 4},
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 4},
}
ANYTHING: tuple[Any, ...] = ("x", 3, {"a": "b"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = make_speaker(tmp_path_factory.mktemp("fields"), "u:hi a:", "a quiet answer", template=TEMPLATE)
    with served(model, hosts=("127.0.0.1", "MyBox", "Other:8000", "::1")) as running:
        yield running


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def refusal_of(answer: httpx.Response) -> tuple[str, str]:
    """The field that a 400 names, and its line."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert "\n" not in error["message"]
    return error["param"], error["message"]


@pytest.mark.parametrize("field", NEUTRAL)
def test_a_field_that_asks_for_nothing_changes_nothing(server: Served, field: str) -> None:
    values = ANYTHING if NEUTRAL[field] == ANY else NEUTRAL[field]
    for path, body in BODIES.items():
        for value in values:
            assert text_of(server.post({**body, field: value}, path)) == "a qu", (path, value)


@pytest.mark.parametrize("field", [field for field, values in NEUTRAL.items() if values != ANY])
def test_its_other_values_are_refused_by_the_field_s_name(server: Served, field: str) -> None:
    for value in (7, "nonsense", ["nonsense"], *(int(v) for v in NEUTRAL[field] if isinstance(v, bool))):
        param, line = refusal_of(server.post({**BODIES["/v1/completions"], field: value}))
        assert param == field and line.startswith(field), value
    assert not any(is_same(True, value) for value in NEUTRAL[field] if value is not True)


def test_what_only_narrows_sampling_changes_nothing_at_a_temperature_of_0(server: Served) -> None:
    body = BODIES["/v1/completions"]
    for field in SAMPLING:
        assert text_of(server.post({**body, "temperature": 0.0, field: 0.5})) == "a qu"
        assert refusal_of(server.post({**body, field: 0.5}))[0] == field
        assert refusal_of(server.post({**body, "temperature": 0, field: "x"}))[0] == field


def test_no_reasoning_is_what_a_template_without_it_does(server: Served) -> None:
    body = BODIES["/v1/chat/completions"]
    assert text_of(server.post({**body, "reasoning_effort": "none"}, "/v1/chat/completions")) == "a qu"
    assert refusal_of(server.post({**body, "reasoning_effort": "low"}, "/v1/chat/completions"))[0] == "reasoning_effort"


NUMBERS: list[tuple[dict[str, Any], str | None]] = [
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -2}, "max_tokens"), ({"max_tokens": 100_000}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 100_000}, "max_completion_tokens"),
    ({"max_tokens": 4.5}, "max_tokens"), ({"max_tokens": True}, "max_tokens"), ({"max_tokens": "4"}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"), ({"n_predict": 4}, "n_predict"),
    ({"max_tokens": -1, "max_completion_tokens": 4}, None),
    ({"max_tokens": 4.0}, None), ({"max_tokens": 4, "max_completion_tokens": 4}, None),
    ({"max_tokens": None, "max_completion_tokens": 4}, None), ({"max_tokens": 4, "seed": 7.0}, None),
    ({"max_tokens": 4, "temperature": None, "top_p": None, "stop": None, "stream_options": None}, None),
    ({"max_tokens": 4, "model": ""}, None), ({"max_tokens": 4, "logprobs": False, "top_logprobs": 0}, None),
    ({"max_tokens": 4, "stream": False, "stream_options": {"include_usage": False}}, None),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "named"), NUMBERS)
def test_numbers_are_taken_as_json_has_them_or_blamed_on_the_field_that_was_sent(
    server: Served, fields: dict[str, Any], named: str | None
) -> None:
    answer = server.post({"messages": [USER], **fields}, "/v1/chat/completions")
    if named is None:
        assert text_of(answer) == "a qu"
    else:
        param, line = refusal_of(answer)
        assert param == named and line.startswith((named, "both")) and "max_new_tokens" not in line


def test_a_limit_of_minus_1_is_no_limit_as_llama_cpp_has_it(server: Served) -> None:
    for path, body in BODIES.items():
        assert text_of(server.post({**body, "max_tokens": -1}, path)) == "a quiet answer"


def test_a_prompt_that_does_not_fit_is_blamed_on_its_own_field(server: Served) -> None:
    long = "x" * 500
    assert refusal_of(server.post({"prompt": long, "max_tokens": 4}))[0] == "prompt"
    assert refusal_of(server.post({"prompt": long}))[0] == "prompt"
    chat = {"messages": [{"role": "user", "content": long}], "max_completion_tokens": 4}
    assert refusal_of(server.post(chat, "/v1/chat/completions"))[0] == "messages"
    assert refusal_of(server.post({"prompt": [99_999]}))[0] == "prompt"


def test_stream_options_take_what_changes_nothing(server: Served) -> None:
    body = {**BODIES["/v1/completions"], "stream": True}
    for options in ({"include_obfuscation": True}, {"include_obfuscation": False, "continuous_usage_stats": False}, {}):
        answer = server.post({**body, "stream_options": options})
        assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
    for options in ({"continuous_usage_stats": True}, {"other": 1}, []):
        assert refusal_of(server.post({**body, "stream_options": options}))[0] == "stream_options"


NOTHING = {
    "refusal": None, "tool_calls": [], "function_call": None, "audio": None, "annotations": [{"type": "url_citation"}],
    "provider_specific_fields": {"refusal": None},
}  # fmt: skip
SAID: list[tuple[Any, str]] = [
    ([{"role": "developer", "content": "be brief"}, USER], "system:be brief|user:hi"),
    ([{"role": "system", "content": ""}, USER], "system:|user:hi"),
    ([USER, {"role": "assistant", "content": ""}, USER], "user:hi|assistant:|user:hi"),
    ([USER, {"role": "assistant", "content": None}, USER], "user:hi|assistant:|user:hi"),
    ([USER, {"role": "assistant"}, USER], "user:hi|assistant:|user:hi"),
    ([USER, {"role": "assistant", "content": []}, USER], "user:hi|assistant:|user:hi"),
    ([{"role": "user", "content": ""}, USER], "user:|user:hi"),
    ([{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}], "user:hi"),
    ([USER, {"role": "assistant", "content": "yes", **NOTHING}, USER], "user:hi|assistant:yes|user:hi"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "expected"), SAID)
def test_messages_are_read_as_like_servers_read_them(server: Served, messages: Any, expected: str) -> None:
    read = read_messages(messages, "messages", TEMPLATE)
    assert "|".join(f"{m['role']}:{m['content']}" for m in read) == expected
    assert server.post({"messages": messages, "max_tokens": 1}, "/v1/chat/completions").status_code == 200


def test_a_template_that_knows_developers_gets_them_and_a_bundle_without_one_gets_no_empty_instructions() -> None:
    messages = [{"role": "developer", "content": ""}, USER]
    assert read_messages(messages, "messages", "{% if m.role == 'developer' %}")[0]["role"] == "developer"
    assert read_messages(messages, "messages", None) == [USER]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES: list[tuple[Any, str]] = [
    ([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER], "messages[1].tool_calls"),
    ([USER, {"role": "tool", "tool_call_id": "c", "content": "4"}], "messages[1].tool_call_id"),
    ([USER, {"role": "function", "content": "4"}], "messages[1].role"), ([{"content": "hi"}], "messages[0].role"),
    ([{"role": "user", "content": None}], "messages[0].content"), ([{"role": "user"}], "messages[0].content"),
    ([{"role": "system", "content": None}, USER], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "system", "content": ""}, {"role": "user", "content": ""}], "messages[1].content"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content"),
    ([{"role": "user", "content": ["hi"]}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}], "messages[0].content"),
    ([USER, {"role": "assistant", "content": "x", "refusal": "no"}], "messages[1].refusal"), ("hi", "messages"),
    (None, "messages"), ([], "messages"), ([5], "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "named"), MESSAGES)
def test_what_a_message_asks_for_beyond_text_is_named(server: Served, messages: Any, named: str) -> None:
    param, line = refusal_of(server.post({"messages": messages}, "/v1/chat/completions"))
    assert param == named and line.startswith(named)


def test_a_conversation_without_a_template_is_blamed_on_the_messages(tmp_path: Any) -> None:
    with served(make_speaker(tmp_path, "hi", "a quiet answer")) as plain:
        chat = {"messages": [{"role": "system", "content": ""}, USER], "max_tokens": 4}
        assert text_of(plain.post(chat, "/v1/chat/completions")) == "a qu"
        chat["messages"] = [{"role": "system", "content": "be brief"}, USER]
        assert refusal_of(plain.post(chat, "/v1/chat/completions"))[0] == "messages"


def test_fields_are_refused_in_their_order_of_arrival() -> None:
    for order in (("logit_bias", "zebra"), ("zebra", "logit_bias")):
        with pytest.raises(Refusal) as told:
            check_neutral(dict.fromkeys(order, 5), COMPLETIONS.fields | CHAT.fields, "")
        assert told.value.param == order[0]


def test_a_name_with_a_slash_is_found(tmp_path: Any) -> None:
    with served(make_speaker(tmp_path, "hi", "a quiet answer"), name="org/model") as own, own.client() as client:
        assert client.models.retrieve("org/model").id == client.models.list().data[0].id == "org/model"
        card = httpx.get(f"{own.url}/v1/models/org/model").json()
        assert card["id"] == "org/model" and card["blockstep"]["threshold_most"] == 1  # where the page's slider ends
        assert client.completions.create(model="org/model", prompt="hi").choices[0].text == "a quiet answer"
        assert httpx.get(f"{own.url}/v1/models/org/model/").json()["id"] == "org/model"
        assert httpx.get(f"{own.url}/v1/models/org/other").status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("mybox", 200), ("MyBox:8000", 200), ("MYBOX.", 200), ("other", 200), ("Other:9", 200), ("[::1]:80", 200),
        ("[::1]", 200), ("127.0.0.1", 200), ("yourbox", 403), ("mybox.evil.example", 403), ("", 403), ("[::2]", 403),
    ],
)  # fmt: skip
def test_a_host_is_known_in_any_case_and_at_any_port(server: Served, host: str, status: int) -> None:
    assert httpx.get(f"{server.url}/healthz", headers={"host": host}, verify=False).status_code == status


def test_a_host_s_name_has_no_port_no_case_and_no_final_dot() -> None:
    for text in ("Box", "box:80", "box.", "box.:80"):
        assert parse_host_name(text) == "box"
    assert parse_host_name("FE80::1") == parse_host_name("[fe80::1]:80") == "[fe80::1]"
