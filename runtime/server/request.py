"""Reads the JSON of requests and checks it field by field, before any decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..backend import Ints
from ..checked_fields import FLAG, TEXT, FieldRule, optional
from ..contract import Contract
from ..decoding.block_layout import check_ids, check_room
from ..decoding.options import DecodeOptions, Request, choose_contract, choose_mode, convert_token_ids, count_new_tokens
from ..decoding.sampling import check_sampling
from ..errors import UserError
from ..model import Model
from ..text.chat_template import check_arguments
from .conversation import read_input, read_messages
from .decision_request import FIELDS as DECISION_FIELDS
from .decision_request import DecisionRequest, read_decision
from .decision_room import fit_decision
from .http_errors import Refusal, blame, name_json_type, quote_value
from .neutral_fields import check_neutral

NUMBER = FieldRule("a number", lambda value: type(value) in (int, float))
WHOLE = FieldRule(  # JSON has one kind of number, and some clients write 16.0
    "a whole number", lambda value: value is None or type(value) is int or (type(value) is float and value.is_integer())
)
STOPS = 32  # OpenAI takes 4; vLLM and llama.cpp any number, and tasks of lm-eval send more than 4


@dataclass(frozen=True, slots=True)
class Api:
    """Lists an API's fields. prompt: the prompt's; limits: those that limit new tokens; fields: all others."""

    prompt: str
    limits: tuple[str, ...]
    fields: frozenset[str]


OWN = frozenset(("model", "stream", "stream_options", "temperature", "seed", "threshold", "mode"))
SCORED = OWN | {"stop", "logprobs", "stream_canvas"}
COMPLETIONS = Api("prompt", ("max_tokens",), SCORED)
CHAT = Api(
    "messages",
    ("max_completion_tokens", "max_tokens"),
    SCORED | DECISION_FIELDS | {"top_logprobs", "chat_template_kwargs", "response_format"},
)
RESPONSES = Api("input", ("max_output_tokens",), OWN | DECISION_FIELDS | {"instructions", "text"})


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """Holds a request for one answer.

    prompt: int64 [length]. best: whether `top_logprobs` lists the top-1 token. decision: what to decide before or
    instead of ordinary text.
    """

    prompt: Ints
    options: DecodeOptions
    chat: bool
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    canvas: bool = False
    logprobs: bool = False
    best: bool = False
    decision: DecisionRequest | None = None


def read_server_requests(
    model: Model, name: str, most: int | None, api: Api, body: Any, places: int, gated: bool = False
) -> tuple[ServerRequest, ...]:
    """Reads a parsed JSON body's requests, one per prompt; they differ in prompt, seed and room for new tokens.

    name: what the model is served as; most: the server's limit on new tokens per answer, None for none; places: how
    many prompts a body may have; gated: whether the server has a threshold for requests that give none, which are then
    decoded in the mode `block` if they name no mode. Raises Refusal naming the field that is wrong or not supported.
    """
    if not isinstance(body, dict):
        raise Refusal(400, f"the body is {name_json_type(body)}; expected a JSON object")
    fields = {key: value for key, value in body.items() if value is not None}
    check_neutral(fields, api.fields.union((api.prompt, *api.limits)), model.tokenizer.chat_template or "")
    if fields.get("model") not in (None, "", name):
        raise refuse_unknown_model(fields["model"], name)
    chat, stream = api is not COMPLETIONS, _read_flag(fields, "stream")
    decision = read_decision(fields, api is CHAT) if chat else None
    requests = _make_requests(model, api, fields, most, places, gated or "threshold" in fields)
    logprobs, best = _read_logprobs(fields, chat, requests[0].options.temperature > 0)
    shared: dict[str, Any] = {
        "chat": chat, "stop": _read_stops(fields), "stream": stream, "usage": _read_usage(fields, stream),
        "canvas": _read_canvas(fields, stream), "logprobs": logprobs, "best": best,
    }  # fmt: skip
    threshold = _read_threshold(model, fields, requests[0].options.mode)
    made = []
    for request in requests:
        tokens = count_new_tokens(model.contract, request.prompt, request.options)
        limited = tokens if most is None else min(most, tokens)
        options = replace(request.options, max_new_tokens=limited, threshold=threshold)
        if decision is not None:
            name, wanted = _find_limit(fields, api.limits, most)
            room = most if wanted is None else wanted
            param = "response_format" if api is CHAT else "text"
            shared["decision"] = fit_decision(model, request.prompt, decision, param, name, room)
        made.append(ServerRequest(request.prompt, options, **shared))
    return tuple(made)


def refuse_unknown_model(model: Any, name: str) -> Refusal:
    """Returns the refusal for a model that is not the one served as `name`."""
    return Refusal(404, f"model {quote_value(model)} is not served here; expected {name}", "model", "model_not_found")


def _read_sampling(model: Model, fields: Mapping[str, Any]) -> tuple[float, int | None]:
    """Returns temperature and seed. Raises Refusal if they are out of bounds or the engine cannot sample."""
    temperature, seed = _read_number(fields, "temperature", 0.0), _read_whole(fields, "seed")
    for name, arguments in (("temperature", (temperature, None)), ("seed", (0.0, seed))):
        try:
            check_sampling(model.contract, *arguments)
        except UserError as error:
            raise Refusal(400, str(error), name, "unsupported_value") from None
    return temperature, seed


def _make_requests(
    model: Model, api: Api, fields: Mapping[str, Any], most: int | None, places: int, gated: bool
) -> list[Request]:
    """Returns one request per prompt. If one does not fit, the Refusal names the prompt, or the field that limits new
    tokens if fewer of them would fit. gated: as in `choose_mode`."""
    temperature, seed = _read_sampling(model, fields)
    with blame("mode"):
        mode = choose_mode(model.contract, _read(fields, "mode", optional(TEXT), None), gated)
    contract = choose_contract(model.contract, mode)
    limit, wanted = _find_limit(fields, api.limits, most)
    prompts, made = _read_prompts(api, fields, places), list[Request]()
    for field, value in prompts.items():
        with blame(field):
            prompt = convert_token_ids(_read_prompt(model, api, fields, field, value, contract))
            check_ids(contract, prompt)
            check_room(contract, len(prompt), 1)
        with blame(limit, f"{limit} of {field}" if len(prompts) > 1 else limit):
            made.append(model.request(prompt, max_new_tokens=wanted, temperature=temperature, seed=seed, mode=mode))
    return made


def _find_limit(fields: Mapping[str, Any], limits: tuple[str, ...], most: int | None) -> tuple[str, int | None]:
    """Returns the field that limits the new tokens, and its value: None if no limit is given, or llama.cpp's -1."""
    fields = {name: fields[name] for name in limits if fields.get(name, -1) != -1}
    given = [*fields] or [limits[0]]
    numbers = [_read_whole(fields, name) for name in given]
    name, wanted = given[0], numbers[0]
    if wanted != numbers[-1]:
        raise Refusal(400, f"both {' and '.join(given)} are given; send one", given[-1])
    if wanted is not None and wanted < 1:
        raise Refusal(400, f"{name} is {wanted}; expected at least 1", name)
    if wanted is not None and most is not None and wanted > most:
        raise Refusal(400, f"{name} is {wanted}; this server gives at most {most}", name)
    return name, wanted


