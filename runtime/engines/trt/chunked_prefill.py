"""Chunked prefill: splits a forward pass that is too wide for an engine, at cuts that no earlier token sees beyond."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...backend import Bools, Forward
from ...contract import Contract
from ...errors import UserError


@dataclass(frozen=True, slots=True)
class Piece:
    """Holds a part of a forward pass. own [batch, n]: whether it has the logits row; if not, `forward.rows` is 0."""

    forward: Forward
    own: Bools


def split_forward(forward: Forward, widest: int) -> Iterator[Piece]:
    """Yields the parts in order, each at most `widest` tokens wide.

    Run one after the other, they compute the same as the whole forward pass, exactly in fp32. Raises UserError if the
    pass cannot be split so: tokens that see each other, such as a prompt that sees itself both ways, need one piece.
    """
    start = 0
    for end in choose_cuts(forward, widest):
        own = (forward.rows >= start) & (forward.rows < end)
        part = Forward(
            forward.input_ids[:, start:end],
            forward.past_length + start,
            forward.visible[:, start:end],
            np.where(own, forward.rows - start, 0),
            forward.top,
            forward.candidates,
        )
        yield Piece(part, own)
        start = end


def choose_cuts(forward: Forward, widest: int) -> list[int]:
    """Returns the ends of the pieces, each piece as wide as possible."""
    width = forward.input_ids.shape[1]
    if width <= widest:
        return [width]
    reach = (forward.visible - forward.past_length[:, None]).max(axis=0)  # [width], in tokens of this forward pass
    may_end = np.flatnonzero(np.maximum.accumulate(reach) <= np.arange(1, width + 1)) + 1
    ends = [0]
    while ends[-1] < width:
        here = may_end[(may_end > ends[-1]) & (may_end <= ends[-1] + widest)]
        if not len(here):
            raise UserError(
                f"{width} tokens see each other, but this engine takes {widest} at once; shorten the prompt, or build "
                "the engine with a larger --max-prompt"
            )
        ends.append(int(here[-1]))
    return ends[1:]


def check_bounds(forward: Forward, contract: Contract, batch: int, capacity: int) -> None:
    """Raises ValueError for reads or writes out of bounds, which engines do not notice.

    Users cannot cause them: they would be a bug of blockstep.
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
