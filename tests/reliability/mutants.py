"""Damage: bytes, JSON values, texts and protocol buffers changed at random, each a function of its generator alone."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 255, 2**31, 2**53, 2**63, 10**12, 10**400, -(10**18), 0.5, 1.5, -0.0, 1e308,
    "", "x", "0", "a/b", "../a", "/etc/passwd", "a\n", "\x1b[31m", "\x00", "\ud800", "\u202e", "A" * 5000, "0" * 64,
    [], [[]], [1], [1] * 300, {}, {"a": 1}, {"__class__": "x"}, [None], "float32", "float64", "threshold", "entropy",
)  # fmt: skip
TWIN = "a second time"  # no key of what is damaged
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "01",
    "tru",
    '"\\ud800"',
    "[" * 2000,
    '{"a":' * 2000,
    "1" * 9000,
)


def of_bytes(rng: random.Random, content: bytes, front: int = 0) -> bytes:
    """Some bits, bytes and stretches changed; `front` bytes at its beginning get half of the damage."""
    made = bytearray(content)
    if rng.random() < 0.05:
        return bytes(made[: rng.randrange(len(made) + 1)])
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        end = front if front and rng.random() < 0.5 else len(made)
        place, length = rng.randrange(max(1, min(end, len(made)))), rng.choice((1, 2, 4, 8, 64))
        _strike(rng, made, place, length)
    return bytes(made)


def _strike(rng: random.Random, made: bytearray, place: int, length: int) -> None:
    kind = rng.randrange(6)
    if kind == 0 and place < len(made):
        made[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        made[place : place + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF))])
    elif kind == 2:
        del made[place : place + length]
    elif kind == 3:
        made[place:place] = rng.randbytes(length)
    elif kind == 4:
        made[place : place + length] = rng.choice((b"\x00", b"\xff")) * length
    else:
        source = rng.randrange(max(1, len(made)))
        made[place : place + length] = made[source : source + length]


def of_json(rng: random.Random, values: Any) -> str:
    """A JSON text: values replaced, removed, added, moved, doubled, or the text itself damaged."""
    made = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(rng, made)
    kind = rng.random()
    key = _doubled(rng, made) if kind < 0.08 else None
    text = json.dumps(made, indent=rng.choice((None, 1)))
    if key is not None:
        return text.replace(json.dumps(TWIN), json.dumps(key))
    if 0.08 <= kind < 0.16:
        place = rng.choice([i for i, c in enumerate(text) if c in ":[,"] or [0])
        return text[: place + 1] + rng.choice(RAW) + ("," if rng.random() < 0.5 else "") + text[place + 1 :]
    if 0.16 <= kind < 0.24:
        return of_bytes(rng, text.encode()).decode("utf-8", "surrogateescape")
    return text


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in it."""
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in list(entries):
        yield values, key
        yield from _places(value)


def _change(rng: random.Random, values: Any) -> None:
    places = list(_places(values))
    if not places:
        return
    (holder, key), (other, theirs) = rng.choice(places), rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("colour", "", "format", "\x1b[2J", key + "s"))] = copy.deepcopy(rng.choice(ODD))
    elif kind == 2:
        holder[key] = copy.deepcopy(other[theirs])
    elif kind == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = rng.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 2, float(holder[key])))
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))


def _doubled(rng: random.Random, values: Any) -> str | None:
    """Adds TWIN, with another value, to some object and returns the key that it is to stand for."""
    holders = [holder for holder, _ in _places(values) if isinstance(holder, dict)]
    if not holders:
        return None
    holder = rng.choice(holders)
    key: str = rng.choice(list(holder))
    holder[TWIN] = rng.choice((1, None, []))
    return key


def of_text(rng: random.Random, text: str, words: Sequence[str]) -> str:
    """A text with some of its stretches removed, repeated or replaced by words."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, length = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 5, 20))
        kind = rng.randrange(4)
        middle = text[place : place + length] * 2 if kind == 0 else rng.choice(words) if kind < 3 else ""
        text = text[:place] + middle + text[place + length :]
    return text


def of_message(rng: random.Random, message: Any) -> None:
    """Changes one field somewhere in a protocol buffer: removed, doubled, moved, or with another value."""
    message, field = rng.choice(list(_fields(message)))
    value = getattr(message, field.name)
    if not hasattr(value, "extend"):
        return _set(rng, message, field, value)
    kind, count = rng.randrange(4), len(value)
    if kind == 0 and count:
        del value[rng.randrange(count)]
    elif kind == 1 and count:
        value.append(value[rng.randrange(count)])
    elif kind == 2 and count > 1:
        moved = list(value)
        moved.insert(rng.randrange(count), moved.pop(rng.randrange(count)))
        del value[:]
        value.extend(moved)
    elif count and field.type in SCALARS:
        value[rng.randrange(count)] = _scalar(rng, field, value[rng.randrange(count)])


SCALARS = {
    1: "float",
    2: "float",
    3: "int",
    4: "uint",
    5: "int",
    8: "bool",
    9: "text",
    12: "bytes",
    13: "uint",
    14: "enum",
}
WHOLE = (-1, 0, 1, 2, 3, 7, 8, 64, 2**31 - 1, -(2**31), 1000)
WIDE = (2**40, 2**62, -(2**62))


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every set field of a message and of those in it; large tensors count once."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == 11:
            for inner in value if hasattr(value, "extend") else (value,):
                yield from _fields(inner)


def _set(rng: random.Random, message: Any, field: Any, value: Any) -> None:
    if field.type not in SCALARS or rng.random() < 0.2:
        return message.ClearField(field.name)
    setattr(message, field.name, _scalar(rng, field, value))


def _scalar(rng: random.Random, field: Any, value: Any) -> Any:
    kind = SCALARS[field.type]
    if kind == "enum":
        return rng.choice([each.number for each in field.enum_type.values])
    if kind == "bytes":
        return of_bytes(rng, value) if value else b"\x00"
    if kind == "text":
        return rng.choice(
            ("", "input_ids", "token", value + "x", value[:-1], "Add", "MatMul", "com.microsoft", "../x", "\x1b")
        )
    if kind == "bool":
        return not value
    if kind == "float":
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38, -value))
    chosen = rng.choice(WHOLE if field.type in (5, 13) else (*WHOLE, *WIDE, value + 1, value * 2 % 2**60))
    return abs(chosen) if kind == "uint" else chosen
