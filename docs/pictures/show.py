"""Makes show.svg, a moving picture of blocks unmasking, from a recorded `--show`: python docs/pictures/show.py

The record show.txt is what this writes to stderr:

    cd docs/pictures && blockstep generate ../../samples/student.bundle "$(cat ../../samples/prompt_math.txt)" \\
        --threshold 0.98 --show 2> show.txt

A masked position is shown as ░. The same record gives the same picture, byte for byte.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
LINE = re.compile(r"step (\d+)  block (\d+)  \|(.*)\|  \+(\d+) tokens?(?:, end)?")
MASK, NEWLINE = "░", "⏎"
COLUMNS, BLOCK = 60, 16  # characters per line; positions per block
SECONDS, HOLD = 0.9, 3.0  # of a frame, and of the last one
CHARACTER, HEIGHT, LEFT, TOP = 10.8, 26, 24, 62  # of a monospaced glyph at 18 px, in px
FINISHED, ACCEPTED, MASKED, CAPTION = "#c9d1d9", "#3fb950", "#6e7681", "#8b949e"

Glyph = tuple[str, str]  # a character and its color


@dataclass(frozen=True)
class Frame:
    """Holds one state of the answer: its glyphs, and the caption."""

    glyphs: tuple[Glyph, ...]
    caption: str


def color_block(text: str, before: str) -> list[Glyph]:
    """Returns the glyphs of a block; text that was masked in `before` is in the color of accepted tokens."""
    pattern = "".join(f"(.*?{MASK}*)" if part == MASK else re.escape(part) for part in re.split(f"({MASK})", before))
    found = re.fullmatch(pattern, text)
    accepted = {i for group in range(1, len(found.groups()) + 1) for i in range(*found.span(group))} if found else set()
    return [(c, MASKED if c == MASK else ACCEPTED if i in accepted else FINISHED) for i, c in enumerate(text)]


def read_frames(lines: list[str]) -> Iterator[Frame]:
    """Yields the masked block and what each forward pass makes of it, after the finished blocks."""
    finished, before, current = "", MASK * BLOCK, 0
    *steps, summary = lines
    for line in steps:
        match = LINE.fullmatch(line)
        if match is None:
            raise SystemExit(f"error: {line!r} is not a line of --show")
        step, block, text, accepted = int(match[1]), int(match[2]), match[3], match[4]
        if block != current:
            finished += before if current else ""
            before, current = MASK * BLOCK, block
            start = _plain(finished) + ((MASK, MASKED),) * BLOCK
            yield Frame(start, f"block {block}: {BLOCK} masked positions")
        glyphs = _plain(finished) + tuple(color_block(text, before))
        yield Frame(glyphs, f"forward pass {step}: the gate accepts {accepted} tokens of block {block}")
        before = text
    tokens = summary.split()[0]
    yield Frame(_plain(finished + before), f"{tokens} tokens in {len(steps)} forward passes, not one per token")


def _plain(text: str) -> tuple[Glyph, ...]:
    return tuple((c, FINISHED) for c in text)


def wrap(glyphs: tuple[Glyph, ...]) -> list[list[Glyph]]:
    """Returns lines of at most COLUMNS glyphs, broken at spaces if there are any, and at line ends."""
    rows: list[list[Glyph]] = [[]]
    for glyph in glyphs:
        if glyph[0] == NEWLINE:
            rows.append([])
            continue
        if len(rows[-1]) == COLUMNS:
            cut = max((i + 1 for i, (c, _) in enumerate(rows[-1]) if c == " "), default=COLUMNS)
            rows.append(rows[-1][cut:])
            del rows[-2][cut:]
        rows[-1].append(glyph)
    return rows


def draw_text(glyphs: tuple[Glyph, ...]) -> str:
    """Returns the glyphs as SVG text, one element per run of one color."""
    drawn = []
    for y, row in enumerate(wrap(glyphs)):
        start = 0
        for i in range(1, len(row) + 1):
            if i == len(row) or row[i][1] != row[start][1]:
                run = escape("".join(c for c, _ in row[start:i]))
                place = f'x="{LEFT + start * CHARACTER:.1f}" y="{TOP + y * HEIGHT}"'
                length = f'textLength="{(i - start) * CHARACTER:.1f}"'
                drawn.append(f'<text {place} {length} fill="{row[start][1]}" xml:space="preserve">{run}</text>')
                start = i
    return "".join(drawn)


def draw(frames: list[Frame]) -> str:
    """Returns the picture: every frame is visible during its part of one endless loop."""
    rows = max(len(wrap(frame.glyphs)) for frame in frames)
    width, height = LEFT * 2 + COLUMNS * CHARACTER, TOP + rows * HEIGHT + 20
    whole = SECONDS * (len(frames) - 1) + HOLD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}">',
        "<title>Blocks unmasking: blockstep generate --show</title>",
        f'<rect width="{width:.0f}" height="{height}" rx="10" fill="#0d1117"/>',
        '<g font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="18">',
    ]
    for i, frame in enumerate(frames):
        begin, end = SECONDS * i / whole, (SECONDS * (i + 1) / whole if i + 1 < len(frames) else 1)
        times = [0.0, begin, end, 1.0] if i else [0.0, end, 1.0]
        values = ["hidden", "visible", "hidden", "hidden"] if i else ["visible", "hidden", "hidden"]
        if i + 1 == len(frames):
            times, values = [0.0, begin, 1.0], ["hidden", "visible", "visible"]
        parts.append(
            f'<g visibility="{"visible" if i + 1 == len(frames) else "hidden"}">'
            f'<animate attributeName="visibility" calcMode="discrete" dur="{whole:.1f}s" repeatCount="indefinite" '
            f'keyTimes="{";".join(f"{t:.4f}" for t in times)}" values="{";".join(values)}"/>'
            f'<text x="{LEFT}" y="30" font-size="15" fill="{CAPTION}">{escape(frame.caption)}</text>'
            f"{draw_text(frame.glyphs)}</g>"
        )
    return "\n".join([*parts, "</g>", "</svg>", ""])


def main() -> int:
    """Writes show.svg next to the record, or to the path in the first argument."""
    lines = (HERE / "show.txt").read_text(encoding="utf-8").splitlines()
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "show.svg"
    out.write_text(draw(list(read_frames(lines))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
