"""/v1/responses by OpenAI's own client, unmodified: its answers are the chat's, its events come in their order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from serving import Served, served
from speaking import every_other, make_speaker

from runtime.server.conversation import read_input

TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }} {% endfor %}a:"
ANSWER = "a quiet answer"
EVENTS = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.done", "response.content_part.done",
    "response.output_item.done", "response.completed",
]  # fmt: skip
SENT = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
     "content": [{"type": "output_text", "text": "yes", "annotations": [], "logprobs": []}]},
    {"role": "user", "content": "and?"},
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = make_speaker(tmp_path_factory.mktemp("said"), "u:hi a:", ANSWER, every_other, template=TEMPLATE)
    with served(model) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OpenAI]:
    with server.client() as made:
        yield made


def test_a_whole_response_is_the_chat_s_answer(client: OpenAI) -> None:
    got = client.responses.create(model="student", input="hi", metadata={"run": "7"})
    chat = client.chat.completions.create(model="student", messages=[{"role": "user", "content": "hi"}])
    assert got.output_text == chat.choices[0].message.content == ANSWER and chat.usage is not None
    assert (got.status, got.object, got.error, got.incomplete_details) == ("completed", "response", None, None)
    assert got.id.startswith("resp_") and got.model == "student" and got.metadata == {"run": "7"}
    item: Any = got.output[0]
    assert (item.type, item.role, item.status, item.content[0].type) == (
        "message",
        "assistant",
        "completed",
        "output_text",
    )
    usage: Any = got.usage
    assert (usage.input_tokens, usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    assert usage.total_tokens == chat.usage.total_tokens
    assert usage.input_tokens_details.cached_tokens == usage.output_tokens_details.reasoning_tokens == 0
    assert got.model_extra["blockstep"]["finish"] == "eos" and got.model_extra["store"] is False  # type: ignore[index]


def test_a_stream_s_events_come_in_the_documented_order_with_rising_numbers(client: OpenAI) -> None:
    events: list[Any] = list(client.responses.create(model="student", input="hi", stream=True))
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == EVENTS and kinds.count("response.output_text.delta") == 4
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    done = events[kinds.index("response.output_text.done")]
    assert "".join(event.delta for event in deltas) == done.text == events[-1].response.output_text == ANSWER
    assert {event.item_id for event in deltas} == {done.item_id, events[2].item.id, events[-1].response.output[0].id}
    assert events[0].response.status == events[1].response.status == "in_progress"
    assert {event.response.id for event in (events[0], events[1], events[-1])} == {events[0].response.id}
    assert events[0].response.usage is None and events[-1].response.usage.output_tokens == len(ANSWER) + 1


@pytest.mark.parametrize("metadata", [{f"{i}": "" for i in range(17)}, {"a": "x" * 513}, {"k" * 65: ""}, {"a": 1}, []])
def test_metadata_beyond_openai_s_limits_are_not_written_into_every_event(server: Served, metadata: Any) -> None:
    got = server.post({"input": "hi", "metadata": metadata}, "/v1/responses")
    assert got.status_code == 200 and got.json()["metadata"] == {}


def test_a_stream_names_its_events_and_ends_with_the_last_of_them(server: Served) -> None:
    lines = server.post({"input": "hi", "stream": True}, "/v1/responses").text.rstrip("\n").split("\n\n")
    for line in lines:
        name, data = line.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert lines[-1].startswith("event: response.completed\n")


def test_the_client_s_own_helper_puts_a_stream_together(client: OpenAI) -> None:
    with client.responses.stream(model="student", input="hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == ANSWER and final.status == "completed"


def test_an_answer_that_was_cut_is_incomplete(client: OpenAI) -> None:
    got = client.responses.create(model="student", input="hi", max_output_tokens=3)
    assert (got.status, got.output_text, got.max_output_tokens) == ("incomplete", ANSWER[:3], 3)
    assert got.incomplete_details is not None and got.incomplete_details.reason == "max_output_tokens"
    assert got.output[0].status == "incomplete"  # type: ignore[union-attr]
    events: list[Any] = list(client.responses.create(model="student", input="hi", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == ANSWER[:3]


def test_items_and_instructions_make_the_chat_s_prompt(client: OpenAI) -> None:
    items: Any = SENT
    got = client.responses.create(model="student", input=items, instructions="be brief")
    messages: Any = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"},
    ]  # fmt: skip
    chat = client.chat.completions.create(model="student", messages=messages)
    assert got.output_text == chat.choices[0].message.content and got.instructions == "be brief"
    assert got.usage is not None and chat.usage is not None and got.usage.input_tokens == chat.usage.prompt_tokens
    assert read_input(SENT, "be brief", TEMPLATE) == messages


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI) -> None:
    first = client.responses.create(model="student", input="hi")
    items: Any = [{"role": "user", "content": "hi"}, *first.output, {"role": "user", "content": "and?"}]
    second = client.responses.create(model="student", input=items)
    assert second.status in ("completed", "incomplete")


def test_instructions_are_one_system_message_with_those_that_the_input_begins_with() -> None:
    developer, user = {"role": "developer", "content": "in French"}, {"role": "user", "content": "hi"}
    assert read_input([developer, user], "be brief", TEMPLATE) == [
        {"role": "system", "content": "be brief\n\nin French"}, user
    ]  # fmt: skip
    assert read_input([developer, user], "", TEMPLATE) == [{"role": "system", "content": "in French"}, user]
    assert read_input("hi", "", None) == [user]


NOTHING: list[dict[str, Any]] = [
    {"store": True}, {"store": False}, {"text": {"format": {"type": "text"}}}, {"text": {"verbosity": None}},
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {"truncation": "disabled"}, {"include": []},
    {"metadata": {"a": 5}, "user": "me"}, {"reasoning": {"effort": None, "summary": None}}, {"background": False},
    {"reasoning": {"effort": "none"}}, {"previous_response_id": None, "conversation": None, "prompt": None},
    {"service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "y", "top_p": 1.0, "top_logprobs": 0},
    {"instructions": ""}, {"instructions": None, "max_output_tokens": None},
    {"stream_options": {"include_obfuscation": False}},
]  # fmt: skip


@pytest.mark.parametrize("fields", NOTHING)
def test_what_asks_for_nothing_passes(server: Served, fields: dict[str, Any]) -> None:
    answer = server.post({"model": "student", "input": "hi", **fields}, "/v1/responses")
    assert answer.status_code == 200, answer.text
    assert answer.json()["output"][0]["content"][0]["text"] == ANSWER


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"), ({"prompt": {"id": "p"}}, "prompt"),
    ({"text": {"format": {"type": "json_object"}}}, "text"), ({"text": {"verbosity": "low"}}, "text"),
    ({"tools": [{"type": "web_search"}]}, "tools"), ({"tool_choice": "required"}, "tool_choice"),
    ({"include": ["message.output_text.logprobs"]}, "include"), ({"truncation": "auto"}, "truncation"),
    ({"reasoning": {"effort": "high"}}, "reasoning"), ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 10**6}, "max_output_tokens"), ({"max_tokens": 5}, "max_tokens"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "messages"), ({"instructions": 5}, "instructions"),
    ({"input": ""}, "input"), ({"input": None}, "input"), ({"input": []}, "input"), ({"input": 5}, "input"),
    ({"input": ["hi"]}, "input"), ({"input": "x" * 500}, "input"), ({"temperature": 7}, "temperature"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "4"}]}, "input[0].type"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input[0].type"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "4"}]}, "input[0].role"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "named"), REFUSED)
def test_what_would_change_the_answer_is_named(server: Served, fields: dict[str, Any], named: str) -> None:
    answer = server.post({"model": "student", "input": "hi", **fields}, "/v1/responses")
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == named and "\n" not in error["message"]
    assert error["message"].startswith(named)


def test_an_earlier_answer_is_not_kept(client: OpenAI) -> None:
    first = client.responses.create(model="student", input="hi", store=True)
    with pytest.raises(openai.BadRequestError, match="no answer is kept, so send the whole conversation as input"):
        client.responses.create(model="student", input="and?", previous_response_id=first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_instructions_without_a_template_are_refused(tmp_path: Any) -> None:
    with served(make_speaker(tmp_path, "hi", ANSWER)) as plain:
        assert plain.post({"input": "hi"}, "/v1/responses").json()["output"][0]["content"][0]["text"] == ANSWER
        refused = plain.post({"input": "hi", "instructions": "be brief"}, "/v1/responses")
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "instructions"


def test_a_failure_in_the_middle_ends_the_stream_as_failed(tmp_path: Any) -> None:
    def fails(forward: Any) -> Any:
        raise RuntimeError("broken on purpose")

    model = make_speaker(tmp_path, "hi", ANSWER)
    model.backend.script = fails  # type: ignore[attr-defined]
    with served(model) as broken, broken.client() as client:
        events: list[Any] = list(client.responses.create(model="student", input="hi", stream=True))
        assert events[-1].type == "response.failed" and events[-1].response.status == "failed"
        assert "the answer failed inside the server" in events[-1].response.error.message
        with pytest.raises(openai.InternalServerError):
            client.responses.create(model="student", input="hi")
