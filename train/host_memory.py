"""Keeps the host memory of a training run from growing with the number of updates."""

from __future__ import annotations

import os

# oneDNN and PyTorch's layer over it each keep up to 1024 compiled kernels, one per shape of a bf16 matrix product.
# The number of predicted tokens per batch changes from update to update, so most shapes never recur: 2.4 MB per update.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS = 160  # more than the layers need at the widths of short batches


def bound_kernel_caches() -> None:
    """Limits how many compiled kernels are kept, unless the user set a limit; call it before any matrix product."""
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KERNELS))
