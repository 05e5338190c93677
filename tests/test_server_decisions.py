"""Decisions over HTTP, asked by OpenAI's unmodified client and its helpers: they are what Model.decide says."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import openai
import pytest
from deciding import make_deciding_bundle
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel
from pydantic import Field as Described
from serving import SAMPLES, Served, served
from speaking import BYTES
from test_decisions_schema import BOOLEAN, obj

from runtime import Model, load
from runtime.backend import Forward, Proposal
from runtime.decisions.encoded_form import EncodedField, count_candidates
from runtime.decisions.form import Field
from runtime.decisions.function_calls import decide_call
from runtime.decisions.schema import read_schema
from runtime.decoding.options import DecodeOptions
from runtime.server.decision_request import DecisionRequest
from runtime.server.decision_room import _count_prefixes
from runtime.server.events import FinishedBlock
from runtime.server.request import ServerRequest
from runtime.server.worker_pool import BatchDecoder, Job

PROMPTS = ["where is it", "a", "12345 6"]  # of which `auto` makes text, a call of `st` and one of `go`


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    """Where it is."""

    color: Color
    floor: Annotated[int, Described(ge=-1, lt=2)]
    sure: bool | None


class Note(BaseModel):
    place: Place
    text: str = Described(max_length=8)


class GetWeather(BaseModel):
    city: Literal["Rome", "Oslo"]
    unit: Literal["C", "F"] | None


class Stop(BaseModel):
    pass


# Names of as many bytes as `null`: a longer one has more factors, and would hardly ever be chosen at random.
TOOLS: list[Any] = [pydantic_function_tool(GetWeather, name="go"), pydantic_function_tool(Stop, name="st")]
FLAT: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]
FUNCTIONS = {tool["function"]["name"]: read_schema(tool["function"]["parameters"]) for tool in TOOLS}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_deciding_bundle(tmp_path_factory.mktemp("deciding"), "--dialect", "standard")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return load(bundle, engine="standard", threads=1, verify="never")


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Served]:
    with served(model.share(), workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OpenAI]:
    with server.client() as made:
        yield made


def messages(prompt: str) -> Any:
    return [{"role": "user", "content": prompt}]


def decision_of(reply: Any) -> dict[str, Any]:
    """The documented extra key."""
    found: dict[str, Any] = reply.model_extra["blockstep"]["decision"]
    return found


@pytest.mark.parametrize("kind", [Place, Note])
@pytest.mark.parametrize("probability", [None, "ordered"])
def test_parse_gives_what_decide_says(client: OpenAI, model: Model, kind: Any, probability: str | None) -> None:
    extra = {} if probability is None else {"extra_body": {"probability": probability}}
    for prompt in PROMPTS[:2]:
        expected = model.decide(prompt, kind, probability=probability or "parallel")
        chat: Any = client.chat.completions.parse(
            model="student", messages=messages(prompt), response_format=kind, max_tokens=300, temperature=0, **extra
        )
        choice = chat.choices[0]
        assert choice.message.parsed == expected.value and choice.message.content == expected.text
        assert choice.finish_reason == "stop" and choice.message.tool_calls is None
        assert chat.usage.completion_tokens == len(model.tokenizer.encode(expected.text))
        said = json.loads(json.dumps(expected.as_json()))
        assert decision_of(chat) == said and chat.model_extra["blockstep"]["forwards"] == expected.forwards
        response: Any = client.responses.parse(model="student", input=prompt, text_format=kind, **extra)
        assert response.output_parsed == expected.value and response.output_text == expected.text
        assert decision_of(response) == said and response.status == "completed"
        assert response.text.format.type == "json_schema" and response.text.format.name == kind.__name__


def test_streams_end_in_the_same_value(client: OpenAI, model: Model) -> None:
    expected = model.decide(PROMPTS[0], Note)
    with client.chat.completions.stream(model="student", messages=messages(PROMPTS[0]), response_format=Note) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final: Any = stream.get_final_completion()
    assert [text for text in deltas if text] == [expected.text] and final.choices[0].message.parsed == expected.value
    assert final.choices[0].finish_reason == "stop"
    plain: Any = client.chat.completions.create(
        model="student", messages=messages(PROMPTS[0]), stream=True, stream_options={"include_usage": True},
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": Note.model_json_schema()}},
        extra_body={"stream_canvas": True},
    )  # fmt: skip
    chunks = list(plain)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert decision_of(chunks[-2]) == json.loads(json.dumps(expected.as_json())) and chunks[-1].usage
    assert not any("canvas" in (chunk.model_extra or {}) for chunk in chunks)
    with client.responses.stream(model="student", input=PROMPTS[0], text_format=Note) as events:
        names = [event.type for event in events]
        response: Any = events.get_final_response()
    assert response.output_parsed == expected.value and names.count("response.output_text.delta") == 1
    assert [name for name in names if "output_item" in name] == [
        "response.output_item.added", "response.output_item.done",
    ]  # fmt: skip


@pytest.mark.parametrize("forced", [True, False], ids=["forced", "required"])
def test_a_function_s_call_is_parsed(client: OpenAI, model: Model, forced: bool) -> None:
    functions = {"go": FUNCTIONS["go"]} if forced else FUNCTIONS
    choice: Any = {"type": "function", "function": {"name": "go"}} if forced else "required"
    flat: Any = {"type": "function", "name": "go"} if forced else "required"
    for prompt in PROMPTS:
        expected = decide_call(model, model.tokenizer.encode_chat(prompt), functions, False)
        chat: Any = client.chat.completions.parse(
            model="student", messages=messages(prompt), tools=TOOLS, tool_choice=choice
        )
        [call] = chat.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == (expected.name, expected.arguments)
        if call.function.name == "go":
            assert call.function.parsed_arguments == GetWeather.model_validate_json(expected.arguments)
        assert chat.choices[0].finish_reason == "tool_calls" and chat.choices[0].message.content is None
        assert decision_of(chat) == json.loads(json.dumps(expected.decision.as_json()))
        with client.chat.completions.stream(
            model="student", messages=messages(prompt), tools=TOOLS, tool_choice=choice
        ) as stream:
            final: Any = stream.until_done().get_final_completion()
        [streamed] = final.choices[0].message.tool_calls
        assert streamed.function == call.function and final.choices[0].finish_reason == "tool_calls"
        response: Any = client.responses.create(model="student", input=prompt, tools=FLAT, tool_choice=flat)
        [item] = response.output
        assert (item.type, item.name, item.arguments) == ("function_call", expected.name, expected.arguments)
        assert item.call_id and item.status == "completed" and response.tools[0].name == "go"
        with client.responses.stream(model="student", input=prompt, tools=FLAT, tool_choice=flat) as events:
            kinds = [event.type for event in events]
            last: Any = events.get_final_response()
        assert kinds == [
            "response.created", "response.in_progress", "response.output_item.added",
            "response.function_call_arguments.delta", "response.function_call_arguments.done",
            "response.output_item.done", "response.completed",
        ]  # fmt: skip
        assert (last.output[0].name, last.output[0].arguments) == (expected.name, expected.arguments)


def test_auto_calls_a_function_or_says_what_it_says_without_tools(client: OpenAI, model: Model) -> None:
    called = set()
    for prompt in PROMPTS:
        expected = decide_call(model, model.tokenizer.encode_chat(prompt), FUNCTIONS, True)
        called.add(expected.name)
        asked: Any = {"model": "student", "messages": messages(prompt), "tools": TOOLS, "max_tokens": 60}
        chat: Any = client.chat.completions.create(**asked)
        said = json.loads(json.dumps(expected.decision.as_json()))
        if expected.name is not None:
            assert chat.choices[0].message.tool_calls[0].function.arguments == expected.arguments
            continue
        assert decision_of(chat) == said and chat.choices[0].message.tool_calls is None
        assert chat.choices[0].message.content == model.generate(prompt, max_new_tokens=60).text
        typed: Any = client.chat.completions.parse(**{**asked, "max_tokens": 300}, response_format=Place)
        place = model.decide(prompt, Place)
        assert typed.choices[0].message.parsed == place.value
        assert decision_of(typed)["forwards"] == expected.decision.forwards + place.forwards
        assert decision_of(typed)["fields"] == said["fields"] + json.loads(json.dumps(place.as_json()))["fields"]
    assert called == {None, "go", "st"}


def test_tools_that_are_not_to_be_called_change_nothing(client: OpenAI, model: Model) -> None:
    chat: Any = client.chat.completions.create(
        model="student", messages=messages("a"), tools=TOOLS, tool_choice="none", max_tokens=20
    )
    assert chat.choices[0].message.content == model.generate("a", max_new_tokens=20).text
    assert "decision" not in chat.model_extra["blockstep"]


def test_a_partial_decision_is_told_as_a_length(client: OpenAI, model: Model) -> None:
    part = model.decide(PROMPTS[0], Place, max_forwards=4)
    assert part.partial
    asked: Any = {"model": "student", "messages": messages(PROMPTS[0]), "extra_body": {"max_forwards": 4}}
    with pytest.raises(openai.LengthFinishReasonError) as cut:
        client.chat.completions.parse(**asked, response_format=Place)
    assert cut.value.completion.choices[0].message.content == part.text
    response: Any = client.responses.create(
        model="student", input=PROMPTS[0], extra_body={"max_forwards": 4},
        text={"format": {"type": "json_schema", "name": "p", "schema": Place.model_json_schema()}},
    )  # fmt: skip
    assert response.status == "incomplete" and response.output_text == part.text
    call: Any = client.chat.completions.create(**asked, tools=TOOLS[:1], tool_choice="required")
    assert call.choices[0].finish_reason == "length" and decision_of(call)["partial"] is True


def schema_format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


WORD = schema_format({"enum": ["a", "b"]})
CALL = {"type": "function", "function": {"name": "f"}}
LONG = [{"type": "function", "function": {"name": "".join(Random(i).choices("abc", k=64))}} for i in range(99)]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_object"}}, "response_format", "response_format.type is 'json_object'; "),
    ({"response_format": "x"}, "response_format", "response_format is text"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "response_format.json_schema is null"),
    (schema_format(None), "response_format", "response_format.json_schema.schema is null"),
    (schema_format(obj(age={"type": "integer"})), "response_format",
     "response_format.json_schema.schema.properties.age is an integer without a minimum"),
    (schema_format(obj(a={"type": "string", "pattern": "a+"})), "response_format",
     "response_format.json_schema.schema.properties.a.pattern "),
    (schema_format({"$ref": "#"}), "response_format", "response_format.json_schema.schema.$ref "),
    (schema_format({"type": "integer", "minimum": 0, "maximum": 10**9}), "response_format",
     "response_format.json_schema.schema has 1000000001 values"),
    (schema_format({"enum": [f"{i:400}" for i in range(9)]}), "response_format", "response_format: a prompt of"),
    (schema_format({"enum": [chr(33 + i) for i in range(90)]}), "response_format",
     "response_format: the values of the field continue the same beginning with 88 different tokens"),
    (schema_format({"enum": [chr(256 + i) * 60 for i in range(99)]}), "response_format",
     "response_format: the values begin in 11"),
    ({**WORD, "max_tokens": 2}, "max_tokens", "max_tokens is 2, but the schema's longest reply has 3 tokens"),
    ({**schema_format({"const": "x" * 9}), "max_tokens": 3}, "max_tokens",
     "max_tokens is 3, but the schema's longest reply has 11 tokens"),
    ({"tools": [CALL], "tool_choice": "required", "max_tokens": 3}, "max_tokens", "max_tokens is 3, but the schema's"),
    ({"tools": [CALL], **schema_format({"enum": [f"{i:400}" for i in range(9)]})}, "response_format",
     "response_format: a prompt of"),
    ({"tools": LONG}, "tools", "tools: the values begin in"),
    ({"tools": [CALL], "messages": [{"role": "user", "content": "a" * 360}]}, "tools", "tools: a prompt of 36"),
    ({**WORD, "stop": ["x"]}, "stop", "stop is a list, but the reply is decided"),
    ({**WORD, "temperature": 0.5}, "temperature", "temperature is 0.5"),
    ({**WORD, "logprobs": True}, "logprobs", "logprobs is True"),
    ({**WORD, "threshold": 0.5}, "threshold", "threshold is 0.5"),
    ({**WORD, "probability": "both"}, "probability", "probability is 'both'; expected parallel or ordered"),
    ({**WORD, "max_forwards": 0}, "max_forwards", "max_forwards is 0"),
    ({"max_forwards": 3}, "max_forwards", "max_forwards is for decisions"),
    ({"tools": {}}, "tools", "tools is an object"),
    ({"tools": [CALL] * 129}, "tools", "tools is a list; expected a list of at most 128"),
    ({"tools": [{"type": "web_search"}]}, "tools", "tools[0].type is 'web_search'"),
    ({"tools": [{"type": "function"}]}, "tools", "tools[0].function is null"),
    ({"tools": [CALL, CALL]}, "tools", "tools[1].function.name is 'f'; expected a name of its own"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "tools[0].function.name is 'a b'"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "number"}}}]}, "tools",
     "tools[0].function.parameters.type is"),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice requires a function, but tools has none"),
    ({"tools": [CALL], "tool_choice": "any"}, "tool_choice", "tool_choice is 'any'; expected none, auto, required or"),
    ({"tools": [CALL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice",
     "tool_choice names 'g', which is none of the tools"),
    ({"tools": [CALL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "tool_choice is an object; expected"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "line"), REFUSED, ids=[line[:60] for _, _, line in REFUSED])
def test_what_cannot_be_decided_is_a_400_that_names_it(
    server: Served, body: dict[str, Any], param: str, line: str
) -> None:
    answer = server.post({"messages": messages("a"), **body}, "/v1/chat/completions")
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["message"].startswith(line)
    assert error["param"] == param
    assert server.post({"messages": messages("a"), **WORD}, "/v1/chat/completions").status_code == 200


def response_text(default: str, stream: bool = False) -> bytes:
    """A body of /v1/responses whose schema has a default, JSON text, that says nothing about its values."""
    schema = f'{{"enum": ["a", "b"], "default": {default}}}'
    form = f'{{"type": "json_schema", "name": "n", "schema": {schema}}}'
    return f'{{"input": "a", "stream": {json.dumps(stream)}, "text": {{"format": {form}}}}}'.encode()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_what_is_repeated_of_a_schema_is_json(server: Served, number: str, stream: bool) -> None:
    answer = server.post(response_text(number, stream), "/v1/responses")
    text = answer.text if not stream else answer.text.rpartition("data: ")[2]
    found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert answer.status_code == 200
    assert (found["response"] if stream else found)["text"]["format"]["schema"]["default"] is None


def test_what_is_nested_too_deeply_to_be_repeated_is_a_400(server: Served) -> None:
    answer = server.post(response_text("[" * 900 + "]" * 900), "/v1/responses")
    assert answer.status_code == 400 and "is nested too deeply" in answer.json()["error"]["message"]
    assert server.post(response_text("[" * 300 + "]" * 300), "/v1/responses").status_code == 200


class Barring:
    """A backend of one sequence that never gives a token: byte `z`."""

    token = BYTES + ord("z")

    def __init__(self, inner: Any) -> None:
        self.contract, self.name, self.open, self.keep = inner.contract, inner.name, inner.open, inner.keep
        self._inner = inner

    def forward(self, forward: Forward) -> Proposal:
        out: Proposal = self._inner.forward(forward)
        if out.candidate_logprob is not None and forward.candidates is not None:
            out.candidate_logprob[forward.candidates == self.token] = -1e30
        return out


@pytest.mark.parametrize("slots", [None, 2], ids=["a thread", "a batch"])
def test_a_value_that_the_model_never_gives_is_the_client_s_mistake(model: Model, slots: int | None) -> None:
    """It shows only when it is decided, after the request was queued."""
    barring = replace(model.share(), backend=Barring(model.share().backend))
    line = f"a value holds the token {Barring.token}, which this model never gives"
    with served(barring, slots=slots) as running:
        body = {"messages": messages("a"), **schema_format({"enum": ["z", "y"]})}
        answer = running.post(body, "/v1/chat/completions")
        assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(line)
        assert line in running.post({**body, "stream": True}, "/v1/chat/completions").text
        sent = json.loads(response_text("0", True).replace(b'"b"', b'"z"'))
        last = json.loads(running.post(sent, "/v1/responses").text.rpartition("data: ")[2])
        assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "invalid_prompt"
        assert running.post({"messages": messages("a"), **WORD}, "/v1/chat/completions").status_code == 200


VALUES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=2, max_size=8, unique=True)


@given(st.lists(VALUES, max_size=3))
def test_beginnings_are_counted_as_they_are(fields: list[list[tuple[int, ...]]]) -> None:
    encoded_fields = [EncodedField(Field((), ("a",)), tuple(values)) for values in fields]
    expected = sum(len({(len(v), v[:level]) for v in values for level in range(len(v))}) for values in fields)
    assert _count_prefixes([(1, 2), *encoded_fields]) == expected


@given(VALUES)
def test_candidates_are_counted_as_they_are(values: list[tuple[int, ...]]) -> None:
    field, levels = EncodedField(Field((), ("a",)), tuple(values)), range(max(map(len, values)))
    expected = [len({values[i][level] for i in places}) for level in levels for *_, places in field.list_nodes(level)]
    assert count_candidates(values) == max(expected)


def test_functions_share_the_bounds_of_one_schema(server: Served) -> None:
    wide = obj(**{f"f{i}": {"enum": list(range(500))} for i in range(4)})
    tools = [{"type": "function", "function": {"name": f"g{i}", "parameters": wide}} for i in range(3)]
    answer = server.post({"messages": messages("a"), "tools": tools}, "/v1/chat/completions")
    assert answer.status_code == 400 and "values of all fields above 4096" in answer.json()["error"]["message"]


def test_a_function_may_have_the_name_of_a_choice(server: Served) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("auto", "none")]
    choice = {"type": "function", "function": {"name": "none"}}
    body = {"messages": messages("a"), "tools": tools, "tool_choice": choice}
    called = server.post(body, "/v1/chat/completions").json()["choices"][0]["message"]["tool_calls"][0]["function"]
    assert called == {"name": "none", "arguments": "{}"}


def test_free_texts_are_made_to_fit_the_tokens(client: OpenAI, model: Model) -> None:
    schema = obj(a={"type": "string"}, b=BOOLEAN, c={"type": "string"})
    least = len('{"a":"","b":false,"c":""}') + 2
    for most in (least, least + 11):
        chat: Any = client.chat.completions.create(
            model="student", messages=messages("a"), max_tokens=most, **schema_format(schema)
        )
        value = json.loads(chat.choices[0].message.content)
        shares = (most - least + 2) // 2
        assert len(value["a"].encode()) <= shares and len(value["c"].encode()) <= shares
        assert decision_of(chat)["fields"][0]["confidence"] is None
    with pytest.raises(openai.BadRequestError, match="longest reply has"):
        client.chat.completions.create(
            model="student", messages=messages("a"), max_tokens=least - 1, **schema_format(schema)
        )


def test_a_bundle_without_candidates_says_how_to_export_it() -> None:
    student = load(SAMPLES / "student.bundle", threads=1, verify="never")
    with served(student) as running:
        for path, body in (
            ("/v1/chat/completions", {"messages": messages("a"), **WORD}),
            ("/v1/chat/completions", {"messages": messages("a"), "tools": TOOLS}),
            ("/v1/responses", {"input": "a", "tools": FLAT}),
        ):
            answer = running.post(body, path)
            assert answer.status_code == 400 and "export it with --candidates" in answer.json()["error"]["message"]
        card = running.post({"messages": messages("a"), "max_tokens": 3}, "/v1/chat/completions")
        assert card.status_code == 200


@pytest.mark.parametrize("own_cache", [True, False], ids=["a KV cache of its own", "the batch's"])
def test_a_running_batch_decides_between_its_forward_passes(model: Model, own_cache: bool) -> None:
    """Texts and decisions mixed, three at a time: each reply is the solo one."""
    shared = model.share()
    if not own_cache:
        hidden = Unshared(shared.backend)
        shared = replace(shared, backend=hidden)  # type: ignore[arg-type]
    texts = {prompt: model.generate(prompt, max_new_tokens=40).text for prompt in PROMPTS}
    places = {prompt: model.decide(prompt, Place).text for prompt in PROMPTS}
    with served(shared, slots=3) as running, running.client() as client, ThreadPoolExecutor(6) as pool:

        def ask(number: int) -> tuple[str, str]:
            prompt = PROMPTS[number % len(PROMPTS)]
            asked: Any = {"model": "student", "messages": messages(prompt)}
            if number % 3:
                got: Any = client.chat.completions.create(**asked, max_tokens=40)
                return texts[prompt], got.choices[0].message.content
            got = client.chat.completions.parse(**asked, response_format=Place)
            return places[prompt], got.choices[0].message.content

        for expected, got in pool.map(ask, range(18)):
            assert got == expected


class Logged:
    """A backend that notes each forward pass, by its name; shared ones are named `decision`."""

    def __init__(self, inner: Any, name: str, log: list[str]) -> None:
        self._inner, self._name, self._log = inner, name, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def share(self) -> Logged:
        return Logged(self._inner.share(), "decision", self._log)

    def forward(self, forward: Forward) -> Proposal:
        self._log.append(self._name)
        made: Proposal = self._inner.forward(forward)
        return made


class OneThread:
    """Gives a decoder these jobs, on the test's own thread, and notes when the third was taken."""

    def __init__(self, jobs: list[Job], log: list[str]) -> None:
        self.jobs, self.log, self.taken, self.ended = jobs, log, 0, 0

    def take(self, wait: bool) -> Job | None:
        if not self.jobs:
            return None
        self.taken += 1
        if self.taken == 3:
            self.log.append("third")
        return self.jobs.pop(0)

    def choose_threshold(self, job: Job) -> None:
        return None

    def record_end(self, job: Job) -> None:
        self.ended += 1

    def fail(self, job: Job, error: Exception) -> None:
        raise error


