"""Replays recorded forward passes on an engine, teacher-forced: each has its recorded inputs, whatever came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Floats, Inspectable, Ints, Proposal
from ..bundle.reference import RecordedForward


@dataclass(frozen=True, slots=True)
class Replayed:
    """What an engine computed in recorded forward passes, their logits rows one after the other.

    token int64 [rows]; log_prob fp32 [rows], of that token; entropy fp32 [rows]; top_logprob fp32 [rows, K], None of an
    engine without top tokens; norms fp64 [forward passes, layers, 2], see `RecordedForward`.
    """

    token: Ints
    log_prob: Floats
    entropy: Floats
    top_logprob: Floats | None
    norms: NDArray[np.float64]


def replay(backend: Inspectable, forwards: Sequence[RecordedForward]) -> Replayed:
    """Runs forward passes in order, in a KV cache that is opened anew for each sequence."""
    proposals, norms = list[Proposal](), list[NDArray[np.float64]]()
    for place, recorded in enumerate(forwards):
        if recorded.begins:
            backend.open(1, positions_of(forwards, place))
        forward = recorded.forward
        proposals.append(backend.forward(forward))
        norms.append(new_norms(backend, int(forward.past_length[0]), forward.input_ids.shape[1]))
    top = [out.top_logprob[0] for out in proposals if out.top_logprob is not None]
    with np.errstate(divide="ignore", invalid="ignore"):  # a probability of 0 or NaN is for the judge to refuse
        log_prob = np.log(np.concatenate([out.confidence[0] for out in proposals]))
    return Replayed(
        np.concatenate([out.token[0] for out in proposals]),
        log_prob,
        np.concatenate([out.entropy[0] for out in proposals]),
        np.concatenate(top) if top else None,
        np.stack(norms),
    )


def positions_of(forwards: Sequence[RecordedForward], place: int) -> int:
    """Returns how many KV-cache positions the sequence that begins at this place needs."""
    needed = 0
    for number, recorded in enumerate(forwards[place:]):
        if number and recorded.begins:
            break
        needed = max(needed, int(recorded.forward.past_length[0]) + recorded.forward.input_ids.shape[1])
    return needed


def new_norms(backend: Inspectable, past: int, width: int) -> NDArray[np.float64]:
    """Mean norms of the keys and values that a forward pass wrote. fp64 [layers, 2], [0, 2] without a KV cache"""
    if not backend.contract.has_cache:
        return np.zeros((0, 2))
    return mean_norms(backend.read_cache()[..., past : past + width, :])


def mean_norms(new: NDArray[Any]) -> NDArray[np.float64]:
    """Mean Euclidean norms of new parts of a KV cache [2 * layers, 1, kv_heads, width, head_dim]. fp64 [layers, 2]"""
    norms: NDArray[np.float64] = np.sqrt(np.square(new, dtype=np.float64).sum(-1)).mean((1, 2, 3))
    return norms.reshape(-1, 2)
