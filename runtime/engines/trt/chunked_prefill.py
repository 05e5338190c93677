"""Chunked prefill: splits a forward pass that is too wide for an engine, so that no token sees a later chunk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...backend import Bools, Forward
from ...contract import Contract
from ...errors import UserError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Holds a part of a forward pass.

    has_row [batch, n]: whether the logits row is in this part; if not, `forward.rows` is 0.
    """

    forward: Forward
    has_row: Bools


def split_forward(forward: Forward, max_width: int) -> Iterator[Chunk]:
    """Yields the chunks in order, each at most `max_width` tokens wide.

    Run one after the other, they compute the same as the whole forward pass, exactly in fp32. Raises UserError if the
    pass cannot be split: tokens that see each other, such as a prompt that sees itself both ways, need one chunk.
    """
    start = 0
    for end in choose_cuts(forward, max_width):
        has_row = (forward.rows >= start) & (forward.rows < end)
        chunk = Forward(
            forward.input_ids[:, start:end],
            forward.past_length + start,
            forward.visible[:, start:end],
            np.where(has_row, forward.rows - start, 0),
            forward.top,
            forward.candidates,
        )
        yield Chunk(chunk, has_row)
        start = end


def choose_cuts(forward: Forward, max_width: int) -> list[int]:
    """Returns the ends of the chunks, each chunk as wide as possible."""
    width = forward.input_ids.shape[1]
    if width <= max_width:
        return [width]
    sees_until = (forward.visible - forward.past_length[:, None]).max(axis=0)  # [width], in tokens of this forward pass
    # A chunk may end at a token if neither this token nor an earlier one sees a later token.
    possible_ends = np.flatnonzero(np.maximum.accumulate(sees_until) <= np.arange(1, width + 1)) + 1
    ends = [0]
    while ends[-1] < width:
        next_ends = possible_ends[(possible_ends > ends[-1]) & (possible_ends <= ends[-1] + max_width)]
        if not len(next_ends):
            raise UserError(
                f"{width} tokens see each other, but this engine takes {max_width} at once; shorten the prompt, or "
                "build the engine with a larger --max-prompt"
            )
        ends.append(int(next_ends[-1]))
    return ends[1:]


def check_bounds(forward: Forward, contract: Contract, batch: int, capacity: int) -> None:
    """Raises ValueError for reads or writes out of bounds, which engines do not notice.

    The error means a bug of blockstep, not a user's mistake.
    """
    width, past = forward.input_ids.shape[1], forward.past_length
    if forward.input_ids.shape[0] != batch or past.min() < 0 or past.max() + width > capacity:
        shape = list(forward.input_ids.shape)
        raise ValueError(f"{shape} tokens after {past.tolist()} in a KV cache of {batch} x {capacity} positions")
    least = 1 if contract.has_cache else width
    if forward.visible.min() < least or (forward.visible.max(axis=1) > past + width).any():
        raise ValueError(f"visible is outside [{least}, {past.max() + width}]")
    if forward.rows.min() < 0 or forward.rows.max() >= width:
        raise ValueError(f"rows are outside [0, {width})")
