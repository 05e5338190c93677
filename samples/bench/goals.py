"""Compares measurements with goals, which are reached or missed; asserts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.perf.latency import compute_percentiles

Entry = dict[str, Any]


def judge(
    what: str, each: Sequence[float] | NDArray[np.float64], *, most: float | None = None, least: float | None = None,
    value: float | None = None, **more: Any,
) -> Entry:  # fmt: skip
    """Returns an entry on the measurements `each`: a figure, p10, median and p90, its bound, whether that is reached.

    value: the figure if it is not the median, such as a ratio of sums. most, least: the upper or the lower bound, at
    most one of them; with neither, `reached` is None. more: further keys of the entry.
    """
    found = compute_percentiles(np.asarray(each, np.float64))
    figure = found.median if value is None else float(value)
    reached = None
    if most is not None or least is not None:
        reached = bool(figure <= most) if most is not None else bool(figure >= least)  # type: ignore[operator]
    return {"what": what, "value": figure, **asdict(found), "most": most, "least": least, "reached": reached, **more}


def format_verdict(entry: Entry) -> str:
    """Returns `reached`, `missed`, or nothing without a bound."""
    return "" if entry["reached"] is None else "reached" if entry["reached"] else "missed"


def format_bound(entry: Entry) -> str:
    """Returns the bound after ≤ or ≥, nothing without a bound."""
    if entry["most"] is not None:
        return f"≤ {entry['most']:g}"
    return "" if entry["least"] is None else f"≥ {entry['least']:g}"
