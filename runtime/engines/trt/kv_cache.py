"""Holds the KV cache on a GPU: allocated once, zeroed per request, extended by copies for `delta` engines."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from ...backend import Floats
from ...contract import Contract
from .cuda import Cuda, Handle
from .profile import ALIGNED

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes


class DeviceCache:
    """Holds a contract's KV cache [2 * layers, batch, kv_heads, capacity, head_dim]: per layer keys, then values.

    parts: addresses of the 2 * layers parts. news: addresses of a `delta` engine's outputs, the new keys and values of
    a forward pass, [2 * layers, batch, kv_heads, width, head_dim]. widest: tokens of the widest forward pass.
    """

    def __init__(self, cuda: Cuda, stream: Handle, contract: Contract, widest: int, stack: ExitStack) -> None:
        self._cuda, self._stream, self.contract = cuda, stream, contract
        self.cell = contract.head_dim * SIZES[contract.dtype]  # bytes per position and head
        count = 0 if contract.cache == "none" else 2 * contract.layers
        row = contract.batch * contract.kv_heads * self.cell
        self.size = count * align(row * contract.capacity)
        self.parts = self._allocate(count, row * contract.capacity, stack)
        self.news = self._allocate(count if contract.cache == "delta" else 0, row * widest, stack)

    def _allocate(self, count: int, size: int, stack: ExitStack) -> list[int]:
        if not count:
            return []
        first = self._cuda.allocate(count * align(size))
        stack.callback(self._cuda.free, first)
        return [first + i * align(size) for i in range(count)]

    def zero(self) -> None:
        """Zeroes the KV cache: a masked position's weight of 0 times an old NaN would be NaN."""
        if self.parts:
            self._cuda.zero(self.parts[0], self.size, self._stream)

    def append(self, row: int, start: int, columns: int, width: int) -> None:
        """Copies a sequence's first `columns` new keys and values to the positions from `start` on.

        row: the sequence's index; width: tokens of the forward pass that computed them.
        """
        c, cell = self.contract, self.cell
        pitch, source_pitch = c.capacity * cell, width * cell
        for part, new in zip(self.parts, self.news, strict=True):
            target = part + (row * c.kv_heads * c.capacity + start) * cell
            source = new + row * c.kv_heads * source_pitch
            self._cuda.copy_rows(target, pitch, source, source_pitch, columns * cell, c.kv_heads, self._stream)

    def read(self) -> Floats:
        """Returns the whole KV cache, for comparisons. float32 [2 * layers, batch, kv_heads, capacity, head_dim]"""
        c = self.contract
        shape = (len(self.parts), c.batch, c.kv_heads, c.capacity, c.head_dim)
        size = c.batch * c.kv_heads * c.capacity * self.cell
        raw = np.empty((len(self.parts), size), np.uint8)
        for part, target in zip(self.parts, raw, strict=True):
            self._cuda.to_host(target, part, self._stream)
        self._cuda.synchronize(self._stream)
        return convert_to_float32(raw, c.dtype).reshape(shape)


def align(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def convert_to_float32(raw: NDArray[np.uint8], dtype: str) -> Floats:
    """Converts bytes of a KV-cache type to fp32; numpy has no bfloat16, whose bits are the upper half of an fp32's."""
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(dtype).astype(np.float32)
