"""Measures how fast this machine's processor reads memory and multiplies matrices.

numpy reads a buffer far larger than the caches, with one thread per core; products are single operators in ONNX
Runtime, whose kernels the engines use. Both figures are the best of several tries: a roof is what the machine can do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.ort.threads import count_physical_cores
from ..errors import UserError
from .data_sheets import Device
from .latency import time_calls

SLICE = 1 << 16  # bytes; a thread's part of the buffer is a multiple of it
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE = 64 << 20  # bytes, if the system does not report it
TRIES = 5
SECONDS = 0.1  # minimum time of reading per try
ROWS, INNER, COLUMNS = 512, 2048, 2048  # of the products; product_models fixes INNER and COLUMNS
PRODUCTS = {
    "fp32": (np.float32, np.float32),
    "fp16": (np.float16, np.float16),
    "int8": (np.uint8, np.int8),
}  # types of activations and of weights


def measure_processor(name: str, threads: int | None = None) -> Device:
    """Measures this machine's memory bandwidth, and a rate per precision. threads: by default the physical cores.

    int4 has the rate of int8, as ONNX Runtime multiplies int4 weights as int8. Raises UserError without onnxruntime.
    """
    threads = threads or count_physical_cores()
    rates = {precision: measure_product_rate(precision, threads) / 1e12 for precision in PRODUCTS}
    size = choose_buffer_size()
    source = f"measured: {threads} threads, {size / 1e9:.2f} GB read, products of {ROWS} x {INNER} x {COLUMNS}"
    return Device(name, measure_bandwidth(size, threads), rates | {"int4": rates["int8"]}, "fp32", source)


def measure_bandwidth(size: int, threads: int | None = None) -> float:
    """Returns the GB (1e9 bytes) per second at which all threads together read a buffer of `size` bytes."""
    threads = threads or count_physical_cores()
    part = max(SLICE, size // threads // SLICE * SLICE)
    parts = [np.ones(part // 8, np.int64) for _ in range(threads)]  # ones, as pages never written are all one page
    times = 1
    with ThreadPoolExecutor(threads) as pool:

        def read_all() -> None:
            list(pool.map(read, parts, [times] * threads))

        while time_calls(read_all, 1, 0)[0] < SECONDS:
            times *= 2
        return float(times * part * threads / time_calls(read_all, TRIES, 0).min() / 1e9)


def read(part: NDArray[np.int64], times: int) -> None:
    """Reads a buffer `times` times; numpy lets other threads run meanwhile."""
    for _ in range(times):
        np.bitwise_or.reduce(part)


def choose_buffer_size() -> int:
    """Returns a buffer's bytes: four times the last-level cache, but at most a quarter of the free memory."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 1 << 32
    return min(4 * read_last_cache(), free // 4)


def read_last_cache() -> int:
    """Returns the bytes of the largest CPU cache that the system reports (on a virtual machine perhaps its host's)."""
    sizes = [size for path in CACHES.glob("index*/size") if (size := read_kilobytes(path))]
    return 1024 * max(sizes, default=UNKNOWN_CACHE // 1024)


def read_kilobytes(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text[:-1]) * {"K": 1, "M": 1024}.get(text[-1:], 0) if text[:-1].isdigit() else 0


def measure_product_rate(precision: str, threads: int) -> float:
    """Returns the best operations per second of a large product in ONNX Runtime. Raises UserError without it."""
    return float(2 * ROWS * INNER * COLUMNS / time_calls(make_product(precision, threads), TRIES, 1).min())


def make_product(precision: str, threads: int) -> Callable[[], Any]:
    """Returns a function that multiplies a matrix [ROWS, INNER] by a weight [INNER, COLUMNS], both constant."""
    try:
        from ..engines.ort.no_telemetry import ort
    except ImportError:
        raise UserError(
            "measuring this machine needs onnxruntime, which is not installed; install 'blockstep[cpu]', or leave "
            "local out of --devices"
        ) from None
    from ..engines.ort import product_models
    from ..engines.ort.saturation import require_exact_products

    taken, weight = PRODUCTS[precision]
    rng = np.random.default_rng(0)
    left = rng.integers(0, 100, (ROWS, INNER)).astype(taken)
    right = rng.integers(-100, 100, (INNER, COLUMNS)).astype(weight)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    require_exact_products(options)  # as in the engines, which can then reach this roof
    multiply = product_models.make_product(precision, right, options)
    return lambda: multiply(left)
