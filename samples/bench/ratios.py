"""Computes the ratios of the race of steps, round by round, next to their goals and the machine's own limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.perf.data_sheets import Device
from runtime.perf.op_counts import ForwardWork, ModelShape, PassSize

from .goals import judge

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """Describes a bound: a step of `width` tokens after `past` takes at most `most` of the other engine's time."""

    rival: str
    width: int
    past: int
    most: float


GOALS = (
    Goal("PyTorch eager bf16", 32, 256, 0.35),
    Goal("llama.cpp Q4_0", 32, 256, 0.45),
    Goal("llama.cpp Q4_0", 8, 256, 0.7),
)
OVER_LIMIT, OVER_SHORT, OVER_ATTENTION = 2.0, 1.05, 2.0  # upper bounds of the other ratios
LOOP, LOOP_US = 0.03, 100.0  # upper bounds of the host's loop: share of a step, microseconds
PLAIN, WITH_CANDIDATES = "blockstep fp32", "blockstep fp32 with candidates"  # contenders
PARTS = ("p10", "median", "p90")
LONG, SHORT = 4096, 256  # KV-cache capacities
MIDDLE, FAR = 256, 1024  # pasts (tokens) at which steps, and attention alone, are judged


def compute_ratios(rows: Sequence[Row], shape: ModelShape, device: Device) -> Iterator[Row]:
    """Yields, goal by goal, the ratios of each of our precisions whose rows were measured.

    Each is an entry of `goals.judge` over the rounds; its `limit` is the ratio that our step would have at this
    machine's limit.
    """
    ours = [row for row in rows if row["ours"]]
    each = [select_rows(ours, name) for name in dict.fromkeys(row["contender"] for row in ours)]
    for goal in GOALS:
        for mine in each:
            yield from compare_with_engine(mine, rows, goal)
    for mine in each:
        yield from compare_with_limit(mine)
    for mine in each:
        yield from compare_capacities(mine)
    for mine in each:
        yield from compare_pasts(mine, shape, device)
    for mine in each:
        yield from compare_widths(mine)
    yield from compare_candidates(ours)


def compare_with_engine(mine: Sequence[Row], rows: Sequence[Row], goal: Goal) -> Iterator[Row]:
    """Yields the ratio of our step's time to that of the goal's engine."""
    row, theirs = find_row(mine, goal.width, goal.past), find_row(select_rows(rows, goal.rival), goal.width, goal.past)
    if row and theirs:
        what = f"B {goal.width}, past {goal.past}, over {goal.rival}"
        limit = row["limit_ms"] / theirs["ms"]["median"]
        yield judge(what, read_times(row) / read_times(theirs), most=goal.most, contender=row["contender"], limit=limit)


def compare_with_limit(mine: Sequence[Row]) -> Iterator[Row]:
    """Yields the ratio of the widest step after MIDDLE tokens to the machine's limit."""
    width = find_widest(mine)
    if row := find_row(mine, width, MIDDLE):
        what = f"B {width}, past {MIDDLE}, over this machine's limit"
        each = read_times(row) / row["limit_ms"]
        yield judge(what, each, most=OVER_LIMIT, contender=row["contender"], limit=1.0)


def compare_capacities(mine: Sequence[Row]) -> Iterator[Row]:
    """Yields the ratio of a step at a long KV-cache capacity to one at a short: unused room should cost nothing."""
    width = find_widest(mine)
    long, short = (find_row(mine, width, 0, capacity) for capacity in (LONG, SHORT))
    if long and short:
        what = f"B {width}, past 0, capacity {LONG} over {SHORT}"
        each = read_times(long) / read_times(short)
        yield judge(what, each, most=OVER_SHORT, contender=long["contender"], limit=1.0)


def compare_pasts(mine: Sequence[Row], shape: ModelShape, device: Device) -> Iterator[Row]:
    """Yields the ratio of what FAR tokens of past add to a step to the least time that attending to them takes."""
    width = find_widest(mine)
    far, near = find_row(mine, width, FAR), find_row(mine, width, 0)
    if far and near:
        loads = [device.count_work(shape, far["precision"], PassSize(1, width, past, width)) for past in (FAR, 0)]
        added = ForwardWork(0, loads[0].attention - loads[1].attention, 0, loads[0].cache - loads[1].cache)
        least = device.estimate_ms(added, far["precision"])
        what = f"B {width}, what past {FAR} adds over the limit of that attention ({least:.2f} ms)"
        each = (read_times(far) - read_times(near)) / least
        yield judge(what, each, most=OVER_ATTENTION, contender=far["contender"], limit=1.0)


def compare_widths(mine: Sequence[Row]) -> Iterator[Row]:
    """Yields the ratio of the widest step to a step of one token: with more tokens per pass, blocks are cheaper."""
    width = find_widest(mine)
    wide, one = find_row(mine, width, MIDDLE), find_row(mine, 1, MIDDLE)
    if wide and one and width > 1:
        what = f"B {width}, past {MIDDLE}, over its own autoregressive forward pass (B 1)"
        limit = wide["limit_ms"] / one["limit_ms"]
        yield judge(what, read_times(wide) / read_times(one), contender=wide["contender"], limit=limit)


def compare_candidates(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields the ratio of the widest step of a graph for candidates, which gets none, to that of a graph without."""
    mine, plain = select_rows(rows, WITH_CANDIDATES), select_rows(rows, PLAIN)
    if mine and plain:
        row, other = find_row(mine, find_widest(mine), MIDDLE), find_row(plain, find_widest(plain), MIDDLE)
        if row and other:
            what = f"B {row['width']}, past {MIDDLE}, exported for decisions and given no candidates, over {PLAIN}"
            yield judge(what, read_times(row) / read_times(other), contender=WITH_CANDIDATES, limit=1.0)


def compare_loop(rows: Sequence[Row], host: dict[str, dict[str, float]]) -> Iterator[Row]:
    """Yields the host's own time per forward pass, and its ratio to the widest step after MIDDLE tokens.

    host: ms as p10, median, p90.
    """
    for name, ms in host.items():
        mine = select_rows(rows, name)
        each = [1000 * ms[part] for part in PARTS]
        yield judge("the host's loop, µs per forward pass", each, most=LOOP_US, contender=name, limit=0.0)
        if mine and (row := find_row(mine, find_widest(mine), MIDDLE)):
            what = f"the host's loop over a step of B {row['width']}, past {MIDDLE}"
            each = [ms[part] / row["ms"]["median"] for part in PARTS]
            yield judge(what, each, most=LOOP, contender=name, limit=0.0)


def select_rows(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["contender"] == name]


def find_widest(rows: Sequence[Row]) -> int:
    return max(int(row["width"]) for row in rows)


def find_row(rows: Sequence[Row], width: int, past: int, capacity: int | None = None) -> Row | None:
    """Returns the row of a cell from one contender's `rows`, None if it was not measured."""
    wanted = (width, past, capacity)
    return next((row for row in rows if (row["width"], row["past"], row["capacity"]) == wanted), None)


def read_times(row: Row) -> NDArray[np.float64]:
    """Returns milliseconds, the median per round. [rounds]"""
    return np.array(row["rounds"])
