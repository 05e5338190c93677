"""Makes run fingerprints: the options and the contents of files that a stopped run and its resumption must share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.open_checkpoint import compute_fingerprint

# Options that do not change what is learned; `dtype` is only the type in which --out stores the weights.
WITHOUT_EFFECT = frozenset({"out", "json", "save_every", "dtype", "device", "tensorboard"})
SHOWN = 20  # characters of a value that an error message shows; enough to tell hashes apart


def collect_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options that have an effect on what is learned, as plain values by name.

    A path's value is a hash of its content: a file's sha256, or for a folder one sha256 over its weights, trajectories,
    configs and tokenizer. The same content at another path makes no difference, changed content at the same path does.
    Raises OSError if the path does not exist.
    """
    return {name: _to_plain(value) for name, value in options.items() if name not in WITHOUT_EFFECT}


def list_changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the names in which two fingerprints differ, sorted, each with both values, as text."""
    told = []
    for name in sorted(before.keys() | now.keys()):
        there, here = (str(side[name])[:SHOWN] if name in side else "not known" for side in (before, now))
        if name not in before or name not in now or before[name] != now[name]:
            told.append(f"{name} ({there} there, {here} here)")
    return told


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return compute_fingerprint(value)
    return [_to_plain(each) for each in value] if isinstance(value, list | tuple) else value
