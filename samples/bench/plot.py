"""Plots the bench's figure: the time of a step by its width, and of the widest step next to this machine's limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from train.storage.output_files import replace_file

SIZE, DOTS = (12.0, 6.0), 130  # inches, dots per inch
OURS = ("#08519c", "#3182bd", "#17a2b8", "#6baed6", "#1f4e79")
THEIRS = ("#7f7f7f", "#a65628", "#e6ab02", "#66a61e", "#984ea3")
PAST = 256  # tokens of past that the figure shows, or the nearest measured


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Plots lines, ours blue and thick, limits as ticks on the bars. Raises UserError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, ScalarFormatter
    except ImportError:
        raise UserError("the figure needs the package matplotlib; pip install matplotlib, or give --no-plot") from None
    past = min({row["past"] for row in rows}, key=lambda each: abs(each - PAST))
    shown = [row for row in rows if row["past"] == past and row["capacity"] is None]
    names = list(dict.fromkeys(row["contender"] for row in sorted(shown, key=lambda row: not row["ours"])))
    left_over = {True: iter(OURS * 3), False: iter(THEIRS * 3)}
    colors = {name: next(left_over[next(r["ours"] for r in shown if r["contender"] == name)]) for name in names}
    figure = Figure(figsize=SIZE, dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    lines, bars = figure.subplots(1, 2, width_ratios=(1.1, 1))
    plot_by_width(lines, shown, colors, past)
    lines.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    lines.yaxis.set_major_formatter(ScalarFormatter())
    lines.minorticks_off()
    plot_widest(bars, shown, colors, past)
    figure.legend(*lines.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    for axes in (lines, bars):
        axes.spines[["top", "right"]].set_visible(False)
    replace_file(path, lambda temporary: figure.savefig(temporary, format="png"))


def plot_by_width(axes: Any, shown: Sequence[dict[str, Any]], colors: dict[str, str], past: int) -> None:
    """Plots milliseconds over tokens, both logarithmic, the spread as a band."""
    for name, color in colors.items():
        each = sorted((row for row in shown if row["contender"] == name), key=lambda row: row["width"])
        x, spreads = [row["width"] for row in each], [row["ms"] for row in each]
        ours = each[0]["ours"]
        axes.plot(x, [s["median"] for s in spreads], "o-" if ours else "s--", color=color, label=name,
            linewidth=2.2 if ours else 1.3, markersize=5)  # fmt: skip
        axes.fill_between(x, [s["p10"] for s in spreads], [s["p90"] for s in spreads], color=color, alpha=0.12)
    widths = sorted({row["width"] for row in shown})
    axes.set(xscale="log", yscale="log", xlabel="tokens per step", ylabel="milliseconds per step")
    axes.set_xticks(widths, list(map(str, widths)))
    axes.set_title(f"a step after {past} tokens: median, tenth to ninetieth percentile", loc="left", fontsize="medium")
    axes.grid(alpha=0.3)


def plot_widest(axes: Any, shown: Sequence[dict[str, Any]], colors: dict[str, str], past: int) -> None:
    """Plots the widest step, the slowest on top, ours with the machine's limit."""
    width = max(row["width"] for row in shown)
    each = sorted((row for row in shown if row["width"] == width), key=lambda row: row["ms"]["median"])
    values = [row["ms"]["median"] for row in each]
    drawn = axes.barh([r["contender"] for r in each], values, color=[colors[r["contender"]] for r in each], height=0.7)
    axes.bar_label(drawn, fmt="%.0f ms", padding=3, fontsize="small")
    limits = [(place, row["limit_ms"]) for place, row in enumerate(each) if "limit_ms" in row]
    axes.vlines([ms for _, ms in limits], [p - 0.4 for p, _ in limits], [p + 0.4 for p, _ in limits], color="black",
        linewidth=2, label="this machine's limit in that precision")  # fmt: skip
    axes.set_title(f"{width} tokens after {past}: median", loc="left", fontsize="medium")
    axes.margins(x=0.15)
    axes.set_xlabel("milliseconds per step")
    axes.legend(fontsize="small", frameon=False, loc="lower right")
