"""Replays recorded forward passes on an engine, teacher-forced: each gets its recorded inputs, not earlier outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Floats, Inspectable, Ints, Proposal
from ..bundle.reference import RecordedForward


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Holds what an engine computed in recorded forward passes, with the logits rows of all of them in order.

    token int64 [rows]; log_prob fp32 [rows], of that token; entropy fp32 [rows]; top_logprob fp32 [rows, K], None if
    the engine has no top tokens; norms fp64 [forward passes, layers, 2], see `RecordedForward`.
    """

    token: Ints
    log_prob: Floats
    entropy: Floats
    top_logprob: Floats | None
    norms: NDArray[np.float64]


def replay(backend: Inspectable, forwards: Sequence[RecordedForward]) -> ReplayResult:
    """Runs forward passes in order, and opens a new KV cache for each sequence."""
    proposals, norms = list[Proposal](), list[NDArray[np.float64]]()
    for place, recorded in enumerate(forwards):
        if recorded.begins:
            backend.open(1, count_positions(forwards, place))
        forward = recorded.forward
        proposals.append(backend.forward(forward))
        norms.append(measure_new_norms(backend, int(forward.past_length[0]), forward.input_ids.shape[1]))
    top = [out.top_logprob[0] for out in proposals if out.top_logprob is not None]
    with np.errstate(divide="ignore", invalid="ignore"):  # the judge refuses probabilities of 0 or NaN
        log_prob = np.log(np.concatenate([out.confidence[0] for out in proposals]))
    return ReplayResult(
        np.concatenate([out.token[0] for out in proposals]),
        log_prob,
        np.concatenate([out.entropy[0] for out in proposals]),
        np.concatenate(top) if top else None,
        np.stack(norms),
    )


def count_positions(forwards: Sequence[RecordedForward], place: int) -> int:
    """Returns how many KV-cache positions the sequence that begins at index `place` needs."""
    needed = 0
    for number, recorded in enumerate(forwards[place:]):
        if number and recorded.begins:
            break
        needed = max(needed, int(recorded.forward.past_length[0]) + recorded.forward.input_ids.shape[1])
    return needed


def measure_new_norms(backend: Inspectable, past: int, width: int) -> NDArray[np.float64]:
    """Returns mean norms of the keys and values that a forward pass wrote. fp64 [layers, 2]; [0, 2] without KV cache"""
    if not backend.contract.has_cache:
        return np.zeros((0, 2))
    return compute_mean_norms(backend.read_cache()[..., past : past + width, :])


def compute_mean_norms(new: NDArray[Any]) -> NDArray[np.float64]:
    """Returns mean Euclidean norms of a KV cache's new part. fp64 [layers, 2]

    new: [2 * layers, 1, kv_heads, width, head_dim], keys of layer 0, its values, keys of layer 1, ...
    """
    norms: NDArray[np.float64] = np.sqrt(np.square(new, dtype=np.float64).sum(-1)).mean((1, 2, 3))
    return norms.reshape(-1, 2)
