"""What a request's JSON asks for, checked field by field before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..backend import Ints
from ..chat_template import check_arguments
from ..errors import UserError
from ..layout import check_ids
from ..model import Model
from ..sample import check_sampling
from .refusal import Refusal

BOTH = {"model", "stream", "stream_options", "stop", "max_tokens", "temperature", "seed", "logprobs", "threshold"}
BOTH |= {"stream_canvas"}
RAW, CHAT = BOTH | {"prompt"}, BOTH | {"messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs"}
# Fields that some clients always send: with these values they ask for what is done anyway.
NEUTRAL: dict[str, Any] = {
    "n": 1, "best_of": 1, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "echo": False, "suffix": "",
    "logit_bias": {}, "tools": [], "response_format": {"type": "text"},
}  # fmt: skip
ROLES = ("system", "user", "assistant")
STOPS = 4  # as many stop strings as OpenAI takes


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for one answer. prompt: int64 [length]. best: whether the best token is listed beside itself.

    seed: what its tokens are drawn with, None at a temperature of 0.
    """

    prompt: Ints
    max_tokens: int
    chat: bool
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    canvas: bool = False
    logprobs: bool = False
    best: bool = False
    threshold: float | None = None
    temperature: float = 0.0
    seed: int | None = None


def read_ask(model: Model, name: str, most: int | None, chat: bool, body: Any) -> Ask:
    """The request that a decoded JSON body makes of `model`, served as `name`, with at most `most` new tokens.

    Raises Refusal naming the field that is wrong or not supported, and UserError where the request does not fit.
    """
    if not isinstance(body, dict):
        raise Refusal(400, f"the body is {_kind(body)}; expected a JSON object")
    fields = {key: value for key, value in body.items() if value is not None}
    for key in fields.keys() - (CHAT if chat else RAW):
        if key not in NEUTRAL or fields[key] != NEUTRAL[key]:
            raise Refusal(400, f"{key} is not supported here; leave it out", key, "unsupported_field")
    if fields.get("model", name) != name:
        raise unknown_model(fields["model"], name)
    temperature, seed = _sampling(model, fields)
    stream = _flag(fields, "stream")
    wanted = _room(fields, most)
    prompt = _messages(model, fields) if chat else _prompt(model, fields)
    request = model.request(prompt, max_new_tokens=wanted, temperature=temperature, seed=seed)
    check_ids(model.contract, request.prompt)
    logprobs, best = _logprobs(fields, chat, temperature > 0)
    tokens = request.max_new_tokens if most is None else min(most, request.max_new_tokens)
    return Ask(
        request.prompt, tokens, chat, _stops(fields), stream, _usage(fields, stream), _canvas(fields, stream),
        logprobs, best, _threshold(model, fields), temperature, request.seed,
    )  # fmt: skip


def unknown_model(asked: Any, name: str) -> Refusal:
    """For a model that is not the one served as `name`."""
    return Refusal(404, f"model {_shown(asked)} is not served here; expected {name}", "model", "model_not_found")


def _sampling(model: Model, fields: Mapping[str, Any]) -> tuple[float, int | None]:
    """Temperature and seed, where this engine can have them; at a temperature of 0 a seed changes nothing."""
    temperature, seed = _number(fields, "temperature", 0.0), _whole(fields, "seed")
    for name, asked in (("temperature", (temperature, None)), ("seed", (0.0, seed))):
        try:
            check_sampling(model.contract, *asked)
        except UserError as error:
            raise Refusal(400, str(error), name, "unsupported_value") from None
    return temperature, seed


def _room(fields: Mapping[str, Any], most: int | None) -> int | None:
    asked = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
    if len(asked) == 2:
        raise Refusal(400, "both max_tokens and max_completion_tokens are given; send one", "max_tokens")
    wanted = _whole(fields, asked[0]) if asked else None
    if wanted is not None and most is not None and wanted > most:
        raise Refusal(400, f"{asked[0]} is {wanted}; this server gives at most {most}", asked[0])
    return wanted


