"""Reads untrusted JSON strictly: bounded size, no key twice in an object, only finite numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

BOM = "\ufeff"
MOST = 16 << 20  # bytes of a file, whose values then take less than half a gigabyte of memory


def read(path: Path) -> Any:
    """Returns a file's values. Raises OSError if it cannot be read, ValueError naming what is wrong with its text."""
    with open(path, "rb") as handle:
        content = handle.read(MOST + 1)
    if len(content) > MOST:
        raise ValueError(f"more than {MOST >> 20} MB")
    try:
        return parse(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text at byte {error.start}") from None


def parse(text: str) -> Any:
    """Returns the values of a JSON text, which may begin with a BOM. Raises ValueError naming what is wrong with it."""
    try:
        return json.loads(
            text.removeprefix(BOM), object_pairs_hook=check_unique, parse_int=parse_whole, parse_float=_parse_number,
            parse_constant=_parse_number,
        )  # fmt: skip
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object from its pairs, as an `object_pairs_hook`. Raises ValueError if a key occurs twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name[:80]!r} occurs twice in one object")
    return values


def parse_whole(text: str) -> int:
    """Parses a whole number, as a `parse_int`. Raises ValueError for one of more digits than Python reads."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text[:20]}... is a whole number of {len(text.lstrip('-'))} digits, too many") from None


def _parse_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is not a finite number")
    return value
