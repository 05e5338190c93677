"""Races steps: contenders, each in its own process, take turns, so that a machine that gets slower slows all of them.

In a round every contender takes one turn at each cell of a group; only one runs at a time. Steps that are compared are
measured in the same rounds, so that ratios can be taken round by round.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from tqdm import tqdm

from runtime.perf.latency import compute_percentiles

from .contender import Cell, Contender, serve


@dataclass(slots=True)
class Runner:
    """Holds a contender that takes turns. about: its report on itself; times: ms of each round's steps, by cell."""

    contender: Contender
    process: BaseProcess
    pipe: Connection
    about: dict[str, Any] = field(default_factory=dict)
    times: dict[Cell, list[list[float]]] = field(default_factory=dict)
    best: dict[Cell, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """Holds the outcome of a race.

    rows: one per contender and cell; `ms` is the p10, median and p90 of all steps, `rounds` the median per round.
    about: the contenders' reports on themselves, by name; failed: reasons, by name.
    """

    rows: list[dict[str, Any]]
    about: dict[str, dict[str, Any]]
    failed: dict[str, str]


def race(contenders: Sequence[Contender], groups: Sequence[Sequence[Cell]], rounds: int, steps: int) -> Result:
    """Times `steps` steps per round of each contender at each cell that it enters."""
    failed: dict[str, str] = {}
    with start_all(contenders, failed) as runners:
        turns = [
            (cell, r)
            for group in groups
            for _ in range(rounds)
            for cell in group
            for r in runners
            if r.contender.enters(cell)
        ]
        for cell, runner in tqdm(turns, unit="turn", desc="steps", disable=None):
            if runner.contender.name in failed:
                continue
            told = send_order(runner, (cell, steps))
            if isinstance(told, str):
                failed[runner.contender.name] = told
                continue
            runner.times.setdefault(cell, []).append(told["ms"])
            runner.best[cell] = told["tokens"]
            runner.about["peak_mb"] = told["peak_mb"]
        standing = [runner for runner in runners if runner.contender.name not in failed]
        rows = [row for runner in standing for row in summarize(runner)]
        return Result(rows, {runner.contender.name: runner.about for runner in standing}, failed)


@contextmanager
def start_all(contenders: Sequence[Contender], failed: dict[str, str]) -> Iterator[list[Runner]]:
    """Starts contenders one after the other and yields all; the processes end with the body of the `with`.

    failed: gets the reason, by name, of each that could not be made.
    """
    context, runners = multiprocessing.get_context("spawn"), []
    try:
        for contender in contenders:
            print(f"making {contender.name} ...", file=sys.stderr, flush=True)
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, contender), daemon=True)
            process.start()
            theirs.close()  # otherwise this process would not notice its end
            runner = Runner(contender, process, mine)
            runners.append(runner)
            told = answer(runner)
            if isinstance(told, str):
                failed[contender.name] = told
                print(f"{contender.name} is left out: {told}", file=sys.stderr)
            else:
                runner.about = told
        yield runners
    finally:
        for runner in runners:
            runner.pipe.close()
            runner.process.join()


def send_order(runner: Runner, order: Any) -> Any:
    """Sends an order to a runner; returns its answer, or the reason as text if it failed."""
    with suppress(OSError):  # if the runner has ended, the reason can still be read
        runner.pipe.send(order)
    return answer(runner)


def answer(runner: Runner) -> Any:
    """Returns a runner's next message, or the reason as text if it failed or ended."""
    try:
        return runner.pipe.recv()
    except EOFError:
        runner.process.join()
        return f"its process ended with code {runner.process.exitcode}, which a lack of memory does too"


def summarize(runner: Runner) -> Iterator[dict[str, Any]]:
    """Yields a runner's rows, one per cell."""
    for cell, times in runner.times.items():
        ms = np.array(times)  # [rounds, steps]
        yield {
            "contender": runner.contender.name, "ours": runner.contender.ours, "precision": runner.contender.precision,
            **asdict(cell), "ms": asdict(compute_percentiles(ms)), "rounds": np.median(ms, axis=1).tolist(),
            "count": ms.size,
            "best": runner.best[cell],
        }  # fmt: skip
