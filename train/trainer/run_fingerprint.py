"""The run fingerprint: what a stopped run and its resumption must share, all options, and files by their content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.open_checkpoint import fingerprint

WITHOUT_EFFECT = frozenset({"out", "json", "save_every", "dtype", "device", "tensorboard"})  # on what is learnt
SHOWN = 20  # characters of a value in a refusal; enough of a hash


def of_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options that have an effect on what is learned, as plain values by name.

    A path is named by the sha256 of its file, or over the weights, trajectories and configs of its folder: the same
    content at another path makes no difference, changed content at the same path does. Raises OSError if it is gone.
    """
    return {name: _plain(value) for name, value in options.items() if name not in WITHOUT_EFFECT}


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what two fingerprints differ in, as text, by name."""
    told = []
    for name in sorted(before.keys() | now.keys()):
        there, here = (str(side[name])[:SHOWN] if name in side else "not known" for side in (before, now))
        if name not in before or name not in now or before[name] != now[name]:
            told.append(f"{name} ({there} there, {here} here)")
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return fingerprint(value)
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