def _prompt(model: Model, fields: Mapping[str, Any]) -> Ints | list[int]:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, str) and prompt:
        return model.tokenizer.encode(prompt)
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise Refusal(400, "prompt has to be one text or one list of token ids, and not empty", "prompt")


def _messages(model: Model, fields: Mapping[str, Any]) -> Ints:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages has to be a list of at least one message", "messages")
    arguments = _template_arguments(fields)
    return model.tokenizer.encode_messages([_message(i, message) for i, message in enumerate(messages)], arguments)


def _template_arguments(fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return check_arguments(fields.get("chat_template_kwargs", {}))
    except UserError as error:
        raise Refusal(400, str(error), "chat_template_kwargs") from None


def _message(i: int, message: Any) -> dict[str, str]:
    """One message as role and text; content in parts is joined."""
    where = f"messages[{i}]"
    if not isinstance(message, dict):
        raise Refusal(400, f"{where} is {_kind(message)}; expected an object", "messages")
    for key, value in message.items():
        if key not in ("role", "content") and value not in (None, [], {}):
            raise Refusal(400, f"{where}.{key} is not supported here; leave it out", f"{where}.{key}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise Refusal(400, f"{where}.role is {_shown(role)}; expected one of {', '.join(ROLES)}", f"{where}.role")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(part["text"] if isinstance(part.get("text"), str) else "" for part in content)
    if not isinstance(content, str) or not content:
        raise Refusal(400, f"{where}.content has to be text, and not empty", f"{where}.content")
    return {"role": role, "content": content}


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > STOPS or not all(isinstance(s, str) and s for s in stops):
        raise Refusal(400, f"stop has to be a text, or a list of at most {STOPS}, none of them empty", "stop")
    return tuple(stops)


def _logprobs(fields: Mapping[str, Any], chat: bool, drawn: bool) -> tuple[bool, bool]:
    """Whether log probabilities are wanted, and whether the best token too, which is the token itself unless drawn."""
    if not chat:
        top = _whole(fields, "logprobs")
        _at_most_one("logprobs", top, drawn)
        return top is not None, top == 1
    wanted, top = _flag(fields, "logprobs"), _whole(fields, "top_logprobs")
    _at_most_one("top_logprobs", top, drawn)
    if top and not wanted:
        raise Refusal(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    return wanted, top == 1


def _at_most_one(name: str, value: int | None, drawn: bool) -> None:
    if drawn and value:
        raise Refusal(400, f"{name} is {value}; at a temperature the drawn token alone is told, so expected 0", name)
    if value not in (None, 0, 1):
        raise Refusal(400, f"{name} is {value}; the best token alone is told, so expected 0 or 1", name)


def _usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise Refusal(400, "stream_options may have include_usage alone", "stream_options")
    if options and not stream:
        raise Refusal(400, "stream_options needs stream to be true", "stream_options")
    return _flag({k: v for k, v in options.items() if v is not None}, "include_usage")


def _canvas(fields: Mapping[str, Any], stream: bool) -> bool:
    canvas = _flag(fields, "stream_canvas")
    if canvas and not stream:
        raise Refusal(400, "stream_canvas needs stream to be true", "stream_canvas")
    return canvas


def _threshold(model: Model, fields: Mapping[str, Any]) -> float | None:
    if "threshold" not in fields:
        return None
    try:
        return model.gate.check_threshold(_number(fields, "threshold", 0.0), model.contract.vocab)
    except UserError as error:
        raise Refusal(400, str(error), "threshold") from None


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise Refusal(400, f"{name} is {_kind(value)}; expected true or false", name)
    return value


def _whole(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and type(value) is not int:
        raise Refusal(400, f"{name} is {_kind(value)}; expected a whole number", name)
    return value


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float):
        raise Refusal(400, f"{name} is {_kind(value)}; expected a number", name)
    try:
        return float(value)
    except OverflowError:
        raise Refusal(400, f"{name} is beyond all numbers that a computer counts with", name) from None


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
