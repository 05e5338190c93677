"""The figures of calibration and study, as PNG files by matplotlib, which is loaded where one is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UserError
from train.storage.output_files import replace_file

from .reliability import Bin, expected_error

SIZE = (12.0, 5.0)  # inches, the legend beside the axes
DOTS = 120  # an inch
NEAREST = 0.5  # points from 100 % below which a curve's scale no longer grows
ACROSS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
UP = (0, 20, 40, 60, 80, 90, 95, 97, 98, 99, 99.5, 100)

Curve = Sequence[tuple[float, float]]


def plot_reliability(path: Path, models: Mapping[str, Sequence[Bin]]) -> None:
    """The share of right tokens over their confidence, a line a model, beside the diagonal of a calibrated one.

    Raises UserError where matplotlib is missing or the file cannot be written.
    """
    axes = _axes("confidence of a token", "share that is right")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="calibrated")
    for name, bins in models.items():
        points = [each.confidence for each in bins], [each.right for each in bins]
        axes.plot(*points, marker="o", label=f"{name} (expected error {expected_error(bins):.3f})")
    _save(axes, path)


def curves(path: Path, named: Mapping[str, Curve], across: str, up: str) -> None:
    """Lines through points (x, y), each with its name; x on a log scale, y percent, on one of the distance to 100.

    Raises UserError as `plot_reliability` does.
    """
    axes = _axes(across, up)
    for (name, points), marker in zip(named.items(), itertools.cycle("os^Dv")):
        axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, label=name)
    axes.set_xscale("log")
    # between 95 and 100 % lies what matters, and one row that collapsed would press it together
    end = 100 + NEAREST
    axes.set_yscale("function", functions=(lambda y: -np.log(np.maximum(end - y, 0.01)), lambda v: end - np.exp(-v)))
    lowest = min((y for points in named.values() for _, y in points), default=0)
    axes.set_ylim(end - 1.2 * (end - lowest), end - 0.3)
    for axis, ticks in ((axes.xaxis, ACROSS), (axes.yaxis, UP)):
        low, high = axis.get_view_interval()
        axis.set_ticks([tick for tick in ticks if low <= tick <= high])
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    _save(axes, path)


def points(path: Path, named: Mapping[str, tuple[float, float]], across: str, up: str) -> None:
    """Draws a point (x, y) per name, x on a log scale, y from 0 on. Raises UserError as `plot_reliability` does."""
    axes = _axes(across, up)
    for (name, (x, y)), marker in zip(named.items(), itertools.cycle("os^Dv")):
        axes.plot([x], [y], marker=marker, linestyle="", label=name)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max((y for _, y in named.values()), default=1))
    _save(axes, path)


def bars(path: Path, groups: Sequence[str], named: Mapping[str, Sequence[float]], up: str) -> None:
    """A bar of each name in each group, with its value over it. Raises UserError as `plot_reliability` does."""
    axes = _axes("", up)
    width = 0.8 / max(1, len(named))
    for i, (name, values) in enumerate(named.items()):
        places = [group + i * width for group in range(len(groups))]
        axes.bar_label(axes.bar(places, values, width, label=name), fmt="%.3g", fontsize="x-small")
    axes.set_xticks([group + 0.4 - width / 2 for group in range(len(groups))], groups)
    _save(axes, path)


def _axes(across: str, up: str) -> Any:
    try:
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no state of pyplot
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "a figure needs the package matplotlib, which is not installed; pip install matplotlib"
        ) from None
    figure = Figure(figsize=SIZE, dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # more rows than the ten colours of the default
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    return axes


def _save(axes: Any, path: Path) -> None:
    axes.figure.legend(fontsize="small", loc="outside right upper")
    replace_file(path, lambda temporary: axes.figure.savefig(temporary, format="png"))
