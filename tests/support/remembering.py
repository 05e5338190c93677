"""An engine of several sequences without weights, so fast that thousands of requests go through it."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny import END, MASK, contract

from runtime.backend import Forward, Ints, Proposal
from runtime.contract import Contract
from runtime.engines.trt.chunked_prefill import check_bounds

EMPTY_SLOT = -7  # what stands in a cache where nothing was written
TOP = 4


def make_remembering_contract(batch: int, **changes: Any) -> Contract:
    """The contract of `Remembering`; see `tiny.contract`."""
    return contract(**{"batch": batch, "top_k": TOP, "canvas": 16, **changes})


class Remembering:
    """What it predicts of a row is a hash of the row's place and of every id that the row sees.

    So a wrong id anywhere in the cache, something that another request left there, or a row that sees too much or too
    little change the answer, as they would a real model's. What pads a sequence is written behind its own end. ends:
    whether it says end tokens, one of sixteen.
    """

    name = "remembering"

    def __init__(self, spec: Contract, ends: bool = True) -> None:
        self.contract, self._ends = spec, ends
        self.ids = np.zeros((0, 0), np.int64)  # [batch, capacity + 2 blocks], the cache
        self.opened = self.most = self.capacity = 0
        self.computed: list[tuple[int, int]] = []  # sequences and width of each forward

    def open(self, batch: int, capacity: int) -> None:
        assert 1 <= batch <= self.contract.batch and 1 <= capacity <= self.contract.capacity
        self.opened, self.most, self.capacity = self.opened + 1, batch, capacity + 2 * self.contract.block
        self.ids = np.full((batch, self.capacity), EMPTY_SLOT)

    def keep(self, rows: NDArray[Any]) -> None:
        assert 1 <= len(rows) <= self.most
        self.ids = self.ids[rows]

    def forward(self, forward: Forward) -> Proposal:
        if self.contract.has_cache:  # without one, shorter sequences of a batch see less than its width
            check_bounds(forward, self.contract, len(self.ids), self.capacity)
        width, shape = forward.input_ids.shape[1], forward.rows.shape
        self.computed.append(forward.input_ids.shape)
        top, scores = np.zeros((*shape, TOP), np.int64), np.zeros((2, *shape), np.float32)
        for slot, past in enumerate(forward.past_length.tolist()):
            self.ids[slot, past : past + width] = forward.input_ids[slot]
            for n, row in enumerate(forward.rows[slot].tolist()):
                top[slot, n], scores[:, slot, n] = self._predict(slot, past + row, int(forward.visible[slot, row]))
        token, (sure, heat) = top[..., 0].copy(), scores
        if not forward.top:
            return Proposal(token, sure, heat)
        rest = np.log((1 - sure) / TOP)[..., None] - np.arange(TOP - 1, dtype=np.float32) / 8
        return Proposal(token, sure, heat, top, np.concatenate((np.log(sure)[..., None], rest), axis=-1))

    def _predict(self, slot: int, place: int, visible: int) -> tuple[Ints, tuple[float, float]]:
        """The top tokens, the best first, with the confidence and the entropy of the best."""
        found = zlib.crc32(self.ids[slot, :visible].tobytes(), place)
        plain = self.contract.vocab - MASK - 1  # tokens behind the special ones
        tokens = MASK + 1 + (found // 16 + np.arange(TOP)) % plain
        tokens[0] = END if self._ends and found % 16 == 0 else tokens[0]
        return tokens, (0.3 + (found >> 8) % 70 / 100, (found >> 16) % 100 / 100)


class Growing(Remembering):
    """A KV cache that can be made longer, which notes how long it was each time."""

    def __init__(self, spec: Contract, ends: bool = True) -> None:
        super().__init__(spec, ends)
        self.lengths = list[int]()

    def open(self, batch: int, capacity: int) -> None:
        super().open(batch, capacity)
        self.lengths.append(capacity)

    def grow(self, capacity: int) -> None:
        new = capacity + 2 * self.contract.block - self.capacity
        assert new > 0 and capacity <= self.contract.capacity
        self.ids = np.pad(self.ids, ((0, 0), (0, new)), constant_values=EMPTY_SLOT)
        self.capacity += new
        self.lengths.append(capacity)
