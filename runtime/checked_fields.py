"""Checks plain values, such as JSON's, against the fields of the dataclass that is made from them.

A field's annotation declares what it may hold: `block: Annotated[int, whole(1, 4096)]`. A field without such a
declaration is checked by the code that reads it; a `bool` needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, get_type_hints

from .errors import UserError

T = TypeVar("T")
NUMBER_LIMIT = 1 << 24  # far above any model's numbers: an array sized by a damaged file would take all memory


@dataclass(frozen=True, slots=True)
class FieldRule:
    """Describes what a field may hold. text: in words; holds: tests a value."""

    text: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int = NUMBER_LIMIT) -> FieldRule:
    """Expects a whole number from `least` to `most`."""
    text = f"a whole number from {least} to {most}"
    return FieldRule(text, lambda value: type(value) is not bool and isinstance(value, int) and least <= value <= most)


def number(least: float, most: float = NUMBER_LIMIT, text: str = "") -> FieldRule:
    """Expects a number from `least` to `most`. text: describes it in messages, in place of the bounds."""
    return FieldRule(
        text or f"a number from {least:g} to {most}",
        lambda value: type(value) is not bool and isinstance(value, int | float) and least <= value <= most,
    )


def one_of(allowed: Collection[str]) -> FieldRule:
    """Expects one of the texts."""
    return FieldRule(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


def optional(expected: FieldRule) -> FieldRule:
    """Expects what `expected` describes, or None."""
    return FieldRule(expected.text, lambda value: value is None or expected.holds(value))


def row(each: FieldRule, text: str, most: int) -> FieldRule:
    """Expects a list of 1 to `most` values that `each` describes."""
    return FieldRule(
        text, lambda value: isinstance(value, list | tuple) and 0 < len(value) <= most and all(map(each.holds, value))
    )


FLAG = FieldRule("true or false", lambda value: isinstance(value, bool))
TEXT = FieldRule("a text", lambda value: isinstance(value, str))
OBJECT = FieldRule("an object", lambda value: isinstance(value, dict))
PRINTABLE = FieldRule(  # for names, which are shown: a terminal would obey control characters
    "a text that can be printed", lambda value: isinstance(value, str) and value != "" and value.isprintable()
)


def parse_fields(
    kind: Callable[..., T], values: Any, place: str, noun: str = "fields", **readers: Callable[[Any], Any]
) -> T:
    """Makes a dataclass from an object's values. readers: functions that parse some fields' plain values, by name.

    Raises UserError, with `place` and `noun` in its message, for the first field that is unknown, missing or not as its
    annotation declares.
    """
    needed = {f.name: f.default is f.default_factory is MISSING for f in fields(kind)}  # type: ignore[arg-type]
    check_names(values, place, noun, needed)
    if wrong := find_first_wrong(kind, values):
        name, value, expected = wrong
        raise UserError(f"{place}.{name} is {value!r}; expected {expected}")
    return kind(**{**values, **{name: read(values[name]) for name, read in readers.items() if name in values}})


def check_names(values: Any, place: str, noun: str, needed: Mapping[str, bool]) -> None:
    """Raises UserError unless the values are an object with known names. needed: whether each name is required."""
    if not isinstance(values, dict):
        raise UserError(f"{place} is {type(values).__name__}; expected an object")
    if unknown := sorted(values.keys() - needed.keys()):
        raise UserError(f"{place} has unknown {noun} {', '.join(unknown)}; it was written by another version")
    if missing := sorted(name for name, must in needed.items() if must and name not in values):
        raise UserError(f"{place} lacks {', '.join(missing)}; export the bundle again")


def find_first_wrong(kind: Any, values: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    """Returns the first field that does not fit its annotation: name, value, what was expected. None if all fit."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for expected in (FLAG,) if hint is bool else getattr(hint, "__metadata__", ()):
            if name in values and not expected.holds(values[name]):
                return name, values[name], expected.text
    return None
