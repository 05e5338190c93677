"""Writes the pronunciation table, of our models and other programs: samples/results/pronounce.md, .json and .png.

    python -m samples.study.pronounce_table runs/pronounce --rivals samples/results/pronounce_rivals.json

The folder is what samples/recipe.sh wrote, with a report of `blockstep train evaluate` per model and split.
`samples.study.pronounce_rivals` writes the file of the other programs, which also has time, memory and size of our
engines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.cli import DONE, make_cli_parser, option, print_json
from runtime.cli import run as run_command
from runtime.errors import UserError
from train.evaluation.intervals import estimate_paired_difference
from train.storage.output_files import replace_file

from . import study_figures
from .methods_table import CONTROLS, TITLES
from .pronounce_rivals import SENTENCE
from .recipe_table import read_reports

RESULTS = Path(__file__).resolve().parents[1] / "results"
MAIN = "word_error_without_stress"  # the rate that published figures give
RATES = (MAIN, "word_error", "phoneme_error_without_stress", "phoneme_error")
SAME_DATA = "phonetisaurus"  # the program trained on our train split, with which the others are compared
OLD, NEW = "the CMUdict of PRONALSYL 2007", "the newest CMUdict of 2018, without stress"
SOURCE = "README of cmusphinx/g2p-seq2seq"
PUBLISHED = (
    ("joint n-gram model (Phonetisaurus)", "24.4", OLD, SOURCE),
    ("transformer, 2 layers of 256", "20.2", OLD, SOURCE),
    ("joint n-gram model (Phonetisaurus)", "33.9", NEW, SOURCE),
    ("transformer, 2 layers of 256", "about 31", NEW, SOURCE),
)
TEXT_HEADS = ("", "trained on", "made from", "data", "source")  # heads of columns with texts
ERROR_HEADS = ("words wrong, %", "with stress", "phonemes wrong, %", "with stress")
COST_HEADS = (
    "", "forward passes per word", "per sentence", "ms per word", "in a batch", "ms per sentence", "MB of memory",
    "MB of weights", "MB installed",
)  # fmt: skip
INTRO = """# English pronunciation, next to other programs

{:,} held-out words of the CMU Pronouncing Dictionary (task `pronounce`, split `test`: no word of their stems is in the
train split). Every listed pronunciation counts as right; 95 % intervals in parentheses. Made by
`python -m samples.study.pronounce_table`; every figure is in `pronounce.json`.
"""
IPA = """
## Programs that return IPA

Their phonemes are turned into ARPAbet (`samples/study/ipa_to_arpabet.py`). They tell other sounds apart than the
dictionary does, so that a difference is not always a mistake, and they are not ranked.
"""
COSTS = """
## Forward passes, time, memory, disk

One core, one word per call unless said. \\*: every call starts the program. Memory is the most that the process held;
an install is the packages and all that they need, without Python. A sentence is {} words, which ours gets at
once: its forward passes are those of their batch, or the sum over the words if the engine takes one sequence.
"""
LOADS = """
{}; the load average was {} to {} when these were measured, and times are right only if it was near 1."""


Row = dict[str, Any]


def make_model_row(name: str, report: Mapping[str, Any]) -> Row:
    """Returns a model's row, from its evaluation report. Raises UserError if the report is of another task."""
    if MAIN not in report:
        raise UserError(f"the report of {name} has no {MAIN}; evaluate the task pronounce again, with this version")
    row: Row = {"name": name, "ours": True, "ranked": True, "stress": True, "data": "our train split"}
    row |= {key: report[key] for rate in RATES for key in (rate, f"{rate}_95") if key in report}
    row |= {"words": report["words"], "forwards": report["forwards"], "per_problem": report["per_problem"]}
    path = Path(report["model"])
    if path.is_file():
        row["weights_bytes"] = path.stat().st_size
    return row


