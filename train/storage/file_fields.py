"""Checks values from a file of train.* against the fields of the dataclasses that they become."""

from __future__ import annotations

import reprlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from runtime.checked_fields import find_first_wrong
from runtime.contract import MODES
from runtime.errors import UserError
from train.checkpoint import Decoding


def check_fields(path: Path, config: dict[str, Any], *kinds: Any) -> dict[str, Any]:
    """Returns the values of `config`. Raises UserError, naming a wrong key, unless they fit these dataclasses."""
    if Decoding in kinds:
        config = {"modes": MODES[:1], "decision_temperature": 1.0, **config}  # older files lack these
    wanted = {field.name for kind in kinds for field in fields(kind)}
    unknown, missing = sorted(config.keys() - wanted), sorted(wanted - config.keys())
    if unknown or missing:
        wrong = f"unknown config keys {', '.join(unknown)}" if unknown else f"no config keys {', '.join(missing)}"
        raise UserError(f"{path} has {wrong}; it was written by another version, write it again with blockstep train")
    for name, value, expected in filter(None, (find_first_wrong(kind, config) for kind in kinds)):
        raise UserError(
            f"{path} has {reprlib.repr(value)} as {name}; expected {expected}; write it again with blockstep train"
        )
    return {**config, "eos_ids": tuple(config["eos_ids"]), "modes": tuple(config["modes"])}
