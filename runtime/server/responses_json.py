"""Writes answers as JSON of OpenAI's /v1/responses: whole replies, and a stream's events. No response is stored."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from .completions_json import make_own_fields
from .events import End, Event, Failure, FinishedBlock, ShownBlock
from .http_errors import Refusal
from .request import ServerRequest

FIXED: dict[str, Any] = {
    "background": False, "max_tool_calls": None, "parallel_tool_calls": True, "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None}, "service_tier": "default", "store": False,
    "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_p": 1.0, "truncation": "disabled",
}  # fmt: skip

ECHOED = ("text", "tools", "tool_choice")  # fields repeated in the reply if something is decided
SPARE = 200  # levels around what is echoed: of events, and of the calls that write them
# Metadata is repeated in many events, and so limited in its pairs and in the characters of keys and values.
PAIRS, KEY, VALUE = 16, 64, 512


class ResponsesReply:
    """Writes one response. Keeps a stream's text and the number of its next event."""

    last = b""  # a stream ends with its last event, without a further line

    def __init__(self, request: ServerRequest, model: str, cached: bool, body: Mapping[str, Any]) -> None:
        self._request, self._cached = request, cached
        repeated = {name: body.get(name) for name in ("instructions", "max_output_tokens")}
        self._item = f"msg_{secrets.token_hex(12)}"
        self._place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        self._head = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "temperature": request.options.temperature,
            "metadata": _read_metadata(body.get("metadata")),
            **repeated,
            **FIXED,
            **{name: body[name] for name in ECHOED if request.decision is not None and body.get(name) is not None},
        }
        self._text, self._numbers, self._begun = "", count(), False  # _begun: whether a message has begun
        # whether a message must come, not a call
        self._sure = request.decision is None or not request.decision.functions

    def make_body(self, answers: Sequence[tuple[Sequence[FinishedBlock], End]]) -> dict[str, Any]:
        """Returns the body of a non-streamed reply. answers: the blocks and the End of the one answer."""
        [(finished, end)] = answers
        self._text = "".join(block.text for block in finished)
        return self._finish(end)

    def make_opening(self) -> list[dict[str, Any]]:
        """Returns the events that a stream begins with."""
        begun = self._make_response("in_progress", [])
        return [
            self._make_event("response.created", response=begun),
            self._make_event("response.in_progress", response=begun),
            *(self._begin_message() if self._sure else ()),
        ]

    def make_chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        """Returns a stream's events for an event of its one answer; an unfinished block gives none. index: 0."""
        if isinstance(event, FinishedBlock):
            self._text += event.text
            delta = {"delta": event.text, "logprobs": []}
            if not event.text:
                return []
            return [*self._begin_message(), self._make_event("response.output_text.delta", **self._place, **delta)]
        if isinstance(event, Failure):
            error = {"code": "invalid_prompt" if event.mistake else "server_error", "message": event.message}
            return [self._make_event("response.failed", response=self._make_response("failed", [], error=error))]
        return [] if isinstance(event, ShownBlock) else self._make_closing(event)

    def _begin_message(self) -> list[dict[str, Any]]:
        """Returns the events before the first text; none if they have been sent."""
        if self._begun:
            return []
        self._begun = True
        return [
            self._make_event("response.output_item.added", output_index=0, item=self._make_message("in_progress", [])),
            self._make_event("response.content_part.added", **self._place, part=_make_part("")),
        ]

    def _make_closing(self, end: End) -> list[dict[str, Any]]:
        response = self._finish(end)
        item = response["output"][0]
        if item["type"] == "function_call":
            return [*self._write_call(item), self._make_event(f"response.{response['status']}", response=response)]
        part = _make_part(self._text)
        return [
            *self._begin_message(),
            self._make_event("response.output_text.done", **self._place, text=self._text, logprobs=[]),
            self._make_event("response.content_part.done", **self._place, part=part),
            self._make_event("response.output_item.done", output_index=0, item=item),
            self._make_event(f"response.{response['status']}", response=response),
        ]

    def _write_call(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the events of a function call."""
        place, arguments = {"item_id": item["id"], "output_index": 0}, item["arguments"]
        begun = {**item, "arguments": "", "status": "in_progress"}
        return [
            self._make_event("response.output_item.added", output_index=0, item=begun),
            self._make_event("response.function_call_arguments.delta", **place, delta=arguments),
            self._make_event("response.function_call_arguments.done", **place, arguments=arguments),
            self._make_event("response.output_item.done", output_index=0, item=item),
        ]

    def _finish(self, end: End) -> dict[str, Any]:
        prompt, tokens = len(self._request.prompt), end.counts.tokens
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + tokens,
        }
        cut = end.finish == "length"
        status = "incomplete" if cut else "completed"
        details = {"reason": "max_output_tokens"} if cut else None
        output = [self._make_call(end, status) or self._make_message(status, [_make_part(self._text)])]
        own = make_own_fields(self._request, self._cached, end)
        return self._make_response(status, output, incomplete_details=details, usage=usage) | {"blockstep": own}

    def _make_response(self, status: str, output: list[Any], **changes: Any) -> dict[str, Any]:
        empty = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": output, **empty, **changes}

    def _make_message(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": content}

    def _make_call(self, end: End, status: str) -> dict[str, Any] | None:
        """Returns the function call as an output item, None if no function is called."""
        if end.decided is None or end.decided.function is None:
            return None
        called = {"name": end.decided.function, "arguments": end.decided.arguments}
        ids = {"id": self._item.replace("msg_", "fc_"), "call_id": self._item.replace("msg_", "call_")}
        return {**ids, "type": "function_call", "status": status, **called}

    def _make_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}


def make_writable(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a request's body in which what is echoed can be written as JSON: infinity and NaN, which Python's JSON
    reads, are null. Raises Refusal 400 if it is nested more deeply than Python writes."""
    nested: Any = {name: body[name] for name in ECHOED if name in body}
    for _ in range(SPARE):
        nested = [nested]
    try:
        nested = json.loads(json.dumps(nested), parse_constant=lambda _: None)
    except RecursionError:
        raise Refusal(400, f"{' or '.join(ECHOED)} is nested too deeply; flatten it", ECHOED[0]) from None
    for _ in range(SPARE):
        [nested] = nested
    return {**body, **nested}


def _make_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _read_metadata(given: Any) -> dict[str, str]:
    """Returns the request's metadata, {} if it is not an object of at most 16 short texts (OpenAI's reference)."""
    if not isinstance(given, dict) or len(given) > PAIRS:
        return {}
    pairs = given.items()
    return given if all(isinstance(v, str) and len(k) <= KEY and len(v) <= VALUE for k, v in pairs) else {}