def compute_cost(row: Mapping[str, Any]) -> Row:
    """Returns time, memory and disk of a row of `pronounce_rivals`, and time in a batch if the program has batches."""
    sizes = {name: part["bytes"] for name, part in row["packages"].items()}
    cost: Row = {
        "ms_per_word": 1000 / row["words_per_second"], "peak_mb": row["peak_mb"],
        "installed_bytes": sum(sizes.values()), "conditions": row["conditions"],
    }  # fmt: skip
    if "weights apart" in sizes:
        cost["weights_bytes"] = sizes["weights apart"]
    if row["words_per_second_batch"]:
        cost["ms_per_word_batch"] = 1000 / row["words_per_second_batch"]
    if row["ours"]:
        cost["ms_per_sentence"] = 1000 / row["sentences"]["per_second"]
        cost["sentence_forwards"] = row["sentences"]["forwards"]
        cost["sentence_differing"] = row["sentences"]["differing"]
    return cost


def make_rows(runs: Path, rivals: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of our models, in the order in which they were evaluated, then those of the other programs.

    Controls and the undistilled teacher are left to the study's own page (`methods_table`).
    """
    rows = [
        make_model_row(name, report)
        for name, report in read_reports(runs).get("test", {}).items()
        if not name.startswith(("undistilled", *CONTROLS.values()))
    ]
    by_name = {row["name"]: row for row in rows}
    for name, measured_row in rivals["rows"].items():
        if name not in by_name:
            by_name[name] = {key: value for key, value in measured_row.items() if key not in ("packages", "sentences")}
            rows.append(by_name[name])
        by_name[name] |= compute_cost(measured_row)
    same_data = rivals["rows"].get(SAME_DATA)
    for row in rows:
        wrong = row.pop("per_problem")[MAIN]
        if same_data and row["ranked"] and row["name"] != SAME_DATA:
            row["to_same_data"] = compute_difference(row["name"], wrong, same_data["per_problem"][MAIN])
    return rows


def compute_difference(name: str, wrong: Sequence[int], same_data: Sequence[int]) -> list[float]:
    """Returns by how much a row's share of wrong words exceeds that of SAME_DATA, with the 95 % interval.

    wrong, same_data: 1 per wrong word and 0 per right one, of the row called `name` and of SAME_DATA. Raises UserError
    if their lengths differ.
    """
    if len(wrong) != len(same_data):
        raise UserError(
            f"{name} is of {len(wrong)} words, {SAME_DATA} of {len(same_data)}; evaluate with --count 10000"
        )
    difference = estimate_paired_difference(wrong, same_data)
    return [round(value, 5) for value in (difference.mean, difference.low, difference.high)]


def format_page(rows: Sequence[Row], rivals: Mapping[str, Any]) -> Iterator[str]:
    """Yields the page's lines."""
    by_error = sorted(rows, key=lambda row: row[MAIN])
    yield INTRO.format(rows[0]["words"])
    heads = ("", *ERROR_HEADS, f"to {SAME_DATA}", "trained on")
    yield from format_table(heads, [format_accuracy(row) for row in by_error if row["ranked"]])
    if not_ranked := [format_other(row) for row in by_error if not row["ranked"]]:
        yield IPA
        yield from format_table(("", *ERROR_HEADS, "made from"), not_ranked)
    yield COSTS.format(SENTENCE)
    yield from format_table(COST_HEADS, [format_costs(row) for row in rows])
    if loads := [row["conditions"]["load"] for row in rows if "conditions" in row]:
        cpu = next(row["conditions"]["cpu"] for row in rows if "conditions" in row)
        yield LOADS.format(cpu, min(loads), max(loads))
    yield "\n## Published, on other splits\n"
    yield from format_table(("", "words wrong, %", "data", "source"), PUBLISHED)
    for name, reason in rivals["left_out"].items():
        yield f"\n{name} was left out: {reason}"


def format_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a Markdown table with texts aligned left and figures aligned right."""
    yield f"| {' | '.join(heads)} |"
    yield "".join("|---" if head in TEXT_HEADS else "|---:" for head in heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def format_accuracy(row: Row) -> list[str]:
    """Returns the cells of a ranked row; ours in bold type."""
    title = TITLES.get(row["name"], row["name"])
    name = f"**{title}**" if row["ours"] else title
    interval = row.get("to_same_data")
    difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in interval)) if interval else ""
    return [name, *format_errors(row), difference, describe_origin(row)]


def format_other(row: Row) -> list[str]:
    """Returns the cells of a row that is not ranked."""
    return [row["name"], *format_errors(row), describe_origin(row)]


def format_errors(row: Row) -> Iterator[str]:
    """Yields the error rates in percent, those with stress only if the answers have it."""
    for rate in RATES:
        if not row["stress"] and not rate.endswith("without_stress"):
            yield "–"
            continue
        low, high = row.get(f"{rate}_95", (None, None))
        yield f"{100 * row[rate]:.1f}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None else "")


def describe_origin(row: Row) -> str:
    """Returns what a row was trained on, how many of the test words its own lexicon has, and its time of training."""
    lexicon = f"; its lexicon has {row['known']:,} of these words" if row.get("known") else ""
    training = f"; {row['train_seconds'] / 60:.0f} minutes of one core" if row.get("train_seconds") else ""
    return row["data"] + lexicon + training


def format_costs(row: Row) -> list[str]:
    """Returns the cells of forward passes, time, memory and sizes, empty if not measured."""
    name = TITLES.get(row["name"], row["name"]) + (" \\*" if row.get("program_per_call") else "")
    one, batch, sentence = (row.get(key) for key in ("ms_per_word", "ms_per_word_batch", "ms_per_sentence"))
    sentence = sentence or (SENTENCE * min(one, batch or one) if one else None)
    figures = [
        (row.get("forwards"), 1, ".2f"), (row.get("sentence_forwards"), 1, ".1f"), (one, 1, ",.2f"), (batch, 1, ".2f"),
        (sentence, 1, ".1f"), (row.get("peak_mb"), 1, ",.0f"), (row.get("weights_bytes"), 1e-6, ".1f"),
        (row.get("installed_bytes"), 1e-6, ",.0f"),
    ]  # fmt: skip
    return [name, *(format(value * unit, digits) if value else "" for value, unit, digits in figures)]


def select_plotted(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Returns the points to plot, by name: milliseconds per word and percent of words wrong.

    If every call starts a process, the time is per word of a batch.
    """
    points = {}
    for row in rows:
        if row["ranked"] and "ms_per_word" in row:
            batch = row.get("program_per_call")
            title = TITLES.get(row["name"], row["name"])
            name = f"{title}, in a batch" if batch else title
            points[name] = (row["ms_per_word_batch" if batch else "ms_per_word"], 100 * row[MAIN])
    return points


def read_rivals(path: Path) -> dict[str, Any]:
    """Reads the report of `pronounce_rivals`. Raises UserError if the file is not one."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report["rows"], dict) or not isinstance(report["left_out"], dict):
            raise ValueError("rows and left_out are not objects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a report of samples.study.pronounce_rivals ({error}); make it first") from None
    return report


def execute(args: argparse.Namespace) -> int:
    """Writes the page, its figures as JSON, and the plot, and prints the page."""
    rivals = read_rivals(args.rivals)
    rows = make_rows(args.runs, rivals)
    page = "\n".join(format_page(rows, rivals)) + "\n"
    values = json.dumps({"rows": rows, "left_out": rivals["left_out"]}, indent=1) + "\n"
    for name, content in (("pronounce.md", page), ("pronounce.json", values)):
        replace_file(args.out / name, lambda path, content=content: path.write_text(content, encoding="utf-8"))
    study_figures.plot_points(
        args.out / "pronounce.png",
        select_plotted(rows),
        "milliseconds per word, one core",
        "words wrong without stress, %",
    )
    if args.json:
        print_json({"rows": rows})
    else:
        print(page)
    return DONE


OPTIONS = (
    option("runs", type=Path, help="folder that samples/recipe.sh wrote"),
    option(
        "--rivals",
        type=Path,
        default=RESULTS / "pronounce_rivals.json",
        help="JSON file that pronounce_rivals wrote (default: samples/results/pronounce_rivals.json)",
    ),
    option("--out", type=Path, default=RESULTS, help="folder to write to (default: samples/results)"),
    option("--json", action="store_true", help="print the rows as one JSON object"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    p = make_cli_parser("samples.study.pronounce_table", (__doc__ or "").splitlines()[0], OPTIONS)
    return run_command(lambda: execute(p.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
