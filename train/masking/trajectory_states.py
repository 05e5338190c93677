"""Samples training states for distillation: a moment of a trajectory and a later one, as the student sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.contract import Contract
from runtime.decoding.block_layout import (
    compute_block_bounds,
    compute_block_ends,
    compute_committed_ends,
    round_up_to_blocks,
)
from train import distributed
from train.data.batches import choose_width
from train.data.trajectories import NEVER_ACCEPTED, Trajectory


@dataclass(frozen=True, slots=True)
class States:
    """A batch of states y and y* of the same trajectories, each cut after the sampled block or the one after that.

    earlier, later int64 [batch, width]: tokens of y and y*, masks included; visible, visible_later int64 [batch,
    width]: the attention prefix lengths of y and y*, which differ only in causal models if y* has one more committed
    block; unmasked bool [batch, width]: unmasked between y and y*; masked bool [batch, width]: still masked
    in y*; hidden fp32 [n, width]: the teacher's hidden state at each `unmasked` position, in row-major order.
    """

    earlier: Tensor
    later: Tensor
    visible: Tensor
    visible_later: Tensor
    unmasked: Tensor
    masked: Tensor
    hidden: Tensor


def sample_states(
    trajectories: Sequence[Trajectory], contract: Contract, target: str, generator: torch.Generator
) -> States:
    """Samples one pair of states per trajectory: the block uniformly, y more often early in it than late.

    With several processes each has its own rows, see `distributed.take_own_rows`.

    target `completed`: in y* the block is finished, and the next one, at which consistency is computed, still masked.
    target `partial`: y* is at a sampled moment between y and the block's end.
    """
    chances = [torch.rand(3, generator=generator).tolist() for _ in trajectories]
    own = zip(distributed.take_own_rows(trajectories), distributed.take_own_rows(chances), strict=True)
    made = [_make_state(trajectory, contract, target, chance) for trajectory, chance in own]
    longest = max(len(earlier) for earlier, *_ in made)
    width = choose_width(longest)
    shape = (len(made), width)
    ids = torch.full(shape, contract.pad_id)
    later, visible = ids.clone(), torch.ones((2, *shape), dtype=torch.int64)
    unmasked, masked = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    hidden = []
    for row, (tokens, later_tokens, sees, new, still, states) in enumerate(made):
        for full, part in ((ids, tokens), (later, later_tokens), (unmasked, new), (masked, still)):
            full[row, : len(part)] = part
        visible[:, row, : sees.shape[1]] = sees
        hidden.append(states)
    return States(ids, later, visible[0], visible[1], unmasked, masked, torch.cat(hidden))


def _make_state(t: Trajectory, contract: Contract, target: str, chance: list[float]) -> tuple[Tensor, ...]:
    t = _pad_to_blocks(t, contract)
    prompt, finalized = torch.tensor(t.prompt), t.order != NEVER_ACCEPTED
    ends = compute_block_bounds(contract, len(prompt), len(t.tokens))[1][len(prompt) :] - len(prompt)
    limits = [0, *dict.fromkeys(ends[: int(finalized.nonzero().max()) + 1].tolist())]  # block limits
    current = int(chance[0] * (len(limits) - 1))
    start, end = limits[current : current + 2]
    reach = int(ends[end]) if target == "completed" and end < len(ends) else end
    inside = torch.zeros(reach, dtype=torch.bool)
    inside[start:end] = True
    moments = t.order[:reach][inside & finalized[:reach]].sort().values  # the steps taken in this block
    first = int(chance[1] ** 2 * len(moments))
    last = len(moments) if target == "completed" else first + 1 + int(chance[2] * (len(moments) - first))
    start_order = int(moments[first])
    end_order = int(moments[last]) if last < len(moments) else None
    order = t.order[:reach]
    behind = torch.arange(reach) >= end
    open_now = (inside & ((order >= start_order) | (order == NEVER_ACCEPTED))) | behind
    open_later = behind if end_order is None else inside & ((order >= end_order) | (order == NEVER_ACCEPTED))
    new = open_now & ~open_later & finalized[:reach]
    tokens, masks = t.tokens[:reach], contract.mask_id
    clean = torch.zeros(len(prompt), dtype=torch.bool)
    whole = end if target == "completed" else start  # length committed in y*
    seen = [_compute_prefixes(contract, len(prompt), reach, committed) for committed in (start, whole)]
    return (
        torch.cat((prompt, tokens.masked_fill(open_now, masks))),
        torch.cat((prompt, tokens.masked_fill(open_later, masks))),
        torch.stack(seen),
        torch.cat((clean, new)),
        torch.cat((clean, open_later)),
        t.hidden[:reach][new].float(),  # autocast on a CPU cannot join fp16
    )


def _compute_prefixes(contract: Contract, prompt: int, reach: int, committed: int) -> Tensor:
    """Returns the attention prefix length of each position of a prompt and `reach` answer positions.

    committed: how many of the answer's positions are committed.
    """
    settled, ends = compute_committed_ends(contract, prompt, reach), compute_block_ends(contract, prompt, reach)
    return torch.from_numpy(np.concatenate((settled[: prompt + committed], ends[prompt + committed :])))


def _pad_to_blocks(t: Trajectory, contract: Contract) -> Trajectory:
    """Returns the trajectory padded or cut to the whole blocks of its answer."""
    prompt, stored = len(t.prompt), len(t.tokens)
    more = round_up_to_blocks(contract, prompt, min(stored, contract.canvas)) - prompt - stored
    tokens, order = (
        F.pad(part, (0, more), value=filler)
        for part, filler in ((t.tokens, contract.pad_id), (t.order, NEVER_ACCEPTED))
    )
    return replace(t, tokens=tokens, order=order, hidden=F.pad(t.hidden, (0, 0, 0, more)))
