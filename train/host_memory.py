"""Keeps a training's host memory from growing with the number of updates."""

from __future__ import annotations

import os

# oneDNN and PyTorch's layer over it keep a compiled kernel for each shape that a bf16 product ever had, 1024 each. How
# many tokens a batch asks for differs from update to update, so most of those shapes never come back: 2.4 MB an update.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS = 160  # more than the layers need at the widths of short batches


def bound_kernel_caches() -> None:
    """Lets few compiled kernels stay, unless the user said how many; before the first product, which reads it."""
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KERNELS))
