"""A contender in the race of steps: how it is made in a process of its own, and how it takes its turns."""

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
PAUSE = 0.05  # seconds before a turn, so that the previous contender's threads stop spinning


@dataclass(frozen=True, slots=True)
class Cell:
    """A timed step: its tokens, those in the KV cache before it, and that cache's capacity, None for what fits."""

    width: int
    past: int
    capacity: int | None = None


class Stepper(Protocol):
    """A model that runs steps."""

    def place(self, cell: Cell) -> None:
        """Prepares for steps of that cell; the KV cache is filled as far as its speed depends on that."""

    def step(self) -> None:
        """Runs one forward pass over `tokens(width)`, which is timed."""

    def best(self) -> Ints:
        """Returns the top-1 tokens [width] of the last step, or takes them from its logits. Not timed."""

    def about(self) -> dict[str, Any]:
        """Returns versions and settings that its speed depends on."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A contender: make(**options) is a Stepper; both are sent to another process.

    ours: whether it is this project's; only ours chooses a KV-cache capacity; past: the only past it runs at, None for
    all.
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
    """Returns the ids that every contender steps over, the same for all. int64 [width]"""
    return np.arange(width, dtype=np.int64) * 7 % 50 + 2


def serve(pipe: Connection, contender: Contender) -> None:
    """Makes the contender and takes turns until the pipe closes; an error is reported, not raised."""
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
    """Returns milliseconds of `count` steps after one that is not counted, and the last one's tokens."""
    time.sleep(PAUSE)
    stepper.step()
    ms = []
    for _ in range(count):
        started = time.perf_counter()
        stepper.step()
        ms.append(1000 * (time.perf_counter() - started))
    return {"ms": ms, "tokens": stepper.best().tolist(), "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Returns this process's peak memory in MB (1e6 bytes). Only Linux reports it correctly for a process started by
    another one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
