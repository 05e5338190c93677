"""Plots results of calibrations and studies as PNG files; matplotlib is imported only when a plot is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.perf.roofline_plot import make_figure
from train.storage.output_files import replace_file

from .reliability import Bin, compute_expected_error

SIZE = (12.0, 5.0)  # inches, the legend next to the axes
DOTS = 120  # per inch


def plot_reliability(path: Path, models: Mapping[str, Sequence[Bin]], what: str = "token") -> None:
    """Plots the share of right tokens by confidence, one line per model, and the diagonal of a calibrated model.

    what: the label's word for what is right or wrong. Raises UserError if matplotlib is missing or the file cannot be
    written.
    """
    axes = make_axes(f"confidence of a {what}", "share that is right")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="calibrated")
    for name, bins in models.items():
        points = [each.confidence for each in bins], [each.right for each in bins]
        axes.plot(*points, marker="o", label=f"{name} (expected error {compute_expected_error(bins):.3f})")
    save(axes, path)


def make_axes(x_label: str, y_label: str) -> Any:
    """Returns axes with these labels and a grid. Raises UserError if matplotlib is missing."""
    figure = make_figure("a figure", SIZE, DOTS)
    from matplotlib import colormaps

    axes = figure.add_subplot()
    colors = colormaps["tab20"](range(20))  # there may be more lines than the default's ten colors
    axes.set_prop_cycle(color=colors)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return axes


def save(axes: Any, path: Path) -> None:
    """Writes the axes with their legend. Raises UserError if the file cannot be written."""
    axes.figure.legend(fontsize="small", loc="outside right upper")
    replace_file(path, lambda temporary: axes.figure.savefig(temporary, format="png"))
