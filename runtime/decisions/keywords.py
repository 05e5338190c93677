"""Reads the JSON-schema keywords that decisions support: which belong to which type, their values, errors by path."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from ..errors import UserError

# They do not restrict values; `default` is for readers of a document that lacks the property.
ANNOTATIONS = frozenset(("title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$id"))
TYPES: dict[str, frozenset[str]] = {  # each type with its keywords
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    "string": frozenset(("maxLength",)),
    "boolean": frozenset(),
    "null": frozenset(),
}
DEFINITIONS = frozenset(("$defs", "definitions"))  # only at the root
MAX_INTEGER = 1 << 53  # every JSON reader represents all integers up to this one exactly
COMPACT_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def format_json(value: Any) -> str:
    """Returns a value as compact JSON text, which forms are made of."""
    return COMPACT_ENCODER.encode(value)


def read_integers(schema: dict[str, Any], place: str) -> range:
    """Returns the integers that a schema of the type integer allows; how many they are is not checked here."""
    step = schema.get("multipleOf", 1)
    if type(step) is not int or step < 1:
        refuse(f"{place}.multipleOf", f"is {describe_value(step)}; expected a whole number from 1 on")
    least = max(_read_bounds(schema, place, "minimum", "exclusiveMinimum", 1), default=None)
    most = min(_read_bounds(schema, place, "maximum", "exclusiveMaximum", -1), default=None)
    if least is None or most is None:
        keyword = "minimum" if least is None else "maximum"
        refuse(place, f"is an integer without a {keyword}; expected minimum and maximum, or an enum")
    first, last = -(-least // step), most // step
    if last < first:
        refuse(place, f"has no multiple of {step} from {least} to {most}; expected at least one value")
    return range(step * first, step * last + 1, step)


def _read_bounds(schema: dict[str, Any], place: str, inclusive: str, exclusive: str, side: int) -> Iterator[int]:
    """Yields each bound of one side as the lowest or highest integer that it allows.

    side: 1 for lower bounds, -1 for upper ones.
    """
    for name in (inclusive, exclusive):
        if name not in schema:
            continue
        bound = schema[name]
        if type(bound) not in (int, float) or (isinstance(bound, float) and not math.isfinite(bound)):
            refuse(f"{place}.{name}", f"is {describe_value(bound)}; expected a number")
        if abs(bound) > MAX_INTEGER:
            refuse(f"{place}.{name}", f"is {describe_value(bound)}; expected one from -2^53 to 2^53")
        integer = math.ceil(bound) if side > 0 else math.floor(bound)
        yield integer + side if name == exclusive and integer == bound else integer


def is_of_type(value: Any, name: Any) -> bool:
    """Returns whether a JSON value is of the JSON-schema type `name`."""
    if isinstance(value, bool) or name == "boolean":
        return isinstance(value, bool) and name == "boolean"
    classes: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "number": (int, float), "null": type(None),
    }  # fmt: skip
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(name, str) and name in classes and isinstance(value, classes[name])


def check_types(names: Any, place: str) -> None:
    """Raises UserError for a list of more types than there are: each value would be compared with all of them."""
    if isinstance(names, list) and len(names) > len(TYPES) + 1:  # one more: `number`, which an enum may have
        refuse(f"{place}.type", f"has {len(names)} types; expected each once")


def drop_duplicates(texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the texts, each once; of equal numbers, such as 1 and 1.0, the first."""
    seen: dict[Any, str] = {}
    for text in texts:
        value = text if text[:1] not in "-0123456789" else int(text) if text.isdigit() else json.loads(text)
        seen.setdefault(value, text)
    return tuple(seen.values())


def check_keywords(schema: dict[str, Any], place: str, supported: frozenset[str], is_root: bool) -> None:
    """Raises UserError for a keyword that restricts values and is not among the supported ones.

    is_root: whether the schema is the root, which may have definitions.
    """
    known = supported | ANNOTATIONS | (DEFINITIONS if is_root else frozenset())
    for name in schema:
        if name not in known:
            names = " or ".join(sorted(supported - DEFINITIONS)) or "nothing else"
            refuse(
                f"{place}{format_path_step(name)}", f"is beyond the schemas that can be decided; expected {names} here"
            )


def format_value(value: Any, place: str) -> str:
    """Returns a value's compact JSON text. Raises UserError if it has none."""
    try:
        text = format_json(value)
        text.encode()
    except UnicodeEncodeError:
        refuse(place, "holds half a surrogate pair; expected Unicode")
    except (TypeError, ValueError, RecursionError):
        refuse(place, f"is {describe_value(value)}; expected a value that JSON has")
    return text


def format_path_step(key: Any) -> str:
    """Returns a key as the next step of a path: `.name`, or `["a b"]` if it is not an identifier."""
    if isinstance(key, str) and key.replace("$", "").isidentifier():
        return f".{key[:80]}"
    return f"[{json.dumps(str(key)[:80])}]"


def describe_value(value: Any) -> str:
    """Returns a schema's value as text for a message; of objects and of lists of other than texts only the kind."""
    if isinstance(value, dict | list) and value:
        if isinstance(value, list) and all(isinstance(item, str) for item in value[:8]):
            return json.dumps(value[:8])[:80]
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return "a huge number"
    return json.dumps(value, default=repr)[:80]


def refuse(place: str, reason: str) -> NoReturn:
    """Raises UserError. place: a path in the schema, such as `schema.properties.name`; reason: what is wrong there."""
    raise UserError(f"{place} {reason}")
