"""Computes what decoding costs on a device: autoregressive, in blocks, or the whole answer at once.

After CDLM's system analysis (arXiv 2511.19269): every step reads all weights once. For this read, an autoregressive
step does the work of one token, and a full-diffusion step that of the whole sequence. A block's step is in between; a
device may do its work while it reads the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .data_sheets import Device
from .op_counts import ModelShape, PassSize

TRAINED = (4, 8, 16, 32, 64)  # block sizes that published models are trained with


@dataclass(frozen=True, slots=True)
class Question:
    """Describes what to compute: a shape in a precision, after `past` tokens, for these batches and block sizes.

    answer: positions of a full-diffusion forward pass after the `past` tokens of the prompt; accepted: tokens unmasked
    per sequence and diffusion forward pass, commits counted as passes, as an answer's `tokens_per_forward`.
    """

    shape: ModelShape
    precision: str
    past: int
    answer: int
    batches: tuple[int, ...]
    blocks: tuple[int, ...]
    accepted: float


@dataclass(frozen=True, slots=True)
class Mode:
    """Describes a way to decode. one: its forward pass of one sequence; tokens: how many that pass unmasks."""

    name: str
    one: PassSize
    tokens: float

    def forward(self, batch: int) -> PassSize:
        """Returns the forward pass of `batch` sequences."""
        return PassSize(batch, self.one.width, self.one.past, self.one.rows, self.one.cached)


@dataclass(frozen=True, slots=True)
class DecodingCost:
    """Holds a mode's cost at one batch on a device.

    operations, bytes, ms: per forward pass; intensity: operations per byte; bound: `memory` or `compute`; cost: the
    pass's time divided by that of an autoregressive pass. A mode that unmasks more tokens per forward pass than `cost`
    is faster than autoregressive decoding.
    """

    mode: str
    batch: int
    operations: float
    bytes: float
    intensity: float
    bound: str
    ms: float
    cost: float
    tokens_per_second: float


def list_modes(question: Question) -> list[Mode]:
    """Returns the modes: autoregressive, each block, and full diffusion over prompt and answer at once."""
    q = question
    blocks = [Mode(f"block of {size}", PassSize(1, size, q.past, size), min(q.accepted, size)) for size in q.blocks]
    whole = q.past + q.answer
    full = Mode(f"full, {whole} positions", PassSize(1, whole, 0, q.answer, False), min(q.accepted, q.answer))
    return [Mode("autoregressive", PassSize(1, 1, q.past, 1), 1.0), *blocks, full]


def compute_points(device: Device, question: Question) -> Iterator[DecodingCost]:
    """Yields the cost of every mode at every batch, mode by mode."""
    q = question
    for mode in list_modes(q):
        for batch in q.batches:
            load = device.count_work(q.shape, q.precision, mode.forward(batch))
            ms, compute = device.estimate_ms(load, q.precision), device.estimate_compute_ms(load, q.precision)
            bound = "compute" if compute > device.estimate_memory_ms(load) else "memory"
            single = device.estimate_ms(
                device.count_work(q.shape, q.precision, PassSize(batch, 1, q.past, 1)), q.precision
            )
            done, moved = load.linear + load.attention, load.weights + load.cache
            speed = 1000 * batch * mode.tokens / ms
            yield DecodingCost(mode.name, batch, done, moved, load.intensity, bound, ms, ms / single, speed)


def choose_trained_block(widest: int) -> int:
    """Returns the block to train: the largest of TRAINED up to `widest`, the widest memory-bound block."""
    return max((block for block in TRAINED if block <= widest), default=TRAINED[0])


def analyze(device: Device, question: Question) -> dict[str, Any]:
    """Returns all results for a device as plain values. The block to train is that of the first batch."""
    q = question
    widest = {batch: device.find_widest_block(q.shape, q.precision, batch, q.past) for batch in q.batches}
    return {
        "name": device.name,
        "source": device.source,
        "gb_per_second": device.bandwidth,
        "tera_operations_per_second": device.rates[q.precision],
        "ridge": device.compute_ridge(q.precision),
        "widest_memory_bound_block": [{"batch": batch, "block": block} for batch, block in widest.items()],
        "block_to_train": choose_trained_block(widest[q.batches[0]]),
        "points": [asdict(point) for point in compute_points(device, q)],
    }
