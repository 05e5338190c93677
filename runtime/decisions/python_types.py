"""Turns Python types into JSON schemas: pydantic models, Literal, Enum, bool, bounded integers, lists of strings.

pydantic is not imported: a class with `model_json_schema` and `model_validate_json` is taken as a pydantic model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from ..errors import UserError
from .keywords import format_json

EXPECTED = (
    "expected a pydantic model, Literal[...], an Enum, bool, Annotated[int, ...] with bounds, a list of strings or a "
    "JSON schema as a dict"
)
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


@dataclass(frozen=True, slots=True)
class PythonType:
    """Holds a type's JSON schema. read: makes a value of the type from a document's text and its parsed JSON value."""

    schema: dict[str, Any]
    read: Callable[[str, Any], Any]


def read_type(kind: Any) -> PythonType:
    """Returns the `PythonType` of a Python type or of a JSON schema. Raises UserError for any other object."""
    if isinstance(kind, dict):
        return PythonType(kind, _keep_as_is)
    if isinstance(kind, type) and hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate_json"):
        return _read_pydantic(kind)
    if get_origin(kind) is Literal:
        return _make_choice(get_args(kind), [_convert_to_plain(value) for value in get_args(kind)])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _make_choice([*kind], [_convert_to_plain(member) for member in kind])
    if kind is bool:
        return PythonType({"type": "boolean"}, _keep_as_is)
    if get_origin(kind) is Annotated and get_args(kind)[0] is int:
        return PythonType({"type": "integer", **_read_bounds(get_args(kind)[1:])}, _keep_as_is)
    if isinstance(kind, list | tuple) and kind and all(isinstance(value, str) for value in kind):
        return _make_choice(kind, kind)
    raise UserError(f"the schema is {kind!r}; {EXPECTED}")


def _keep_as_is(text: str, value: Any) -> Any:
    return value


def _read_pydantic(kind: Any) -> PythonType:
    def read(text: str, value: Any) -> Any:
        try:
            return kind.model_validate_json(text)  # text, as strict models accept tuples and enums only from JSON
        except ValueError as error:  # as pydantic's ValidationError is one
            raise UserError(f"{text} is within the schema, but {kind.__name__} refuses it ({error})") from error

    try:
        schema = kind.model_json_schema()
    except Exception as error:  # as pydantic's, which is not imported here: of a field that JSON cannot have
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"{kind.__name__} has no JSON schema ({reason}); {EXPECTED}") from error
    return PythonType(schema, read)


def _make_choice(values: Sequence[Any], plain: Sequence[Any]) -> PythonType:
    """Returns the type of a choice among these values. plain: the JSON value of each."""
    if not values:
        raise UserError(f"the schema has no values; {EXPECTED}")
    by_text = dict(zip(map(format_json, reversed(plain)), reversed(values), strict=True))  # of equal values the first
    return PythonType({"enum": list(plain)}, lambda text, value: by_text[text])


def _convert_to_plain(value: Any) -> Any:
    """Returns the JSON value for a value of a Literal or an Enum."""
    plain = value.value if isinstance(value, enum.Enum) else value
    if plain is not None and type(plain) not in (str, int, bool):
        raise UserError(f"the schema has the value {plain!r}; expected text, whole numbers, true, false or None")
    return plain


def _read_bounds(metadata: Iterable[Any]) -> dict[str, Any]:
    """Returns an integer's annotations (a range, annotated_types' bounds, pydantic's Field) as JSON-schema keywords.

    All annotations hold: of two lower bounds the higher counts.
    """
    bounds: dict[str, Any] = {}
    for keyword, value in _each_bound(metadata):
        narrower = max if keyword in ("minimum", "exclusiveMinimum") else min
        bounds[keyword] = narrower(bounds.get(keyword, value), value)
    return bounds


def _each_bound(metadata: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for item in metadata:
        if isinstance(item, range):
            if not item or item.step != 1:
                raise UserError(f"the schema is an integer in {item}; expected a range that is not empty, of step 1")
            yield from (("minimum", item[0]), ("maximum", item[-1]))
            continue
        yield from _each_bound(getattr(item, "metadata", ()))
        for name, keyword in BOUNDS.items():
            if getattr(item, name, None) is not None:
                yield keyword, getattr(item, name)
        if getattr(item, "multiple_of", None) is not None:
            raise UserError(f"the schema is an integer with {item!r}; list its values in a Literal")
