"""Writes the bench's page: what was measured, as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .goals import format_bound, format_verdict

Report = dict[str, Any]


def format_text(report: Report) -> str:
    """Returns the page, with the sections that were measured."""
    return "\n".join(_format_lines(report)) + "\n"


def _format_lines(report: Report) -> Iterator[str]:
    yield "# The bench"
    yield ""
    yield "Made by `make bench`; every figure is in `bench.json` next to it."
    for name, section in (("step", step), ("answers", format_answers), ("host", format_host)):
        if name in report:
            yield ""
            yield from section(report[name])


def format_conditions(section: Report) -> str:
    """Returns the conditions that a section was measured under, as one line."""
    c = section["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in c["versions"].items() if version)
    return (
        f"{c['cpu']}, {c['threads']} threads of {c['cores']} cores, load {c['load']:.2f} when it began, "
        f"{c['seconds'] / 60:.1f} minutes; {versions}."
    )


def format_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields a Markdown table, its first column aligned left, the others right."""
    yield f"| {' | '.join(heads)} |"
    yield "|---" + "|---:" * (len(heads) - 1) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def step(section: Report) -> Iterator[str]:
    """Yields the section `step`: ratios, then one table per past, then the contenders."""
    shape, local = section["shape"], section["device"]
    yield "## One step"
    yield ""
    yield (
        f"{shape['layers']} layers of {shape['hidden']}, vocabulary {shape['vocab']:,}, random weights. "
        f"{section['rounds']} rounds in which every contender, in a process of its own, took "
        f"{section['steps_a_round']} timed steps in turn. {format_conditions(section)}"
    )
    yield (
        f"This machine reads {local['bandwidth']:.1f} GB/s and multiplies "
        + ", ".join(f"{rate:.2f} {name}" for name, rate in local["rates"].items())
        + " TOP/s (`python -m runtime.roofline`); *limit*: the larger of reading and multiplying at that speed."
    )
    yield ""
    yield from format_judgments(section["ratios"])
    yield "\nllama.cpp attends fused or not, whichever is faster at that place; PyTorch compiles at one past."
    for past in sorted({row["past"] for row in section["rows"]}):
        yield f"\nMilliseconds per step after {past} tokens, median (tenth to ninetieth percentile); B 1 is a token"
        yield "of autoregressive decoding:\n"
        yield from _format_steps([row for row in section["rows"] if row["past"] == past and row["capacity"] is None])
    yield ""
    heads = ["", "MB at most", "seconds to make", "host, ms per forward pass", "tokens as PyTorch fp32"]
    yield from format_table(heads, list(_format_parts(section)))
    for name, reason in section["left_out"].items():
        yield f"\n{name} was left out: {reason}"


def format_judgments(entries: Sequence[Report]) -> Iterator[str]:
    """Yields goals next to what was measured, with the machine's limit if that is known."""
    limits = any("limit" in entry for entry in entries)
    heads = ["", "measured", "p10 to p90", "aim", "", *(["at this machine's limit"] if limits else [])]
    yield from format_table(heads, [_format_judgment(entry, limits) for entry in entries])


def _format_judgment(entry: Report, limits: bool) -> list[str]:
    who = f"{entry['contender']}, " if "contender" in entry else ""
    spread = "" if entry["p10"] == entry["p90"] else f"{format_figure(entry['p10'])} to {format_figure(entry['p90'])}"
    line = [who + entry["what"], format_figure(entry["value"]), spread, format_bound(entry), format_verdict(entry)]
    return [*line, *([format_figure(entry["limit"])] if limits else [])]


