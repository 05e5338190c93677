"""What torchrun starts in tests: train commands one after the other, each update logged, one process perhaps killed.

python tests/support/ranks.py '["train.teacher --out a.pt", ...]'    with KILL=RANK:STEP in the environment, or without
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from train import collect, distributed
from train.trainer import resume, training_loop


def kill(rank: int, step: int) -> None:
    """That process ends when it begins that update, or its shard of that number, both from 0."""
    if os.environ["RANK"] != str(rank):
        return
    update, answered, asked = training_loop._update, collect.decode_prompts, list[None]()

    def last_update(*args: Any) -> Any:
        if args[-1] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*args)

    def last_shard(*args: Any) -> Any:
        if len(asked) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        asked.append(None)
        return answered(*args)

    training_loop._update, collect.decode_prompts = last_update, last_shard


def fill(disk: str) -> None:
    """The second process finds that disk full, which is in the name of what it writes to."""
    save = resume.save_file

    def full(tensors: Any, path: Path) -> None:
        if os.environ["RANK"] == "1" and disk in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path)

    resume.save_file = full


def main(lines: list[str]) -> int:
    """The highest exit code; all commands are run, but for a process that was killed."""
    training_loop.LOG_EVERY, distributed.PATIENCE = (
        1,
        1.0,
    )  # seconds: with none, the others may see a lost connection instead
    fill("full-disk")
    if order := os.environ.get("KILL"):
        kill(*map(int, order.split(":")))
    with distributed.join_processes("cpu"):  # once: torchrun's store has no second group of the same name
        distributed.join_processes = lambda device: nullcontext()
        codes = []
        for name, *words in map(str.split, lines):
            codes.append(importlib.import_module(name).main(words))
            if codes[-1] == 1:
                sys.exit(1)  # another process has ended, which cannot be waited for
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
