"""Measures how well a model's confidence matches the share of its tokens that are right: bins, expected error.

The model predicts as in a decoding step: a share of one block of a known answer is masked, earlier blocks are not.
Source: Guo et al. 2017 (arXiv 1706.04599), with bins of equal width.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.backend import Backend, Bools, Floats, Forward
from runtime.decoding.block_layout import (
    compute_block_bounds,
    compute_block_ends,
    compute_committed_ends,
    count_committed,
    count_room_for_answer,
)
from train.data.batches import Example

BINS = 15


@dataclass(frozen=True, slots=True)
class Bin:
    """Tokens with a confidence in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    right: float


def compute_reliability(confidence: Floats, right: Bools, bins: int = BINS) -> list[Bin]:
    """Returns the bins that have tokens, in order. confidence, right [n]: per token."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # [n]
    found = []
    for i in np.unique(place):
        here = place == i
        mean, share = float(confidence[here].mean()), float(right[here].mean())
        found.append(Bin(float(i) / bins, float(i + 1) / bins, int(here.sum()), mean, share))
    return found


def compute_expected_error(bins: Sequence[Bin]) -> float:
    """Returns the mean over tokens of the distance between their bin's confidence and accuracy; 0 without tokens."""
    count = sum(each.count for each in bins)
    return sum(each.count * abs(each.confidence - each.right) for each in bins) / max(1, count)


def probe(backend: Backend, examples: Sequence[Example], seed: int) -> tuple[Floats, Bools]:
    """Returns the confidence [n] of tokens predicted at masked positions, and whether they are right [n].

    One block per known answer is masked. Examples whose answer does not fit the canvas or the capacity are left out.
    """
    rng, contract = random.Random(seed), backend.contract
    confidence, right = [np.zeros(0, np.float32)], [np.zeros(0, np.bool_)]
    for example in examples:
        prompt = len(example.prompt)
        if len(example.answer) <= min(contract.canvas, count_room_for_answer(contract, prompt)):
            sure, verdict = _predict_block(backend, example, rng)
            confidence.append(sure)
            right.append(verdict)
    return np.concatenate(confidence), np.concatenate(right)


def _predict_block(backend: Backend, example: Example, rng: random.Random) -> tuple[Floats, Bools]:
    """Runs one forward pass, with the answer tokens of a sampled block masked at a sampled ratio."""
    contract, prompt = backend.contract, len(example.prompt)
    known = np.array(example.prompt + example.answer, np.int64)
    begins, ends = compute_block_bounds(contract, prompt, len(example.answer))
    low = rng.choice(np.unique(begins[count_committed(contract, prompt) :]).tolist())
    high = int(ends[low])
    places, ratio = np.arange(low, high), rng.random()
    predicted = places >= max(prompt, low + contract.seeded)  # a seeded block's first token is known before the others
    masked = predicted & np.array([rng.random() < ratio for _ in places])
    if not masked[places < len(known)].any():
        masked = predicted  # a step has at least one masked position
    width = high if contract.has_cache else prompt + contract.canvas
    ids = np.full(width, contract.mask_id, np.int64)
    ids[:low] = known[:low]
    filled = np.append(known, np.full(len(places), contract.pad_id))[low:high]
    ids[low:high] = np.where(masked, contract.mask_id, filled)
    settled, ends = (
        compute_committed_ends(contract, prompt, width - prompt),
        compute_block_ends(contract, prompt, width - prompt),
    )
    visible = np.concatenate((settled[:low], ends[low:])) if contract.has_cache else ends
    rows = np.maximum(places - contract.shift, 0)
    backend.open(1, width)
    out = backend.forward(Forward(ids[None], np.zeros(1, np.int64), visible[None], rows[None]))
    graded = masked & (places < len(known))
    return out.confidence[0][graded], out.token[0][graded] == known[places[graded]]
