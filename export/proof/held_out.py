"""Takes prompts that no training has seen, as requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.contract import Contract
from runtime.decoding.block_layout import room_for_answer
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import UserError
from train import tasks
from train.data import prompts

SEED = 20  # of the held-out problems


def held_out_texts(names: str, data: Path | None, count: int) -> list[tasks.Problem]:
    """Takes problems of the validation split, evenly from the tasks. Raises UserError if there are none."""
    if count < 1:
        raise UserError(f"--prompts is {count}; expected at least 1")
    chosen = tasks.choose_tasks(names, data)
    shares = [count // len(chosen) + (i < count % len(chosen)) for i in range(len(chosen))]
    return [p for task, n in zip(chosen, shares, strict=True) for p in task.problems("valid", n, SEED)]


def held_out_requests(
    encode: prompts.Encode, contract: Contract, texts: Sequence[str], lines: Sequence[int] = ()
) -> list[Request]:
    """Makes a request per prompt that fits, its answer as long as the canvas or the room; see `prompts.fitting`."""
    encoded = encode(texts)
    kept = prompts.fitting(encoded, lines, contract)
    found = [np.array(encoded[place], np.int64) for place in kept]
    return [Request(ids, DecodeOptions(min(room_for_answer(contract, len(ids)), contract.canvas))) for ids in found]
