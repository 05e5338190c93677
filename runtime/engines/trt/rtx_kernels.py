"""Kernels that TensorRT for RTX compiles on the GPU that runs an engine, kept in the user's cache folder."""

from __future__ import annotations

from typing import Any

from ...bundle import trust_records
from .bindings import RAISED


class RtxKernels:
    """The configuration that an engine's contexts are created with, and the kernels compiled for them.

    Kernels are specialized for a shape before its first forward pass runs (eager). By default a slower kernel runs
    until the specialized one is ready: a CUDA graph captured by then would keep it, and what the first load proved
    would not be what runs later. NVIDIA: "Working with RTX CUDA Graphs", "Working with Runtime Cache".

    key: names engine, library and GPU; what is stored under it is a cache and never part of a bundle. The library
    refuses what another version, driver or GPU compiled; then, as with a damaged file, all is compiled again.
    """

    def __init__(self, engine: Any, library: Any, key: str) -> None:
        self.config, self._key = engine.create_runtime_config(), key
        self.config.dynamic_shapes_kernel_specialization_strategy = (
            library.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self.config.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._cache = self.config.create_runtime_cache()
        self._stored = trust_records.kernels(key)
        if self._stored is not None and not self._takes(self._stored):
            self._stored = None
        self.config.set_runtime_cache(self._cache)

    def store(self) -> None:
        """Writes what was compiled since it was last read or written; what cannot be written is compiled again."""
        try:
            compiled = bytes(memoryview(self._cache.serialize()))
        except RAISED:  # None, which is not a buffer, too
            return
        if compiled != self._stored:
            trust_records.remember_kernels(self._key, compiled)
            self._stored = compiled

    def _takes(self, stored: bytes) -> bool:
        try:
            return bool(self._cache.deserialize(stored))
        except RAISED:
            return False
