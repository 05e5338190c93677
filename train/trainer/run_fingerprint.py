"""Makes run fingerprints: options, contents of files and problems that a stopped run and its resumption must share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.open_checkpoint import compute_fingerprint
from train.tasks import Task

# Options that do not change what is learned; `dtype` is only the type in which --out stores the weights.
WITHOUT_EFFECT = frozenset({"out", "json", "save_every", "dtype", "device", "tensorboard"})
SAMPLED = 64  # training problems per task that the hash covers
SHOWN = 20  # characters of a value that an error message shows; enough to tell hashes apart


def collect_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options that have an effect on what is learned, as plain values by name.

    A path's value is a hash of its content: a file's sha256, or for a folder one sha256 over its weights, trajectories,
    configs and tokenizer. The same content at another path makes no difference, changed content at the same path does.
    Raises OSError if the path does not exist.
    """
    return {name: _to_plain(value) for name, value in options.items() if name not in WITHOUT_EFFECT}


def hash_problems(chosen: Sequence[Task]) -> str:
    """Returns a hash over the first training problems of each task, since another version may generate others."""
    digest = hashlib.sha256()
    for task in chosen:
        for problem in task.problems("train", SAMPLED, 0):
            digest.update(repr((problem.prompt, problem.answer)).encode())
    return digest.hexdigest()


def list_changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the names in which two fingerprints differ, sorted, each with both values, as text."""
    differences = []
    for name in sorted(before.keys() | now.keys()):
        there, here = (str(side[name])[:SHOWN] if name in side else "not known" for side in (before, now))
        if name not in before or name not in now or before[name] != now[name]:
            differences.append(f"{name} ({there} there, {here} here)")
    return differences


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return compute_fingerprint(value)
    return [_to_plain(each) for each in value] if isinstance(value, list | tuple) else value