def _read_prompts(api: Api, fields: Mapping[str, Any], places: int) -> dict[str, Any]:
    """Returns a body's prompts by field name. A list of texts or of lists of token ids is one prompt per entry."""
    given = fields.get(api.prompt)
    if api is not COMPLETIONS or not isinstance(given, list) or not any(isinstance(one, str | list) for one in given):
        return {api.prompt: given}
    if len(given) > places:
        message = f"prompt has {len(given)} entries; this server holds {places} requests at once, so send fewer"
        raise Refusal(400, message, api.prompt)
    if len(given) == 1:
        return {api.prompt: given[0]}
    return {f"{api.prompt}[{place}]": one for place, one in enumerate(given)}


def _read_prompt(
    model: Model, api: Api, fields: Mapping[str, Any], field: str, prompt: Any, contract: Contract
) -> Ints | list[int]:
    tokenizer = model.tokenizer
    if api is RESPONSES:
        conversation = read_input(prompt, fields.get("instructions", ""), tokenizer.chat_template)
        return tokenizer.encode_messages(conversation)
    if api is CHAT:
        with blame("chat_template_kwargs"):
            arguments = check_arguments(fields.get("chat_template_kwargs", {}))
        return tokenizer.encode_messages(read_messages(prompt, api.prompt, tokenizer.chat_template), arguments)
    if isinstance(prompt, str) and prompt:
        return tokenizer.encode(prompt)
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        if len(prompt) > contract.capacity:  # before making an array for nothing
            check_room(contract, len(prompt), 1)
        return prompt
    what = "a text or a list of token ids" if field != api.prompt else "a text, a list of token ids, or a list of these"
    raise Refusal(400, f"{field} has to be {what}, and not empty", field)


