"""Reads what a request wants decided: the schema of the reply's text, and the functions that may be called."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ..checked_fields import one_of
from ..decisions.form import Probability
from ..decisions.schema import Budget, SchemaForm, read_schema
from ..errors import UserError
from .http_errors import Refusal, name_json_type, quote_value
from .neutral_fields import drop_nulls, is_same

FUNCTIONS = 128  # maximum per request, as at OpenAI
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MEANINGS: tuple[str, ...] = get_args(Probability)
CHOICES = ("none", "auto", "required")
OF_TEXT = ("stop", "logprobs", "top_logprobs", "mode", "temperature")  # fields that a decision does not use
FIELDS = frozenset(("tools", "tool_choice", "probability", "max_forwards"))


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """Describes what a request wants decided.

    text: the schema of the reply's text, None for ordinary text; functions: the arguments' schemas, by function name;
    optional: whether the reply may call no function; probability, max_forwards: as for `Model.decide`.
    """

    text: SchemaForm | None
    functions: Mapping[str, SchemaForm]
    optional: bool
    probability: Probability
    max_forwards: int | None

    @property
    def may_be_text(self) -> bool:
        """Returns whether the reply may be text from ordinary decoding."""
        return self.text is None and (self.optional or not self.functions)

    @property
    def has_free_text(self) -> bool:
        """Returns whether a schema contains a free text, which ordinary decoding writes."""
        return any(made.lengths for made in (*self.functions.values(), *([self.text] if self.text else [])))


def read_decision(fields: Mapping[str, Any], chat: bool) -> DecisionRequest | None:
    """Returns what a request wants decided, None if nothing. Raises Refusal.

    chat: whether the request came to /v1/chat/completions.
    """
    budget = Budget()
    text = _read_text_schema(fields, chat, budget)
    functions, optional = _read_functions(fields, chat, budget)
    probability, most = fields.get("probability", "parallel"), fields.get("max_forwards")
    if not one_of(MEANINGS).holds(probability):
        raise Refusal(
            400, f"probability is {quote_value(probability)}; expected {' or '.join(MEANINGS)}", "probability"
        )
    if most is not None and (type(most) is not int or most < 1):
        message = f"max_forwards is {quote_value(most)}; expected a whole number of forward passes, at least 1"
        raise Refusal(400, message, "max_forwards")
    if text is None and not functions:
        for name in ("probability", "max_forwards"):
            if name in fields:
                message = f"{name} is for decisions, but this request has neither a JSON schema nor tools; leave it out"
                raise Refusal(400, message, name)
        return None
    wanted = DecisionRequest(text, functions, optional, probability, most)
    if not wanted.may_be_text:
        _check_text_fields(fields, wanted.has_free_text)
    return wanted


def _check_text_fields(fields: Mapping[str, Any], free: bool) -> None:
    """Raises Refusal for a field that affects only ordinary text, unless its value changes nothing.

    free: whether there are free texts, for which `threshold` is allowed.
    """
    for name in OF_TEXT if free else (*OF_TEXT, "threshold"):
        value = fields.get(name)
        neutral = name in ("temperature", "top_logprobs") and is_same(value, 0)
        if neutral or value in (None, [], False) or (name == "mode" and value == "block"):
            continue
        advice = {
            "temperature": "a decision takes the most probable value of each field; send 0",
            "logprobs": "a decision has a distribution for each field, under blockstep.decision; leave it out",
        }.get(name, "a decision does not use it; leave it out")
        raise Refusal(400, f"{name} is {quote_value(value)}, but the reply is decided from a schema: {advice}", name)


def _read_text_schema(fields: Mapping[str, Any], chat: bool, budget: Budget) -> SchemaForm | None:
    """Returns the schema of the reply's text, from `response_format` of a chat or `text.format` of a response."""
    param, place = ("response_format", "response_format") if chat else ("text", "text.format")
    wanted = _read_object(fields.get(param, {}), param)
    if not chat:
        if wanted.get("verbosity", "medium") != "medium":
            raise Refusal(400, f"text.verbosity is {quote_value(wanted['verbosity'])}; expected medium", "text")
        for name in wanted:
            if name not in ("format", "verbosity"):
                raise Refusal(400, f"text.{name[:80]} is not supported here; leave it out", "text")
        wanted = _read_object(wanted.get("format", {}), place, param)
    kind = wanted.get("type", "text")
    if kind == "text":
        return None
    if kind != "json_schema":
        raise Refusal(400, f"{place}.type is {quote_value(kind)}; expected text or json_schema", param)
    if chat:
        place = f"{place}.json_schema"
        wanted = _read_object(wanted.get("json_schema"), place, param)
    return _read_schema(wanted.get("schema"), f"{place}.schema", param, budget)


def _read_functions(fields: Mapping[str, Any], chat: bool, budget: Budget) -> tuple[dict[str, SchemaForm], bool]:
    """Returns the functions that may be called, and whether the reply may call none."""
    tools = fields.get("tools", [])
    if not isinstance(tools, list) or len(tools) > FUNCTIONS:
        raise Refusal(
            400, f"tools is {name_json_type(tools)}; expected a list of at most {FUNCTIONS} functions", "tools"
        )
    choice, forced = _read_choice(fields.get("tool_choice", "auto"), chat)
    if choice == "none":
        return {}, True
    if not tools and choice != "auto":
        raise Refusal(400, "tool_choice requires a function, but tools has none", "tool_choice")
    named = dict[str, tuple[Any, str]]()
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        function = _read_function(tool, place, chat)
        place = f"{place}.function" if chat else place
        name = function.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in named:
            expected = "a name of its own of up to 64 letters, digits, _ and -"
            raise Refusal(400, f"{place}.name is {quote_value(name)}; expected {expected}", "tools")
        named[name] = function.get("parameters", {"type": "object", "properties": {}}), f"{place}.parameters"
    if forced is not None:
        if forced not in named:
            raise Refusal(400, f"tool_choice names {quote_value(forced)}, which is none of the tools", "tool_choice")
        named = {forced: named[forced]}
    read = {name: _read_schema(schema, place, "tools", budget) for name, (schema, place) in named.items()}
    return read, choice == "auto"


def _read_function(tool: Any, place: str, chat: bool) -> dict[str, Any]:
    tool = _read_object(tool, place, "tools")
    if tool.get("type") != "function":
        message = f"{place}.type is {quote_value(tool.get('type'))}; expected function, as no other tool is here"
        raise Refusal(400, message, "tools")
    return _read_object(tool.get("function"), f"{place}.function", "tools") if chat else tool


def _read_choice(choice: Any, chat: bool) -> tuple[str, str | None]:
    """Returns one of CHOICES, and the name of the function that has to be called, None if no name is given."""
    if isinstance(choice, str) and choice in CHOICES:
        return choice, None
    form = {"type": "function", "function": {"name": "f"}} if chat else {"type": "function", "name": "f"}
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function") if chat else choice
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return "required", str(function["name"])
    message = f"tool_choice is {quote_value(choice)}; expected {', '.join(CHOICES)} or {json.dumps(form)}"
    raise Refusal(400, message, "tool_choice")


def _read_schema(schema: Any, place: str, param: str, budget: Budget) -> SchemaForm:
    try:
        return read_schema(schema, place, budget)
    except UserError as error:
        raise Refusal(400, str(error), param, "unsupported_schema") from None


def _read_object(value: Any, place: str, param: str | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refusal(400, f"{place} is {name_json_type(value)}; expected an object", param or place)
    return dict(drop_nulls(value))
