"""The figures of calibration and study, as PNG files by matplotlib, which is loaded where one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import UserError

from .calibration import Bin, expected_error
from .checkpoint import replace_file

SIZE = (9.0, 4.5)  # inches, the legend beside the axes
DOTS = 120  # an inch

Curve = Sequence[tuple[float, float]]


def reliability(path: Path, models: Mapping[str, Sequence[Bin]]) -> None:
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
    """Lines through points (x, y), x on a log scale, each with its name. Raises UserError as `reliability` does."""
    axes = _axes(across, up)
    for name, points in named.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set_xscale("log")
    ticks = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500]
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    _save(axes, path)


def bars(path: Path, groups: Sequence[str], named: Mapping[str, Sequence[float]], up: str) -> None:
    """A bar of each name in each group, with its value over it. Raises UserError as `reliability` does."""
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
