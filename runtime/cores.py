"""How many cores this process has, and how many of them a forward takes."""

from __future__ import annotations

import os
from pathlib import Path

LITTLE = 16 << 20  # bytes of int8 weights


def usual_threads(precision: str, size: int) -> int:
    """Threads of a forward of an engine with so many bytes of weights: the physical cores.

    One where the weights are int8 and few: a product of theirs is over before a second thread has woken, and each of
    them waits for it. LOG.md has where the two meet.
    """
    return 1 if precision == "int8" and size < LITTLE else physical_cores()


def physical_cores() -> int:
    """Cores this process may run on, counting the threads of one core once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)
