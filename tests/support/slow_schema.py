"""What a JSON schema means, keyword by keyword as the specification has it: slow, and without any form."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def is_valid(value: Any, schema: Schema, root: Schema | None = None) -> bool:
    """Whether a JSON value is valid against a schema of the keywords that decisions know."""
    root = schema if root is None else root
    return all(_holds(name, value, schema, root) for name in schema)


def _holds(name: str, value: Any, schema: Schema, root: Schema) -> bool:
    wanted = schema[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "type":
            return any(is_of(value, one) for one in (wanted if isinstance(wanted, list) else [wanted]))
        case "enum":
            return any(equal(value, one) for one in wanted)
        case "const":
            return equal(value, wanted)
        case "anyOf":
            return any(is_valid(value, one, root) for one in wanted)
        case "allOf":
            return all(is_valid(value, one, root) for one in wanted)
        case "$ref":
            return is_valid(value, root["$defs"][wanted.removeprefix("#/$defs/")], root)
        case "minimum":
            return not number or value >= wanted
        case "maximum":
            return not number or value <= wanted
        case "exclusiveMinimum":
            return not number or value > wanted
        case "exclusiveMaximum":
            return not number or value < wanted
        case "multipleOf":
            return not number or value % wanted == 0
        case "maxLength":
            return not isinstance(value, str) or len(value) <= wanted
        case "minItems":
            return not isinstance(value, list) or len(value) >= wanted
        case "maxItems":
            return not isinstance(value, list) or len(value) <= wanted
        case "prefixItems":
            return not isinstance(value, list) or all(map(lambda v, s: is_valid(v, s, root), value, wanted))
        case "items":
            rest = value[len(schema.get("prefixItems", [])) :] if isinstance(value, list) else []
            return not rest if wanted is False else all(is_valid(one, wanted, root) for one in rest)
        case "properties":
            return not isinstance(value, dict) or all(is_valid(value[k], wanted[k], root) for k in wanted if k in value)
        case "required":
            return not isinstance(value, dict) or all(key in value for key in wanted)
        case "additionalProperties":
            return not isinstance(value, dict) or wanted is not False or value.keys() <= schema["properties"].keys()
    assert name in ("$defs", "title", "description", "default"), name
    return True


def is_of(value: Any, kind: str) -> bool:
    """Whether a value is of a type, of which true is no number."""
    if isinstance(value, bool):
        return kind == "boolean"
    if kind in ("integer", "number"):
        return isinstance(value, int) or (isinstance(value, float) and (kind == "number" or value == int(value)))
    return isinstance(value, {"object": dict, "array": list, "string": str, "null": type(None)}.get(kind, ()))


def equal(a: Any, b: Any) -> bool:
    """JSON's equality."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)
