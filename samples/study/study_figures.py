"""Plots the study's results: accuracy over forward passes as curves, forward passes per answer as bars, and points."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train.evaluation import plots

NEAREST = 0.5  # percentage points that are added to the distance to 100 % before its logarithm is taken
X_TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
Y_TICKS = (0, 20, 40, 60, 80, 90, 95, 97, 98, 99, 99.5, 100)

Curve = Sequence[tuple[float, float]]


def plot_curves(path: Path, curves: Mapping[str, Curve], x_label: str, y_label: str) -> None:
    """Plots curves through points (x, y): x on a log scale, y in percent on a log scale of the distance to 100 %.

    curves: by name. Raises UserError as `plots.plot_reliability` does.
    """
    axes = plots.make_axes(x_label, y_label)
    for (name, points), marker in zip(curves.items(), itertools.cycle("os^Dv")):
        axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, label=name)
    axes.set_xscale("log")
    # On a linear scale, a single row of low accuracy would squeeze the range from 95 to 100 %, which matters.
    end = 100 + NEAREST
    axes.set_yscale("function", functions=(lambda y: -np.log(np.maximum(end - y, 0.01)), lambda v: end - np.exp(-v)))
    lowest = min((y for points in curves.values() for _, y in points), default=0)
    axes.set_ylim(end - 1.2 * (end - lowest), end - 0.3)
    for axis, ticks in ((axes.xaxis, X_TICKS), (axes.yaxis, Y_TICKS)):
        low, high = axis.get_view_interval()
        axis.set_ticks([tick for tick in ticks if low <= tick <= high])
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    plots.save(axes, path)


def plot_bars(path: Path, groups: Sequence[str], bars: Mapping[str, Sequence[float]], y_label: str) -> None:
    """Plots a bar per name and group, with its value above it.

    bars: by name, a value per group. Raises UserError as `plots.plot_reliability` does.
    """
    axes = plots.make_axes("", y_label)
    width = 0.8 / max(1, len(bars))
    for i, (name, values) in enumerate(bars.items()):
        places = [group + i * width for group in range(len(groups))]
        axes.bar_label(axes.bar(places, values, width, label=name), fmt="%.3g", fontsize="x-small")
    axes.set_xticks([group + 0.4 - width / 2 for group in range(len(groups))], groups)
    plots.save(axes, path)


def plot_points(path: Path, points: Mapping[str, tuple[float, float]], x_label: str, y_label: str) -> None:
    """Plots a point (x, y) per name, x on a log scale, y on a linear one that starts at 0.

    Raises UserError as `plots.plot_reliability` does.
    """
    axes = plots.make_axes(x_label, y_label)
    for (name, (x, y)), marker in zip(points.items(), itertools.cycle("os^Dv")):
        axes.plot([x], [y], marker=marker, linestyle="", label=name)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max((y for _, y in points.values()), default=1))
    plots.save(axes, path)
