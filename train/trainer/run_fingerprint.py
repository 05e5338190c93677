"""Makes a run fingerprint: the options that matter, with hashes of the input files and of the training problems.

A stopped run resumes only with the same fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from train.open_checkpoint import compute_fingerprint
from train.tasks import Task

# Options that do not change the trained weights; `dtype` is only the type in which --out stores them.
WITHOUT_EFFECT = frozenset({"out", "json", "save_every", "dtype", "device", "tensorboard"})
HASHED_PROBLEMS = 64  # per task
SHOWN_CHARACTERS = 20  # of a value in an error message; enough to tell hashes apart


def collect_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options that have an effect on the trained weights, as plain values by name.

    A path's value is a hash of its content: a file's sha256, or for a folder one sha256 over its weights, trajectories,
    configs and tokenizer. The same content at another path makes no difference, changed content at the same path does.
    Raises OSError if the path does not exist.
    """
    return {name: _to_plain(value) for name, value in options.items() if name not in WITHOUT_EFFECT}


def hash_problems(tasks: Sequence[Task]) -> str:
    """Returns a hash of the first training problems of each task, at seed 0.

    Another version of blockstep may generate other problems from the same seed.
    """
    digest = hashlib.sha256()
    for task in tasks:
        for problem in task.problems("train", HASHED_PROBLEMS, 0):
            digest.update(repr((problem.prompt, problem.answer)).encode())
    return digest.hexdigest()


def list_changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the names in which two fingerprints differ, sorted, each with both values, as text.

    Of lists, the first elements that differ are shown. before: the stopped run's; now: this run's.
    """
    differences = []
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now or before[name] != now[name]:
            old, new = (side.get(name, "not set") for side in (before, now))
            if isinstance(old, list) and isinstance(new, list):
                old, new = next(pair for pair in zip_longest(old, new, fillvalue="nothing") if pair[0] != pair[1])
            texts = [str(value)[:SHOWN_CHARACTERS] for value in (old, new)]
            differences.append(f"{name} ({texts[0]} there, {texts[1]} here)")
    return differences


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return compute_fingerprint(value)
    return [_to_plain(each) for each in value] if isinstance(value, list | tuple) else value
