"""Keeps, in the user's cache folder, the kernels that TensorRT for RTX compiles on the GPU that runs an engine."""

from __future__ import annotations

from typing import Any

from ...bundle import trust_records
from .bindings import BINDING_ERRORS


class RtxKernels:
    """Holds the configuration for creating an engine's contexts, and the kernels compiled for them.

    Kernels are specialized for a shape before that shape's first forward pass runs (eager). By default a slower kernel
    would run until the specialized one is ready: a CUDA graph captured before that would keep the slower kernel, and
    the proof of the first load would run other kernels than later runs. NVIDIA: "Working with RTX CUDA Graphs",
    "Working with Runtime Cache".

    key: identifies engine, library and GPU. The stored kernels are a cache, never part of a bundle. The library refuses
    kernels of another version, driver or GPU; those, like a damaged file, are compiled again.
    """

    def __init__(self, engine: Any, library: Any, key: str) -> None:
        self.config, self._key = engine.create_runtime_config(), key
        self.config.dynamic_shapes_kernel_specialization_strategy = (
            library.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self.config.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._cache = self.config.create_runtime_cache()
        self._stored_kernels = trust_records.read_kernels(key)
        if self._stored_kernels is not None and not self._load(self._stored_kernels):
            self._stored_kernels = None
        self.config.set_runtime_cache(self._cache)

    def store(self) -> None:
        """Writes the kernels if any were compiled since the last read or write; a failure to write is not reported."""
        try:
            kernels = bytes(memoryview(self._cache.serialize()))
        except BINDING_ERRORS:  # also if serialize() returns None, which is not a buffer
            return
        if kernels != self._stored_kernels:
            trust_records.remember_kernels(self._key, kernels)
            self._stored_kernels = kernels

    def _load(self, kernels: bytes) -> bool:
        """Loads stored kernels. Returns False if the library refuses them."""
        try:
            return bool(self._cache.deserialize(kernels))
        except BINDING_ERRORS:
            return False