def test_no_answer_waits_for_a_decisions_end_while_the_batch_and_a_decision_run(model: Model) -> None:
    log: list[str] = []
    logged = replace(model.share(), backend=Logged(model.share().backend, "batch", log))  # type: ignore[arg-type]
    prompt = model.tokenizer.encode("a")
    schema = read_schema(obj(a=BOOLEAN, b=BOOLEAN, c=BOOLEAN))
    wanted = DecisionRequest(schema, {}, False, "ordered", None)
    heard: list[list[Any]] = [[], [], []]
    asked = [ServerRequest(prompt, DecodeOptions(60, threshold=1.0), chat=False) for _ in heard]
    asked[1] = replace(asked[1], decision=wanted)
    workers = OneThread([Job(ask, own.append) for ask, own in zip(asked, heard, strict=True)], log)
    BatchDecoder(logged, 2).run(workers)  # type: ignore[arg-type]
    texts = ["".join(event.text for event in own if isinstance(event, FinishedBlock)) for own in heard]
    alone = model.generate(prompt, max_new_tokens=60, threshold=1.0).text
    assert workers.ended == 3 and texts[::2] == [alone, alone]
    assert texts[1] == model.decide(prompt, obj(a=BOOLEAN, b=BOOLEAN, c=BOOLEAN), probability="ordered").text
    last = len(log) - 1 - log[::-1].index("decision")
    passes = [name for name in log[:last] if name != "third"]
    adjacent = sum(pair == ("decision", "decision") for pair in pairwise(passes))
    assert passes.count("decision") >= 3 and adjacent <= 1, log  # the prompt's prefill is not counted
    assert log.index("third") < last, "a request behind a decision joins the batch while that runs"


class Unshared:
    """A backend that nobody else may use, as TensorRT's: all of the other one but `share`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "share":
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_the_batch_s_decoder_is_as_the_test_before_means_it(model: Model) -> None:
    alone = replace(model.share(), backend=Unshared(model.share().backend))  # type: ignore[arg-type]
    assert BatchDecoder(model.share(), 2)._own_cache and not BatchDecoder(alone, 2)._own_cache
