"""Converts Python types to JSON schemas: pydantic models, Literal, Enum, bool, bounded integers, lists of strings.

pydantic is not imported: a class with `model_json_schema` and `model_validate_json` is taken as a pydantic model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from ..errors import UserError
from .keywords import format_json

EXPECTATION = (
    "expected a pydantic model, Literal[...], an Enum, bool, Annotated[int, ...] with bounds, a list of strings or a "
    "JSON schema as a dict"
)
BOUND_KEYWORDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


@dataclass(frozen=True, slots=True)
class PythonType:
    """Holds a type's JSON schema.

    read_value: makes a value of the type from a document's text and the JSON value parsed from this text.
    """

    schema: dict[str, Any]
    read_value: Callable[[str, Any], Any]


def read_type(schema: Any) -> PythonType:
    """Returns the `PythonType` of what a caller gave as schema: a Python type, a list of strings or a JSON schema.

    Raises UserError for any other object.
    """
    if isinstance(schema, dict):
        return PythonType(schema, _get_json_value)
    if isinstance(schema, type) and hasattr(schema, "model_json_schema") and hasattr(schema, "model_validate_json"):
        return _read_pydantic(schema)
    if get_origin(schema) is Literal:
        return _make_choice(get_args(schema), [_convert_to_json_value(value) for value in get_args(schema)])
    if isinstance(schema, type) and issubclass(schema, enum.Enum):
        return _make_choice([*schema], [_convert_to_json_value(member) for member in schema])
    if schema is bool:
        return PythonType({"type": "boolean"}, _get_json_value)
    if get_origin(schema) is Annotated and get_args(schema)[0] is int:
        return PythonType({"type": "integer", **_read_bounds(get_args(schema)[1:])}, _get_json_value)
    if isinstance(schema, list | tuple) and schema and all(isinstance(value, str) for value in schema):
        return _make_choice(schema, schema)
    raise UserError(f"the schema is {schema!r}; {EXPECTATION}")


def _get_json_value(text: str, value: Any) -> Any:
    """Returns the JSON value, which needs no conversion."""
    return value


def _read_pydantic(model: Any) -> PythonType:
    def read_value(text: str, value: Any) -> Any:
        try:
            return model.model_validate_json(text)  # text, as strict models accept tuples and enums only from JSON
        except ValueError as error:  # as pydantic's ValidationError is one
            raise UserError(f"{text} is within the schema, but {model.__name__} refuses it ({error})") from error

    try:
        schema = model.model_json_schema()
    except Exception as error:  # as pydantic's, which is not imported here: of a field that JSON cannot have
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"{model.__name__} has no JSON schema ({reason}); {EXPECTATION}") from error
    return PythonType(schema, read_value)


def _make_choice(values: Sequence[Any], json_values: Sequence[Any]) -> PythonType:
    """Returns the type of a choice among these values. json_values: the JSON value of each."""
    if not values:
        raise UserError(f"the schema has no values; {EXPECTATION}")
    pairs = zip(map(format_json, reversed(json_values)), reversed(values), strict=True)
    by_text = dict(pairs)  # of values with equal texts the first, since the pairs are reversed
    return PythonType({"enum": list(json_values)}, lambda text, value: by_text[text])


def _convert_to_json_value(value: Any) -> Any:
    """Returns the JSON value for a value of a Literal or an Enum."""
    json_value = value.value if isinstance(value, enum.Enum) else value
    if json_value is not None and type(json_value) not in (str, int, bool):
        raise UserError(f"the schema has the value {json_value!r}; expected text, whole numbers, true, false or None")
    return json_value


def _read_bounds(metadata: Iterable[Any]) -> dict[str, Any]:
    """Returns an integer's annotations (a range, annotated_types' bounds, pydantic's Field) as JSON-schema keywords.

    All annotations apply: of two lower bounds the result has the higher, of two upper bounds the lower.
    """
    bounds: dict[str, Any] = {}
    for keyword, value in _list_bounds(metadata):
        choose_narrower = max if keyword in ("minimum", "exclusiveMinimum") else min
        bounds[keyword] = choose_narrower(bounds.get(keyword, value), value)
    return bounds


def _list_bounds(metadata: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yields each bound of the annotations as a JSON-schema keyword and its value."""
    for item in metadata:
        if isinstance(item, range):
            if not item or item.step != 1:
                raise UserError(f"the schema is an integer in {item}; expected a range that is not empty, of step 1")
            yield from (("minimum", item[0]), ("maximum", item[-1]))
            continue
        yield from _list_bounds(getattr(item, "metadata", ()))
        for name, keyword in BOUND_KEYWORDS.items():
            if getattr(item, name, None) is not None:
                yield keyword, getattr(item, name)
        if getattr(item, "multiple_of", None) is not None:
            raise UserError(f"the schema is an integer with {item!r}; list its values in a Literal")
