"""What takes part in the race of steps: how it is made in a process of its own, and what it is asked there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.backend import Ints

WARMUP = 3  # steps at a new place, which plan memory and may compile
PAUSE = 0.05  # seconds before a turn, in which the threads of the contender before stop to spin


@dataclass(frozen=True, slots=True)
class Cell:
    """A step that is timed: its tokens, those in the cache before it, and the cache's length, None for what fits."""

    width: int
    past: int
    capacity: int | None = None


class Stepper(Protocol):
    """A model that runs steps."""

    def place(self, cell: Cell) -> None:
        """Makes ready for steps of that kind, the cache filled as far as its speed depends on that."""

    def step(self) -> None:
        """One forward over `tokens(width)`, which is timed."""

    def best(self) -> Ints:
        """The tokens [width] that the last step found most likely, or that its logits make so. Not timed."""

    def about(self) -> dict[str, Any]:
        """Versions and settings that its speed depends on."""


@dataclass(frozen=True, slots=True)
class Contender:
    """make(**options) is a Stepper; both are taken to another process.

    ours: whether it is this project's, which alone chooses a capacity; past: behind which alone it steps, None for all.
    """

    name: str
    make: Callable[..., Stepper]
    options: dict[str, Any]
    ours: bool = False
    precision: str = ""
    past: int | None = None

    def enters(self, cell: Cell) -> bool:
        return (self.ours or cell.capacity is None) and self.past in (None, cell.past)


def tokens(width: int) -> Ints:
    """The ids that every contender steps over, the same for all. int64 [width]"""
    return np.arange(width, dtype=np.int64) * 7 % 50 + 2


def serve(pipe: Connection, contender: Contender) -> None:
    """Makes the contender and takes turns until the pipe closes; whatever fails is told, not raised."""
    try:
        started = time.perf_counter()
        stepper = contender.make(**contender.options)
        pipe.send({"seconds": time.perf_counter() - started, **stepper.about(), "peak_mb": peak_mb()})
        placed = None
        while True:
            cell, count = pipe.recv()
            if cell != placed:
                stepper.place(cell)
                for _ in range(WARMUP):
                    stepper.step()
                placed = cell
            pipe.send(turn(stepper, count))
    except EOFError:
        return
    except Exception as error:  # a library's own kinds, some of them not picklable
        pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def turn(stepper: Stepper, count: int) -> dict[str, Any]:
    """Milliseconds of `count` steps after one that is not counted, and the last one's tokens."""
    time.sleep(PAUSE)
    stepper.step()
    ms = []
    for _ in range(count):
        started = time.perf_counter()
        stepper.step()
        ms.append(1000 * (time.perf_counter() - started))
    return {"ms": ms, "tokens": stepper.best().tolist(), "peak_mb": peak_mb()}


def peak_mb() -> float:
    """The most memory this process held, in MB (1e6 bytes). Linux alone tells it of a process that another began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
