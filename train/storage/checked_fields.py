"""Checks values from a file against the fields of the dataclasses that they become."""

from __future__ import annotations

import reprlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from runtime.contract import FIELD_LIMITS, NUMBER_LIMIT
from runtime.errors import UserError

LARGEST_FLOAT = 1e12  # of a base of rotary angles, the largest number there is
MOST_IDS = 64  # end tokens
KINDS: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "tuple[int, ...]": (list, tuple),
    "dict[str, Any]": dict,
}


def check_fields(path: Path, config: dict[str, Any], *kinds: Any) -> dict[str, Any]:
    """Returns values of `config`, exactly these dataclasses' fields. Raises UserError naming the first wrong one."""
    wanted = {field.name: str(field.type) for kind in kinds for field in fields(kind)}
    unknown, missing = sorted(config.keys() - wanted.keys()), sorted(wanted.keys() - config.keys())
    if unknown or missing:
        wrong = f"unknown config keys {', '.join(unknown)}" if unknown else f"no config keys {', '.join(missing)}"
        raise UserError(f"{path} has {wrong}; it was written by another version, write it anew with train.*")
    for name, kind in wanted.items():
        if not is_possible(name, kind, value := config[name]):
            got = reprlib.repr(value)
            raise UserError(
                f"{path} has {got} as {name}; expected {expected_text(name, kind)}; write it anew with train.*"
            )
    return {**config, "eos_ids": tuple(config["eos_ids"])}


def is_possible(name: str, kind: str, value: Any) -> bool:
    """Returns whether a field of that name and kind can have this value."""
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
        return False
    if kind == "tuple[int, ...]":
        return 0 < len(value) <= MOST_IDS and all(is_possible("_id", "int", token) for token in value)
    if kind == "int":
        return (0 if name.endswith("_id") else 1) <= value <= FIELD_LIMITS.get(name, NUMBER_LIMIT)
    return kind != "float" or 0 < value <= LARGEST_FLOAT


def expected_text(name: str, kind: str) -> str:
    """Says in words what `is_possible` wants."""
    if kind == "int":
        return f"a whole number from {0 if name.endswith('_id') else 1} to {FIELD_LIMITS.get(name, NUMBER_LIMIT)}"
    return {"float": "a number above 0", "tuple[int, ...]": f"1 to {MOST_IDS} token ids"}.get(kind, kind)