def format_figure(value: float) -> str:
    """Formats a number with two decimals, below 1 with three significant digits, from 100 on without decimals."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _format_steps(rows: Sequence[Report]) -> Iterator[str]:
    widths = sorted({row["width"] for row in rows})
    cells = {(row["contender"], row["width"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        found = [cells.get((name, width)) for width in widths]
        lines.append([name, *map(_format_ms, found)])
        if any(row and "limit_ms" in row for row in found):
            lines.append([f"*limit of {name}*", *(f"*{row['limit_ms']:.1f}*" if row else "" for row in found)])
    yield from format_table(["", *(f"B {width}" for width in widths)], lines)


def _format_ms(row: Report | None) -> str:
    return f"{row['ms']['median']:.1f} ({row['ms']['p10']:.1f}–{row['ms']['p90']:.1f})" if row else ""


def _format_parts(section: Report) -> Iterator[list[str]]:
    same = {entry["contender"]: f"{entry['same']} of {entry['of']}" for entry in section["same_tokens"]}
    for name, about in section["contenders"].items():
        host = section["host_ms_per_forward"].get(name)
        loop = f"{host['median']:.3f}" if host else ""
        yield [name, f"{about['peak_mb']:,.0f}", f"{about['seconds']:.1f}", loop, same.get(name, "")]


def format_answers(section: Report) -> Iterator[str]:
    """Yields the section `answers`: one table per task."""
    yield "## Whole answers"
    yield ""
    yield (
        f"{section['prompts']} prompts per task of the split `{section['split']}`, one at a time, the fastest of "
        f"{section['repeat']} runs of each. {format_conditions(section)}"
    )
    for name, task in section["tasks"].items():
        yield f"\n`{name}`:\n"
        heads = ["", "ms per answer", "median", "forward passes", "ms per forward pass", "tokens per second", "right"]
        yield from format_table(heads, [_answer(who, row) for who, row in task["contenders"].items()])
        for f, precision in ((task["factors"], "fp32"), (task["factors_int8"], "int8")):
            yield (
                f"\nIn {precision} {f['whole']:.1f} × faster than {f['teacher']}: "
                f"{f['forwards']:.2f} (forward passes) × {f['cache']:.2f} (a forward pass through the KV cache) × "
                f"{f['engine']:.2f} (engine); {f['against_baseline']:.2f} × faster than the autoregressive baseline.\n"
            )
        yield from format_judgments(task["goals"])


def _answer(name: str, row: Report) -> list[str]:
    right = "" if row["accuracy"] is None else f"{100 * row['accuracy']['accuracy']:.1f} %"
    figures = (row["ms_an_answer"], row["ms_an_answer_median"], row["forwards"], row["ms_a_forward"])
    return [name, *(f"{value:.2f}" for value in figures), f"{row['tokens_a_second']:.0f}", right]


def format_host(section: Report) -> Iterator[str]:
    """Yields the section `host`: one table."""
    yield "## The runtime next to the engine"
    yield ""
    name, starts = section["engine"]["name"], section["starts"]
    yield f"The sample student, {name}; {starts} fresh processes. {format_conditions(section)}"
    yield ""
    spreads = {
        "whole process: start, one answer, end": ("whole_ms", "ms"), "import": ("import_ms", "ms"),
        "loading the bundle": ("load_ms", "ms"), "first answer": ("first_answer_ms", "ms"),
        "memory at most": ("peak_mb", "MB"), "host per forward pass": ("host_ms_per_forward", "ms"),
        "making the KV cache ready": ("open_ms", "ms"), "tokens per second": ("tokens_per_second", ""),
    }  # fmt: skip
    rows = []
    for what, (name, unit) in spreads.items():
        row = section[name]
        rows.append([what, f"{row['median']:.3g} {unit}", f"{row['p10']:.3g} to {row['p90']:.3g}"])
    rows.append(["bundle", f"{section['bundle_mb']:.1f} MB", f"engine {section['engine']['mb']:.1f}"])
    if "mb" in section.get("install", {}):
        first = ", ".join(f"{name} {mb:.0f}" for name, mb in list(section["install"]["largest_mb"].items())[:4])
        rows.append(["runtime-only installation", f"{section['install']['mb']:.0f} MB", first])
    yield from format_table(["", "median", "tenth to ninetieth percentile, or parts"], rows)
    yield ""
    yield from format_judgments(section["goals"])
