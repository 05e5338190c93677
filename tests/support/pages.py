"""The project's pages, and the fenced blocks that they show: which are run, and what a run has to print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
WALKED = ["README.md", "samples/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PAGES = [*WALKED, "CONTRIBUTING.md", "SECURITY.md"]
FENCE = re.compile(r"(?:^<!-- (?P<marker>[^>]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A block of commands or Python.

    expected: what it has to print, empty if the page shows nothing. reason: why it is not run, empty if it is.
    server: whether it is a server that runs until the end of the page.
    """

    language: str
    text: str
    expected: str
    reason: str
    server: bool


def read(page: str) -> str:
    """Returns a page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """Yields the blocks of a page in `sh` and `python`, each with the `text` block that follows it."""
    found = list(FENCE.finditer(read(page)))
    for match, after in pairwise([*found, None]):
        if match and match["language"] in ("sh", "python"):
            marker = match["marker"] or ""
            expected = after["text"] if after and after["language"] == "text" else ""
            reason = marker.removeprefix("not run: ") if marker.startswith("not run: ") else ""
            yield Block(match["language"], match["text"], expected, reason, marker == "server")


def find_missing_lines(expected: str, printed: str) -> list[str]:
    """Returns the expected lines that are not among the printed ones, in order; … stands for anything."""
    missing, rest = [], iter(printed.splitlines())
    for line in expected.splitlines():
        pattern = ".*".join(re.escape(part) for part in line.split("…"))
        if not any(re.fullmatch(pattern, each) for each in rest):
            missing.append(line)
            rest = iter(printed.splitlines())
    return missing


def make_slug(heading: str) -> str:
    """Returns the anchor that a heading has on the usual hosts."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
