"""Defines a contender in the race of steps: how its process makes it, and how it takes turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from runtime.backend import Ints
from runtime.errors import describe_error

WARMUP = 3  # untimed steps at a new cell, which plan memory and may compile
PAUSE = 0.05  # seconds before a turn, so that the previous contender's threads stop spinning


@dataclass(frozen=True, slots=True)
class Cell:
    """Describes a timed step: its tokens, tokens in the KV cache before it, KV-cache capacity (None for what fits)."""

    width: int
    past: int
    capacity: int | None = None


class Stepper(Protocol):
    """Runs steps of a model."""

    def place(self, cell: Cell) -> None:
        """Prepares for steps of that cell; fills the KV cache if the step's speed depends on that."""

    def step(self) -> None:
        """Runs one forward pass over `make_tokens(width)`, which is timed."""

    def predict_top1(self) -> Ints:
        """Returns the top-1 tokens [width] of the last step, taken from its logits if need be. Not timed."""

    def describe(self) -> dict[str, Any]:
        """Returns versions and settings that the speed depends on."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Describes a contender: make(**options) returns its Stepper; `make` and `options` are sent to its process.

    ours: whether it is this project's; only these run cells with a KV-cache capacity. past: the only past that it runs
    at, None for all.
    """

    name: str
    make: Callable[..., Stepper]
    options: dict[str, Any]
    ours: bool = False
    precision: str = ""
    past: int | None = None

    def enters(self, cell: Cell) -> bool:
        return (self.ours or cell.capacity is None) and self.past in (None, cell.past)


def make_tokens(width: int) -> Ints:
    """Returns the ids that every contender's step takes, the same for all. int64 [width]"""
    return np.arange(width, dtype=np.int64) * 7 % 50 + 2


def serve(pipe: Connection, contender: Contender) -> None:
    """Makes the contender and takes turns until the pipe closes; an error is reported, not raised."""
    try:
        started = time.perf_counter()
        stepper = contender.make(**contender.options)
        pipe.send({"seconds": time.perf_counter() - started, **stepper.describe(), "peak_mb": read_peak_mb()})
        placed = None
        while True:
            cell, count = pipe.recv()
            if cell != placed:
                stepper.place(cell)
                for _ in range(WARMUP):
                    stepper.step()
                placed = cell
            pipe.send(take_turn(stepper, count))
    except EOFError:
        return
    except Exception as error:  # libraries have their own types, some of which cannot be pickled
        pipe.send(f"{type(error).__name__}: {describe_error(error, 300)}")


def take_turn(stepper: Stepper, count: int) -> dict[str, Any]:
    """Runs `count` timed steps after an untimed one; returns their milliseconds and the last step's tokens."""
    time.sleep(PAUSE)
    stepper.step()
    ms = []
    for _ in range(count):
        started = time.perf_counter()
        stepper.step()
        ms.append(1000 * (time.perf_counter() - started))
    return {"ms": ms, "tokens": stepper.predict_top1().tolist(), "peak_mb": read_peak_mb()}


def read_peak_mb() -> float:
    """Returns this process's peak memory in MB (1e6 bytes). Only Linux reports it correctly for a process started by
    another one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
