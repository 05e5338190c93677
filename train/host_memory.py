"""Keeps a training's host memory from growing with the number of updates."""

from __future__ import annotations

import os

# oneDNN and PyTorch's layer over it each keep up to 1024 compiled kernels, one per shape that a bf16 product ever had.
# The number of predicted tokens per batch changes from update to update, so most shapes never recur: 2.4 MB an update.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS = 160  # more than the layers need at the widths of short batches


def bound_kernel_caches() -> None:
    """Limits the compiled kernels that are kept, unless the user set a limit; call it before the first product."""
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KERNELS))
