"""Shows an answer in a terminal: its blocks as they unmask, redrawn in place, or one line per step in a pipe."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import TextIO

import numpy as np

from ..contract import Contract
from ..decoding.batch import Step
from ..decoding.request_state import Result
from .tokenizer import BROKEN, Tokenizer

MASK = "░"
UNREADABLE = "·"  # replaces parts of characters, and control characters, which must not reach the terminal
NEWLINE = "⏎"
DIM, GREEN, YELLOW, RED, BOLD = "2", "32", "33", "31", "1;"

StyledCharacter = tuple[str, str]  # a character and its style, the numbers of an ANSI SGR sequence


class Lines:
    """Prints a line of plain text per step."""

    def __init__(self, tokenizer: Tokenizer, contract: Contract, out: TextIO) -> None:
        self._tokenizer, self._eos_ids, self._out = tokenizer, contract.eos_ids, out
        self._steps = 0
        self._before = 0  # tokens of the answer in finished blocks

    def draw(self, step: Step) -> None:
        self._steps += 1
        last = find_end_of_canvas(step, self._eos_ids, self._before)
        text = "".join(text for text, _ in decode_tokens(self._tokenizer, [], step, last)).replace("\n", NEWLINE)
        ended = step.result is not None and step.result.finish == "eos"
        # Tokens after the answer's end are not of the answer; the end token is.
        accepted = int(step.accepted[: last + (ended or step.result is None)].sum())
        tokens = f"+{accepted} token{'s' * (accepted != 1)}" + ", end" * ended
        print(f"step {self._steps}  block {step.block + 1}  |{text}|  {tokens}", file=self._out, flush=True)
        if not step.open.any():
            self._before += len(step.open) - step.given


class Screen:
    """Shows the answer so far, redrawn at each step; colors show the confidence with which a token was accepted."""

    def __init__(self, tokenizer: Tokenizer, contract: Contract, out: TextIO) -> None:
        self._tokenizer, self._eos_ids, self._out = tokenizer, contract.eos_ids, out
        self._line: list[StyledCharacter] = []  # the line that the canvas begins on
        self._drawn = 1  # lines from there to the cursor
        self._before = 0  # tokens of the answer in finished blocks
        self._head: list[int] = []  # tokens of a character that the block before left unfinished

    def draw(self, step: Step) -> None:
        size = shutil.get_terminal_size()
        finished = step.result is not None or not step.open.any()
        # One column stays free: after a full line, the cursor would be between two lines.
        lines = wrap(self._line + self._make_cells(step), max(1, size.columns - 1))
        if not finished:
            shown = lines[-max(1, size.lines - 1) :]  # the cursor cannot go above the screen's first line
        else:
            shown, self._line = lines, lines[-1]
        up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
        self._out.write(f"{up}\r\x1b[J" + "\n".join(map(style_line, shown)) + "\n" * (step.result is not None))
        self._out.flush()
        self._drawn = 1 if finished else len(shown)

    def _make_cells(self, step: Step) -> list[StyledCharacter]:
        last, head, cells = find_end_of_canvas(step, self._eos_ids, self._before), self._head, []
        if step.result is None and not step.open.any():
            tokens = head + step.tokens[step.given :].tolist()
            self._head = find_unfinished(self._tokenizer, tokens)  # shown with the next block
            self._before += len(step.open) - step.given
            last -= len(self._head)
            if last < step.given:
                return []
        for text, places in decode_tokens(self._tokenizer, head, step, last):
            cells += [(char, self._choose_style(step, places)) for char in text]
        return cells

    def _choose_style(self, step: Step, places: list[int]) -> str:
        if step.open[places].any():
            return DIM
        fresh = BOLD if step.accepted[places].any() and step.result is None else ""
        return fresh + choose_color(float(step.confidence[places].min(initial=1)))


def make_view(tokenizer: Tokenizer, contract: Contract, out: TextIO) -> Lines | Screen:
    """Returns a redrawn screen if `out` is a terminal that can show it, else plain lines, as also with NO_COLOR."""
    able = out.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ
    return (Screen if able else Lines)(tokenizer, contract, out)


def show_steps(steps: Iterable[Step], view: Lines | Screen) -> Iterator[Step]:
    """Yields the same steps, each after it was shown."""
    for step in steps:
        view.draw(step)
        yield step


def format_summary(result: Result) -> str:
    """Returns one line: forward passes, tokens per forward pass, seconds, the forward passes that one token per step
    would take, the seed if there is one, and a note if there was no KV cache."""
    tokens = len(result.token_ids)
    further = ("" if result.seed is None else f"; seed {result.seed}") + ("" if result.cached else "; no KV cache")
    return (
        f"{tokens} tokens in {result.forwards} forward passes, {result.tokens_per_forward:.2f} per pass, in "
        f"{result.seconds:.2f} s (prefill {result.prefill_seconds:.2f} s); one token per step takes at least "
        f"{result.one_a_step} forward passes{further}"
    )


def find_end_of_canvas(step: Step, eos_ids: tuple[int, ...], before: int) -> int:
    """Returns where the canvas's text ends: at the answer's end, an end token with no mask before it, or the canvas's
    width.

    before: tokens of the answer in earlier blocks.
    """
    if step.result is not None:
        return step.given + len(step.result.token_ids) - before - (step.result.finish == "eos")
    settled = int(step.open.argmax()) if step.open.any() else len(step.open)
    ends = np.isin(step.tokens[step.given : settled], eos_ids).nonzero()[0]
    return step.given + int(ends[0]) if len(ends) else len(step.open)


def decode_tokens(tokenizer: Tokenizer, head: list[int], step: Step, last: int) -> Iterator[tuple[str, list[int]]]:
    """Yields the canvas up to `last` as (text, positions); adjacent tokens that are parts of characters are joined.

    head: the tokens of a character that the block before left unfinished; they have no positions.
    """
    parts, places = list(head), []
    for place in range(step.given, last):
        token = int(step.tokens[place])
        text = MASK if step.open[place] else tokenizer.decode([token])
        if BROKEN in text:
            parts.append(token)
            places.append(place)
            continue
        if parts:
            yield make_printable(tokenizer.decode(parts)), places
            parts, places = [], []
        yield make_printable(text), [place]
    if parts:
        yield make_printable(tokenizer.decode(parts)), places


def find_unfinished(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """Returns the last tokens, as far as they are parts of characters, if the last character is not whole."""
    start = len(tokens)
    while start and BROKEN in tokenizer.decode([tokens[start - 1]]):
        start -= 1
    return tokens[start:] if tokenizer.decode(tokens[start:]).endswith(BROKEN) else []


def make_printable(text: str) -> str:
    """Replaces characters that a terminal would obey, not show; newlines stay, other white space becomes spaces."""
    return "".join(_make_printable(char) for char in text)


def _make_printable(char: str) -> str:
    if char in "\n\u200d" or (char.isprintable() and char != BROKEN):  # U+200D joins emoji
        return char
    return " " if char.isspace() else UNREADABLE


def choose_color(confidence: float) -> str:
    """Returns the color of a confidence: green from 0.9 on, yellow from 0.6 on, red below."""
    return GREEN if confidence >= 0.9 else YELLOW if confidence >= 0.6 else RED


def wrap(cells: list[StyledCharacter], columns: int) -> list[list[StyledCharacter]]:
    """Splits an answer into lines of at most `columns` columns; returns at least one line, perhaps empty."""
    lines: list[list[StyledCharacter]] = [[]]
    used = 0
    for char, style in cells:
        width = count_columns(char)
        if char == "\n" or used + width > columns:
            lines.append([])
            used = 0
        if char != "\n":
            lines[-1].append((char, style))
            used += width
    return lines


def count_columns(char: str) -> int:
    """Returns how many columns a character takes: 0 for combining ones, 2 for wide ones."""
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def style_line(line: list[StyledCharacter]) -> str:
    """Returns a line with its styles as ANSI sequences."""
    parts = [(style, "".join(char for char, _ in part)) for style, part in groupby(line, itemgetter(1))]
    return "".join(f"\x1b[0m\x1b[{style}m{text}" for style, text in parts) + "\x1b[0m" * bool(parts)
