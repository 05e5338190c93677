"""What a part of the reliability report says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """A title, and rows of what was tried, how often, and what came of it."""

    title: str
    rows: tuple[tuple[str, int, str], ...]