def _read_stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > STOPS or not all(isinstance(s, str) and s for s in stops):
        raise Refusal(400, f"stop has to be a text, or a list of at most {STOPS}, none of them empty", "stop")
    return tuple(stops)


def _read_logprobs(fields: Mapping[str, Any], chat: bool, sampled: bool) -> tuple[bool, bool]:
    """Returns whether log-probabilities are requested, and whether the top-1 token's are too."""
    if not chat:
        top = None if fields.get("logprobs") is False else _read_whole(fields, "logprobs")
        _check_at_most_one("logprobs", top, sampled)
        return top is not None, top == 1
    wanted, top = _read_flag(fields, "logprobs"), _read_whole(fields, "top_logprobs")
    _check_at_most_one("top_logprobs", top, sampled)
    if top and not wanted:
        raise Refusal(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    return wanted, top == 1


def _check_at_most_one(name: str, value: int | None, sampled: bool) -> None:
    if sampled and value:
        raise Refusal(
            400, f"{name} is {value}; at a temperature only the sampled token is returned, so expected 0", name
        )
    if value not in (None, 0, 1):
        raise Refusal(400, f"{name} is {value}; only the top-1 token is returned, so expected 0 or 1", name)


def _read_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options", {})
    if not isinstance(options, dict):
        raise Refusal(400, f"stream_options is {name_json_type(options)}; expected an object", "stream_options")
    for key, value in options.items():  # obfuscation only pads chunks against eavesdroppers
        if key not in ("include_usage", "include_obfuscation") and value not in (None, False):
            raise Refusal(400, f"stream_options.{key} is not supported here; leave it out", "stream_options")
    wanted = _read_flag({k: v for k, v in options.items() if v is not None}, "include_usage")
    if wanted and not stream:
        raise Refusal(400, "stream_options needs stream to be true", "stream_options")
    return wanted


def _read_canvas(fields: Mapping[str, Any], stream: bool) -> bool:
    canvas = _read_flag(fields, "stream_canvas")
    if canvas and not stream:
        raise Refusal(400, "stream_canvas needs stream to be true", "stream_canvas")
    return canvas


def _read_threshold(model: Model, fields: Mapping[str, Any], mode: str | None) -> float | None:
    if "threshold" not in fields:
        return None
    if mode != "block":
        raise Refusal(400, f"a threshold was given with mode {mode}, which has no gate; send one of them", "threshold")
    try:
        return model.gate.check_threshold(_read_number(fields, "threshold", 0.0), model.contract.vocab)
    except UserError as error:
        raise Refusal(400, str(error), "threshold") from None


def _read(fields: Mapping[str, Any], name: str, expected: FieldRule, default: Any) -> Any:
    value = fields.get(name, default)
    if not expected.holds(value):
        raise Refusal(400, f"{name} is {name_json_type(value)}; expected {expected.text}", name)
    return value


def _read_flag(fields: Mapping[str, Any], name: str) -> bool:
    return bool(_read(fields, name, FLAG, False))


def _read_whole(fields: Mapping[str, Any], name: str) -> int | None:
    value = _read(fields, name, WHOLE, None)
    return None if value is None else int(value)


def _read_number(fields: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(_read(fields, name, NUMBER, default))
    except OverflowError:
        raise Refusal(400, f"{name} is beyond the range of numbers", name) from None
