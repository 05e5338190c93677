"""Writes errors and other JSON replies; errors have the form that OpenAI's clients read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from ..errors import UserError, describe_error


@dataclass(eq=False)  # not frozen: context managers set an exception's __traceback__
class Refusal(Exception):
    """Refuses a request. message: one line; param: the field that is wrong; code: what programs can test."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """Returns the refusal in the form of OpenAI's API."""
        kind = "overloaded" if self.status == 429 else "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@contextmanager
def blame(field: str, name: str | None = None) -> Iterator[None]:
    """Names the field of the request that a UserError is about; name: in the message, the field itself by default."""
    try:
        yield
    except UserError as error:
        raise Refusal(400, f"{name or field}: {describe_error(error)}", field) from None


def make_refusal_response(refusal: Refusal) -> Response:
    """Returns the refusal as a response."""
    return make_json_response(refusal.body, refusal.status, refusal.headers)


def make_json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a JSON response in ASCII: a client's names may hold half a surrogate pair, which UTF-8 cannot encode."""
    return Response(json.dumps(body, allow_nan=False), status, headers, "application/json")


def quote_value(value: Any) -> str:
    """Quotes a request's value for a message; a list or object is named by its type, as a nested repr is slow."""
    return name_json_type(value) if isinstance(value, list | dict) else repr(value)[:80]


def name_json_type(value: Any) -> str:
    """Returns the type of a JSON value in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
