"""Plain values become a dataclass where each is as its field's annotation expects; else one line names the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from runtime.checked_fields import (
    NUMBER_LIMIT,
    OBJECT,
    PRINTABLE,
    TEXT,
    find_first_wrong,
    number,
    one_of,
    optional,
    parse_fields,
    row,
    whole,
)
from runtime.errors import UserError


@dataclass(frozen=True, slots=True)
class Sample:
    """A field of every kind."""

    count: Annotated[int, whole(1, 8)]
    share: Annotated[float, number(0, 1)]
    kind: Annotated[str, one_of(("a", "b"))]
    name: Annotated[str, PRINTABLE]
    ids: Annotated[tuple[int, ...], row(whole(0), "1 to 2 ids", 2)]
    values: Annotated[dict[str, Any], OBJECT]
    flag: bool
    unchecked: list[int]
    most: Annotated[int | None, optional(whole(1))] = None
    note: Annotated[str, TEXT] = ""


SOUND = {
    "count": 1, "share": 0.5, "kind": "a", "name": "x", "ids": [0, 3], "values": {}, "flag": False, "unchecked": None,
}  # fmt: skip


def test_sound_values_become_the_dataclass() -> None:
    found = parse_fields(Sample, {**SOUND, "most": 1}, "it", ids=tuple, note=str.upper)
    assert found == Sample(1, 0.5, "a", "x", (0, 3), {}, False, None, 1)  # type: ignore[arg-type]
    assert parse_fields(Sample, {**SOUND, "note": "n"}, "it", note=str.upper).note == "N"
    for inside in ({"count": 8}, {"share": 0}, {"share": 1}, {"most": NUMBER_LIMIT}, {"most": None}, {"ids": (7,)}):
        assert find_first_wrong(Sample, {**SOUND, **inside}) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"count": 0}, "it.count is 0; expected a whole number from 1 to 8"),
        ({"count": 9}, "it.count is 9; expected a whole number from 1 to 8"),
        ({"count": True}, "it.count is True; expected a whole number from 1 to 8"),
        ({"count": 1.0}, "it.count is 1.0; expected a whole number from 1 to 8"),
        ({"share": False}, "it.share is False; expected a number from 0 to 1"),
        ({"share": float("nan")}, "it.share is nan; expected a number from 0 to 1"),
        ({"share": "1"}, "it.share is '1'; expected a number from 0 to 1"),
        ({"kind": "c"}, "it.kind is 'c'; expected one of a, b"),
        ({"kind": ["a"]}, "it.kind is ['a']; expected one of a, b"),
        ({"name": ""}, "it.name is ''; expected a text that can be printed"),
        ({"name": "\x1b"}, "it.name is '\\x1b'; expected a text that can be printed"),
        ({"ids": []}, "it.ids is []; expected 1 to 2 ids"),
        ({"ids": [1, 2, 3]}, "it.ids is [1, 2, 3]; expected 1 to 2 ids"),
        ({"ids": [-1]}, "it.ids is [-1]; expected 1 to 2 ids"),
        ({"ids": 1}, "it.ids is 1; expected 1 to 2 ids"),
        ({"values": None}, "it.values is None; expected an object"),
        ({"flag": 1}, "it.flag is 1; expected true or false"),
        ({"most": 0}, f"it.most is 0; expected a whole number from 1 to {NUMBER_LIMIT}"),
        ({"note": 5}, "it.note is 5; expected a text"),
        ({"color": 1, "age": 2}, "it has unknown keys age, color; it was written by another version"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        parse_fields(Sample, {**SOUND, **changes}, "it", "keys")
    assert str(error.value) == told


def test_what_is_no_object_or_lacks_fields_is_refused() -> None:
    with pytest.raises(UserError, match=r"^it is list; expected an object$"):
        parse_fields(Sample, [], "it")
    with pytest.raises(UserError, match=r"^it lacks count, flag, ids, kind, name, share, unchecked, values; export"):
        parse_fields(Sample, {}, "it")
    with pytest.raises(UserError, match=r"^it has unknown fields color; it was"):
        parse_fields(Sample, {"color": 1}, "it")
