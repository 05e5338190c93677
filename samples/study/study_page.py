"""Writes a study's page: the chosen point of each row, the tables in Markdown, and the figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study_figures
from invariance import RATIOS

from train.evaluation import plots
from train.evaluation.intervals import estimate_paired_difference
from train.evaluation.reliability import Bin

SLACK = 0.005  # share of right answers by which a chosen threshold may be below the teacher
TARGET = 0.01  # largest allowed distance of a row below the teacher, by the lower 95 % bound of the difference

Study = dict[str, Any]
Point = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """Holds a row's figures at one threshold on one task. Accuracies and differences are shares; lengths are tokens."""

    task: str
    accuracy: float
    difference: float
    low: float
    high: float
    forwards: float
    fewer: float
    length: float
    length_p95: float


@dataclass(frozen=True, slots=True)
class Line:
    """Holds a row at one threshold or without one. holds: whether it is within TARGET of the teacher on every task."""

    title: str
    attention: str
    threshold: float | None
    cells: tuple[Cell, ...]

    @property
    def holds(self) -> bool:
        return all(cell.low >= -TARGET for cell in self.cells)


def lines(title: str, attention: str, points: Sequence[Point], base: Sequence[Point]) -> list[Line]:
    """Returns a line per threshold of a row, with all tasks; base: the teacher's points on the same problems."""
    teacher = {point["task"]: point for point in base}
    by_threshold: dict[float | None, list[Cell]] = {}
    for point in points:
        own = teacher[point["task"]]
        apart = estimate_paired_difference(point["right"], own["right"])
        cell = Cell(
            point["task"], point["accuracy"], apart.mean, apart.low, apart.high, point["forwards"],
            sum(own["each"]) / sum(point["each"]), point["length"], point["length_p95"],
        )  # fmt: skip
        by_threshold.setdefault(point["threshold"], []).append(cell)
    return [Line(title, attention, key, tuple(cells)) for key, cells in by_threshold.items()]


def choose_line(tried: Sequence[Line]) -> Line:
    """Returns, of the lines at most SLACK below the teacher on every task, the one with the fewest forward passes.

    If there is none, returns the line with the most right answers.
    """
    if level := [line for line in tried if all(cell.difference >= -SLACK for cell in line.cells)]:
        return min(level, key=lambda line: sum(cell.forwards for cell in line.cells))
    return max(tried, key=lambda line: sum(cell.accuracy for cell in line.cells))


def tuned(study: Study, row: dict[str, Any]) -> list[Line]:
    """Returns a row's lines, one per threshold, on the tuning problems."""
    return lines(row["title"], row["attention"], row["tuned"], study["rows"][0]["tuned"])


def summary(study: Study) -> list[Line]:
    """Returns one line per row, on the judged problems."""
    base = study["rows"][0]["judged"]
    return [line for row in study["rows"] for line in lines(row["title"], row["attention"], row["judged"], base)]


def table(shown: Sequence[Line], marked: bool = True) -> str:
    """Returns lines as a Markdown table; the first is the teacher's. marked: whether lines that fail to hold get ✗."""
    names = [cell.task for cell in shown[0].cells]
    per_task = "`{}` right (to the teacher) | forward passes (fewer) | tokens, 95th"
    heads = ["", "threshold", *map(per_task.format, names)]
    head = " | ".join(heads)
    rows = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    for line in shown:
        mark = " ✗" if marked and not line.holds else ""
        sure = "" if line.threshold is None else f"{line.threshold:g}"
        cells = " | ".join(_cell(cell, line is not shown[0]) for cell in line.cells)
        rows.append(f"| {line.title}{mark} | {sure} | {cells} |")
    return "\n".join(rows)


def _cell(cell: Cell, compared: bool) -> str:
    apart = f" ({100 * cell.difference:+.1f}, {100 * cell.low:+.1f} to {100 * cell.high:+.1f})" if compared else ""
    fewer = f" ({cell.fewer:.1f} ×)" if compared else ""
    return f"{100 * cell.accuracy:.1f} %{apart} | {cell.forwards:.1f}{fewer} | {cell.length:.1f}, {cell.length_p95:g}"


