"""What was measured beside what was aimed at: reached or missed, and nothing is asserted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.perf.latency import percentiles

Entry = dict[str, Any]


def judged(
    what: str, each: Sequence[float] | NDArray[np.float64], *, most: float | None = None, least: float | None = None,
    value: float | None = None, **more: Any,
) -> Entry:  # fmt: skip
    """A figure of several measurements: p10, median and p90 of `each`, the bound on it, whether it keeps it.

    value: the figure where it is not their median, such as a ratio of sums. most, least: the bound, at most one of
    them; with neither, `reached` is None. more: what else the entry says.
    """
    found = percentiles(np.asarray(each, np.float64))
    figure = found.median if value is None else float(value)
    reached = None
    if most is not None or least is not None:
        reached = bool(figure <= most) if most is not None else bool(figure >= least)  # type: ignore[operator]
    return {"what": what, "value": figure, **asdict(found), "most": most, "least": least, "reached": reached, **more}


def verdict(entry: Entry) -> str:
    """`reached`, `missed`, or nothing where there is no bound."""
    return "" if entry["reached"] is None else "reached" if entry["reached"] else "missed"


def bound(entry: Entry) -> str:
    """The bound with its sign."""
    if entry["most"] is not None:
        return f"≤ {entry['most']:g}"
    return "" if entry["least"] is None else f"≥ {entry['least']:g}"
