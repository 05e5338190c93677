"""Reads the messages of a chat request as roles and texts, as OpenAI's, vLLM's and llama.cpp's servers take them."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from .http_errors import Refusal, name_json_type, quote_value

ROLES = ("system", "developer", "user", "assistant")
IGNORED = ("annotations", "provider_specific_fields", "cache_control", "id", "status", "phase")  # change no prompt
PARTS = ("text", "input_text", "output_text")  # the last two are /v1/responses'

Message = dict[str, str]  # `role` and `content`


def read_messages(messages: Any, field: str, template: str | None) -> list[Message]:
    """Reads the conversation in a request's `field`. Raises Refusal naming what is wrong.

    template: the chat template, None if the bundle has none. The role `developer` becomes `system` if the template
    does not name it. Without a template, empty `system` and `developer` messages are left out: they change nothing.
    """
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, f"{field} has to be a list of at least one message", field)
    read = [_read_message(f"{field}[{i}]", message, field) for i, message in enumerate(messages)]
    if not any(message["content"] for message in read):
        where = f"{field}[{len(read) - 1}].content"
        raise Refusal(400, f"{where} has to be text, and not empty", where)
    if template is None:
        return [message for message in read if message["content"] or message["role"] not in ("system", "developer")]
    known = "developer" in template
    return [{**m, "role": "system"} if m["role"] == "developer" and not known else m for m in read]


def read_input(given: Any, instructions: Any, template: str | None) -> list[Message]:
    """Returns the conversation in the `input` of /v1/responses, text or items, after `instructions`. Raises Refusal.

    The instructions and the system messages that begin `input` become one message: many templates allow only one.
    """
    if not isinstance(instructions, str):
        raise Refusal(400, f"instructions is {name_json_type(instructions)}; expected text", "instructions")
    if instructions and template is None:
        message = "instructions need a chat template, which this bundle has not; leave them out"
        raise Refusal(400, message, "instructions")
    if not isinstance(given, str | list):
        raise Refusal(400, f"input is {name_json_type(given)}; expected text or a list of items", "input")
    if isinstance(given, str):
        if not given:
            raise Refusal(400, "input has to be text or items, and not empty", "input")
        given = [{"role": "user", "content": given}]
    messages = read_messages([_read_item(i, item) for i, item in enumerate(given)], "input", template)
    if not instructions:
        return messages
    leading = [*takewhile(lambda message: message["role"] == "system", messages)]
    texts = [instructions, *(message["content"] for message in leading)]
    return [{"role": "system", "content": "\n\n".join(texts)}, *messages[len(leading) :]]


def _read_item(i: int, item: Any) -> Any:
    """Returns an item of /v1/responses as a message. Raises Refusal for an item of another type."""
    if not isinstance(item, dict):
        return item
    if item.get("type") not in (None, "message"):
        where = f"input[{i}].type"
        raise Refusal(400, f"{where} is {quote_value(item['type'])}; expected message alone", where)
    return {key: value for key, value in item.items() if key != "type"}


def _read_message(where: str, message: Any, field: str) -> Message:
    """Reads one message. Content in parts is joined; an assistant's missing content is read as an empty text."""
    if not isinstance(message, dict):
        raise Refusal(400, f"{where} is {name_json_type(message)}; expected an object", field)
    for key, value in message.items():
        if key not in ("role", "content", *IGNORED) and value not in (None, [], {}, "", False):
            name = f"{where}.{key[:80]}"
            raise Refusal(400, f"{name} is not supported here; leave it out", name)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise Refusal(400, f"{where}.role is {quote_value(role)}; expected one of {', '.join(ROLES)}", f"{where}.role")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = "".join(_read_part(part, f"{where}.content") for part in content)
    if not isinstance(content, str):
        raise Refusal(400, f"{where}.content is {name_json_type(content)}; expected text", f"{where}.content")
    return {"role": role, "content": content}


def _read_part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") not in PARTS:
        got = f"of type {quote_value(part.get('type'))}" if isinstance(part, dict) else name_json_type(part)
        raise Refusal(400, f"{where} has a part that is {got}; expected parts of type text alone", where)
    if not isinstance(part.get("text"), str):
        raise Refusal(400, f"{where} has a part whose text is {name_json_type(part.get('text'))}; expected text", where)
    return str(part["text"])
