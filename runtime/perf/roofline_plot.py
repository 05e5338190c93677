"""Plots devices' rooflines, and decoding under them, as a PNG file with matplotlib, which is imported on use.

A point is below its roof if attention, which is not quantized, takes part of the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UserError
from .block_costs import DecodingCost, Question, compute_points
from .data_sheets import Device

SIZE, DOTS = (11.0, 6.5), 130  # inches, dots per inch
MARKERS = "osD^vP*Xh"
APART = 1.33  # least ratio between the heights of two devices' names, so that they do not overlap
EDGE = 1.6  # factor by which the axes reach beyond the points
INK, FAINT = "0.25", "0.85"
# Each dark enough to be read as text on white.
COLORS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#5a8f14", "#b8860b", "#a6611a", "#555555")


def plot_rooflines(path: Path, name: str, devices: Sequence[Device], question: Question) -> None:
    """Plots one roof per device, log-log, with one point per mode at the first batch; modes are named above.

    Raises UserError if matplotlib is missing or the file cannot be written.
    """
    figure = make_figure("--plot", SIZE, DOTS)
    axes = figure.add_subplot()
    q, batch = question, question.batches[0]
    placed = [(device, [p for p in compute_points(device, q) if p.batch == batch]) for device in devices]
    every = [p.intensity for _, each in placed for p in each]
    left, right = min(every) / EDGE, max(*every, *(d.compute_ridge(q.precision) for d in devices)) * EDGE
    colors = [COLORS[place % len(COLORS)] for place in range(len(devices))]
    for (device, each), color in zip(placed, colors, strict=True):
        _plot_roof(axes, device, q.precision, left, right, color)
        for point, marker in zip(each, MARKERS, strict=False):
            reached = point.operations / point.ms / 1e9  # 1e12 operations/s at the pass's least time
            axes.plot(point.intensity, reached, marker, color=color, markersize=7, markeredgecolor="white")
    _name_devices(axes, devices, q.precision, right, colors)
    _name_modes(axes, placed[0][1])
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_xlabel("arithmetic intensity, operations per byte")
    axes.set_ylabel(f"attainable, 1e12 {q.precision} operations per second")
    axes.set_title(
        f"{name}, {q.precision}: batch {batch}, {q.past} tokens in the KV cache", loc="left", pad=34, color=INK
    )
    axes.grid(color=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _plot_roof(axes: Any, device: Device, precision: str, left: float, right: float, color: str) -> None:
    ridge, rate = device.compute_ridge(precision), device.rates[precision]
    axes.plot([left, ridge, right], [rate * left / ridge, rate, rate], color=color, linewidth=1.6)


def _name_devices(axes: Any, devices: Sequence[Device], precision: str, right: float, colors: Iterable[str]) -> None:
    """Writes the devices' names at their roofs' right ends, moved apart if roofs are close."""
    listed = sorted(zip(devices, colors, strict=True), key=lambda pair: pair[0].rates[precision])
    heights: list[float] = []
    for device, color in listed:
        rate = device.rates[precision]
        heights.append(max(rate, heights[-1] * APART) if heights else rate)
        text = f"  {device.name}, ridge {device.compute_ridge(precision):,.0f}"
        axes.text(right, heights[-1], text, color=color, fontsize=8.5, va="center")


def _name_modes(axes: Any, listed: Sequence[DecodingCost]) -> None:
    """Plots a line and a name at each mode's intensity, which differs by device only if KV-cache types differ."""
    for point in listed:
        axes.axvline(point.intensity, color=FAINT, linewidth=6, zorder=0, alpha=0.6)
        axes.text(
            point.intensity,
            1.02,
            point.mode.replace(", ", "\n"),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=INK,
        )


def make_figure(what: str, size: tuple[float, float], dots: int) -> Any:
    """Makes an empty figure. size: inches; dots: per inch. Raises UserError without matplotlib, which `what` needs."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, and no state of pyplot
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            f"{what} needs the package matplotlib, which is not installed; pip install matplotlib"
        ) from None
    figure = Figure(figsize=size, dpi=dots, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    """Saves by a rename, so that an older file stays complete until the new one is complete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); give --plot another path") from None
