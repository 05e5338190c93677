"""Holds the KV cache on a GPU: allocated once, zeroed per request, extended by copies for `delta` engines."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from ...backend import Floats
from ...contract import Contract
from .cuda import Cuda, Handle
from .profile import ALIGNMENT

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class DeviceCache:
    """Holds a contract's KV cache [2 * layers, batch, kv_heads, capacity, head_dim]: per layer keys, then values.

    parts: addresses of the 2 * layers parts. new_parts: addresses of a `delta` engine's outputs, the new keys and
    values of a forward pass, [2 * layers, batch, kv_heads, width, head_dim]; empty for other engines. max_width: tokens
    of the widest forward pass.
    """

    def __init__(self, cuda: Cuda, stream: Handle, contract: Contract, max_width: int, stack: ExitStack) -> None:
        self._cuda, self._stream, self.contract = cuda, stream, contract
        self._head_bytes = contract.head_dim * DTYPE_BYTES[contract.dtype]  # per position and head
        count = 0 if contract.cache == "none" else 2 * contract.layers
        position_bytes = contract.batch * contract.kv_heads * self._head_bytes  # of one part
        self._total_bytes = count * align(position_bytes * contract.capacity)
        self.parts = self._allocate(count, position_bytes * contract.capacity, stack)
        self.new_parts = self._allocate(count if contract.cache == "delta" else 0, position_bytes * max_width, stack)

    def _allocate(self, count: int, size: int, stack: ExitStack) -> list[int]:
        """Allocates `count` parts of `size` bytes in one call, and returns their addresses."""
        if not count:
            return []
        first = self._cuda.allocate(count * align(size))
        stack.callback(self._cuda.free, first)
        return [first + i * align(size) for i in range(count)]

    def zero(self) -> None:
        """Zeroes the KV cache: a masked position's weight of 0 times an old NaN would be NaN."""
        if self.parts:
            self._cuda.zero(self.parts[0], self._total_bytes, self._stream)

    def append(self, index: int, start: int, count: int, width: int) -> None:
        """Copies a sequence's first `count` new keys and values to the positions from `start` on.

        index: the sequence's place in the batch; width: tokens of the forward pass that computed them.
        """
        c, head_bytes = self.contract, self._head_bytes
        pitch, new_pitch = c.capacity * head_bytes, width * head_bytes
        for part, new_part in zip(self.parts, self.new_parts, strict=True):
            target = part + (index * c.kv_heads * c.capacity + start) * head_bytes
            source = new_part + index * c.kv_heads * new_pitch
            self._cuda.copy_rows(target, pitch, source, new_pitch, count * head_bytes, c.kv_heads, self._stream)

    def read(self) -> Floats:
        """Returns the whole KV cache, for comparisons. float32 [2 * layers, batch, kv_heads, capacity, head_dim]"""
        c = self.contract
        shape = (len(self.parts), c.batch, c.kv_heads, c.capacity, c.head_dim)
        part_bytes = c.batch * c.kv_heads * c.capacity * self._head_bytes
        raw = np.empty((len(self.parts), part_bytes), np.uint8)
        for part, array in zip(self.parts, raw, strict=True):
            self._cuda.copy_to_host(array, part, self._stream)
        self._cuda.synchronize(self._stream)
        return convert_to_float32(raw, c.dtype).reshape(shape)


def align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def convert_to_float32(raw: NDArray[np.uint8], dtype: str) -> Floats:
    """Converts bytes of a KV-cache type to fp32; numpy has no bfloat16, whose bits are the upper half of an fp32's."""
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(dtype).astype(np.float32)