def text(study: Study) -> str:
    """Returns the whole page."""
    return "\n".join(_text(study)) + "\n"


def _text(study: Study) -> Iterator[str]:
    yield f"# The study: {study['count']} problems per task of the split `{study['split']}`"
    yield ""
    yield (
        f"Made by `make study`. A row's threshold was chosen on {study['tuning']} validation problems per task: the "
        f"one with the fewest forward passes at most {100 * SLACK:g} points below the teacher on every task, or else "
        "the one with the most right answers; only the ablations of CAD have one given. It is then judged on problems "
        f"of the split `{study['split']}` sampled with the seed {study['judged_seed']}. In brackets the paired "
        "difference to the teacher with its 95 % interval, in points. ✗: its lower bound is worse than "
        f"-{100 * TARGET:g} on a task. Forward passes and tokens are means per answer. Rows with full attention ran "
        "under bf16 autocast, all others in fp32. CAD is here a threshold on the confidence, with its end-token guard "
        "where a row says so (end tokens rank last until 0.3 of the canvas is out), without the bound `max`."
    )
    yield "\n" + table(summary(study)) + "\n"
    yield "## What a prediction depends on\n"
    yield "KL in nats between a model's predictions with a quarter of an answer masked and with more, in fp32, and how"
    yield "far its confidence is from the share of tokens that are right. A block-causal model has clean blocks before"
    yield "the masked one, a full one has not, so that the KL of one kind do not compare with those of the other. A"
    yield "model of one token per block sees no masks: its KL are 0.\n"
    yield f"| | {' | '.join(f'ratio {ratio:g}' for ratio in RATIOS[1:])} | expected calibration error |"
    yield "|---" * (len(RATIOS) + 1) + "|"
    for row in models(study):
        kls = " | ".join(f"{each:.4f}" for each in row["probe"]["divergences"][1:])
        yield f"| `{row['file']}`, {row['attention']} | {kls} | {row['probe']['calibration_error']:.4f} |"
    yield f"\n## Every threshold, on the {study['tuning']} validation problems per task\n"
    yield table([line for row in swept(study) for line in tuned(study, row)], marked=False)


def swept(study: Study) -> list[dict[str, Any]]:
    """Returns the rows except those with a given threshold, which have a single point."""
    return [
        row for row in study["rows"] if len(row["tuned"]) > len(_tasks(row)) or row["tuned"][0]["threshold"] is None
    ]


def _tasks(row: dict[str, Any]) -> set[str]:
    return {point["task"] for point in row["tuned"]}


def models(study: Study) -> list[dict[str, Any]]:
    """Returns the first row of each checkpoint and attention; figures that no gate changes are equal in the others."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in study["rows"]:
        found.setdefault((row["file"], row["attention"]), row)
    return list(found.values())


def draw(study: Study, folder: Path) -> None:
    """Plots study-<task>.png, study-forwards.png and study-calibration.png into the folder."""
    rows = {row["title"]: tuned(study, row) for row in swept(study)}
    names = [cell.task for cell in rows[study["rows"][0]["title"]][0].cells]
    for i, name in enumerate(names):
        curves = {}
        for title, each in rows.items():
            curves[title] = [(line.cells[i].forwards, 100 * line.cells[i].accuracy) for line in each]
        study_figures.curves(folder / f"study-{name}.png", curves, "forward passes per answer", f"{name}: right, %")
    taken = {line.title: [cell.forwards for cell in line.cells] for line in summary(study) if line.title in rows}
    study_figures.bars(folder / "study-forwards.png", names, taken, "forward passes per answer")
    bins = {
        f"{row['file']}, {row['attention']}": [Bin(**each) for each in row["probe"]["reliability"]]
        for row in models(study)
    }
    plots.plot_reliability(folder / "study-calibration.png", bins)
