"""What the race of steps comes down to: ratios of medians, beside their goals and the machine's own limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.devices import Device
from runtime.workload import Pass, Shape, Work

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """A step of `width` tokens behind `past` is to take at most `most` of what the rival's takes."""

    rival: str
    width: int
    past: int
    most: float


GOALS = (
    Goal("PyTorch eager bf16", 32, 256, 0.35),
    Goal("llama.cpp Q4_0", 32, 256, 0.45),
    Goal("llama.cpp Q4_0", 8, 256, 0.7),
)
LONG, SHORT = 4096, 256  # capacities
FAR = 1024  # tokens of past that attention alone is judged by


def ratios(rows: Sequence[Row], shape: Shape, device: Device) -> Iterator[Row]:
    """Every ratio of every precision of ours, as far as its rows were measured.

    goal: the most that the ratio may be, None where there is none; limit: the same ratio if ours took the least that
    this machine allows.
    """
    ours = [row for row in rows if row["ours"]]
    for name in dict.fromkeys(row["contender"] for row in ours):
        mine = [row for row in ours if row["contender"] == name]
        yield from against_rivals(name, rows)
        yield from against_limit(mine)
        yield from of_capacity(mine)
        yield from of_past(mine, shape, device)


def against_rivals(name: str, rows: Sequence[Row]) -> Iterator[Row]:
    """A step over a rival's."""
    for goal in GOALS:
        mine, theirs = (at(rows, who, goal.width, goal.past) for who in (name, goal.rival))
        if mine and theirs:
            base = median(theirs)
            what = f"B {goal.width}, past {goal.past}, over {goal.rival}"
            yield entry(name, what, median(mine) / base, goal.most, mine["limit_ms"] / base)


def against_limit(mine: Sequence[Row]) -> Iterator[Row]:
    """The widest step behind 256 tokens over the machine's limit."""
    width = max(row["width"] for row in mine)
    if row := at(mine, mine[0]["contender"], width, 256):
        what = f"B {width}, past 256, over this machine's limit"
        yield entry(row["contender"], what, median(row) / row["limit_ms"], None, 1.0)


def of_capacity(mine: Sequence[Row]) -> Iterator[Row]:
    """The same step in a long cache over that in a short one: unused room should cost nothing."""
    name, width = mine[0]["contender"], max(row["width"] for row in mine)
    long, short = (at(mine, name, width, 0, capacity) for capacity in (LONG, SHORT))
    if long and short:
        what = f"B {width}, past 0, capacity {LONG} over {SHORT}"
        yield entry(name, what, median(long) / median(short), None, 1.0)


def of_past(mine: Sequence[Row], shape: Shape, device: Device) -> Iterator[Row]:
    """What FAR tokens of past add to a step, over the least that attending to them takes."""
    name, width = mine[0]["contender"], max(row["width"] for row in mine)
    far, near = at(mine, name, width, FAR), at(mine, name, width, 0)
    if far and near:
        loads = [device.work(shape, far["precision"], Pass(1, width, past, width)) for past in (FAR, 0)]
        added = Work(0, loads[0].attention - loads[1].attention, 0, loads[0].cache - loads[1].cache)
        least = device.ms(added, far["precision"])
        what = f"B {width}, what past {FAR} adds over the limit of that attention ({least:.2f} ms)"
        yield entry(name, what, (median(far) - median(near)) / least, None, 1.0)


def at(rows: Sequence[Row], name: str, width: int, past: int, capacity: int | None = None) -> Row | None:
    """The row of that contender and cell, None where it was not measured."""
    wanted = (name, width, past, capacity)
    return next((r for r in rows if (r["contender"], r["width"], r["past"], r["capacity"]) == wanted), None)


def median(row: Row) -> float:
    return float(row["ms"]["median"])


def entry(name: str, what: str, ratio: float, goal: float | None, limit: float) -> Row:
    return {"contender": name, "what": what, "ratio": ratio, "goal": goal, "limit": limit}
