"""What --show draws: a line a step in a pipe, a screen that ends as the answer on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from speaking import every_other, make_speaker

from runtime.decoding.request_state import Result
from runtime.model import Model
from runtime.text.terminal import Lines, Screen, count_columns, format_summary, make_printable, show_steps, wrap

PROMPT = "say it"


def drawn(model: Model, view: type[Lines] | type[Screen], wanted: int | None = None) -> str:
    out = io.StringIO()
    for _ in show_steps(model.steps(PROMPT, max_new_tokens=wanted), view(model.tokenizer, model.contract, out)):
        pass
    return out.getvalue()


def test_in_a_pipe_a_step_is_a_line(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, "ab\n\x1b😀", every_other)
    assert drawn(model, Lines).splitlines() == [
        "step 1  block 1  |a░⏎░|  +2 tokens",
        "step 2  block 1  |ab⏎░|  +1 token",
        "step 3  block 1  |ab⏎·|  +1 token",
        "step 4  block 2  |·░·░|  +2 tokens",
        "step 5  block 2  |·░|  +1 token",
        "step 6  block 2  |😀|  +1 token",
        "step 7  block 3  ||  +1 token, end",
    ]


def test_a_line_counts_no_tokens_after_the_last_that_was_wanted(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, "abcdef")  # a block per step
    assert drawn(model, Lines, 6).splitlines() == [
        "step 1  block 1  |abcd|  +4 tokens",
        "step 2  block 2  |ef|  +2 tokens",
    ]
    assert drawn(model, Lines, 3).splitlines() == ["step 1  block 1  |abc|  +3 tokens"]


def played(output: str, columns: int, rows: int) -> list[str]:
    """What a terminal shows after these writes: line feeds, returns, cursor up, erase below; colours are dropped."""
    lines, row, column, i = [""], 0, 0, 0
    while i < len(output):
        char = output[i]
        if output.startswith("\x1b[", i):
            end = next(j for j in range(i + 2, len(output)) if output[j].isalpha())
            if output[end] == "A":
                row -= int(output[i + 2 : end])
                assert row >= max(0, len(lines) - rows), "the cursor left the screen"
            elif output[end] == "J":
                lines[row:] = [lines[row][:column]]
            else:
                assert output[end] == "m"
            i = end
        elif char == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif char == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column] + char
            column += 1
            assert sum(map(count_columns, lines[row])) < columns, "a full line leaves the cursor nowhere"
        i += 1
    return lines


@pytest.mark.parametrize("answer", ["one two three\nfour five six\n\nseven", "naïve 你好 😀 e\u0301\n" * 3])
@pytest.mark.parametrize("wanted", [None, 17])
@pytest.mark.parametrize("columns", [8, 20, 80])
@pytest.mark.parametrize("alignment", ["prompt", "absolute"])
@pytest.mark.parametrize("block", [1, 4, 16])
def test_on_a_terminal_the_redrawn_screen_ends_as_the_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    alignment: str,
    columns: int,
    wanted: int | None,
    answer: str,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    model = make_speaker(
        tmp_path, PROMPT, answer, every_other, block=block, canvas=96, capacity=128, alignment=alignment
    )
    text = make_printable(model.generate(PROMPT, max_new_tokens=wanted).text)
    expected = ["".join(char for char, _ in part) for line in text.split("\n") for part in wrap_text(line, columns - 1)]
    assert played(drawn(model, Screen, wanted), columns, 24) == [*expected, ""]


def wrap_text(line: str, columns: int) -> list[list[tuple[str, str]]]:
    return wrap([(char, "") for char in line], columns)


def test_wide_and_combining_characters_take_their_columns() -> None:
    lines = wrap_text("你好e\u0301😀x", 4)
    assert ["".join(char for char, _ in line) for line in lines] == ["你好", "e\u0301😀x"]


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    assert make_printable("a\x1b[2J\u202e\x07\ufffd\tb\nc") == "a·[2J··· b\nc"


def test_the_summary_counts_separate_commits_on_both_sides(tmp_path: Path) -> None:
    model = make_speaker(tmp_path, PROMPT, "abcdefg", every_other)
    assert "8 tokens in 6 forward passes, 1.33 per pass" in format_summary(decode_result(model, True))
    assert "8 tokens in 7 forward passes, 1.14 per pass" in format_summary(decode_result(model, False))
    assert format_summary(decode_result(model, True)).endswith("one token per step takes at least 8 forward passes")
    separate = decode_result(model, False)
    assert format_summary(separate).endswith("one token per step takes at least 9 forward passes")
    assert format_summary(replace(separate, cached=False, seed=3)).endswith("9 forward passes; seed 3; no KV cache")


def decode_result(model: Model, fused: bool) -> Result:
    last = list(model.steps(PROMPT, fused=fused))[-1].result
    assert last is not None
    return last
