"""From a prompt to a visible answer: the three levels of the Python API, the terminal's view, the commands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from speaking import VOCAB, byte_tokenizer, every_other, ids_of, saved, speaker, speaking_bundle

from runtime import bench, generate, measure
from runtime.contract import GateSpec
from runtime.decode import Request
from runtime.decode import generate as decode_whole
from runtime.errors import NumericalError, UserError
from runtime.model import Answer, Model
from runtime.sequence import Result
from runtime.show import Lines, Screen, columns_of, printable, summary, watched, wrap
from runtime.text import BROKEN, Tokenizer
from train.torch_backend import TorchBackend, contract_of

ROOT = Path(__file__).parent.parent
PROMPT, ANSWER = "say it", "ab 😀 naïve\n你好 #### 42"


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
@pytest.mark.parametrize("attention", ["block_causal", "full"])
def test_the_three_levels_tell_one_story(
    tmp_path: Path, attention: str, alignment: str, shift: bool, fused: bool
) -> None:
    spec = {"attention": attention, "alignment": alignment, "shift": shift, "canvas": 40}
    model = speaker(tmp_path, PROMPT, ANSWER, every_other, **spec)
    answer = model.generate(PROMPT, fused=fused)
    assert (answer.text, answer.finish) == (ANSWER, "eos")
    assert answer.token_ids == (*ids_of(ANSWER), tiny.END)
    blocks = list(model.stream(PROMPT, fused=fused))
    assert "".join(block.text for block in blocks) == ANSWER
    assert sum((block.token_ids for block in blocks), ()) == answer.token_ids
    assert [block.index for block in blocks] == list(range(answer.blocks))
    assert [block.result is None for block in blocks] == [True] * (len(blocks) - 1) + [False]
    steps = list(model.steps(PROMPT, fused=fused))
    assert len(steps) == answer.steps
    assert steps[-1].result is not None and steps[-1].result.token_ids == answer.token_ids


def test_a_character_split_over_blocks_comes_whole_with_the_later_one(tmp_path: Path) -> None:
    model = speaker(tmp_path, PROMPT, "abc😀d")  # blocks of 4 bytes: abc and a quarter of the emoji
    assert [block.text for block in model.stream(PROMPT)] == ["abc", "😀d", ""]


def test_blocks_come_while_the_rest_is_not_decoded_yet(tmp_path: Path) -> None:
    model = speaker(tmp_path, PROMPT, "abcdefgh")
    assert next(model.stream(PROMPT)).text == "abcd"
    assert len(model.backend.forwards) == 1  # type: ignore[attr-defined]


def test_an_answer_cut_by_length_may_end_in_a_broken_character(tmp_path: Path) -> None:
    answer = speaker(tmp_path, PROMPT, "abc😀").generate(PROMPT, max_new_tokens=5)
    assert (answer.text, answer.finish, len(answer.token_ids)) == ("abc" + BROKEN, "length", 5)


def test_a_real_model_streams_what_it_generates(tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint(seed=3)
    backend = TorchBackend(checkpoint.build(), contract_of(checkpoint))
    (tmp_path / "tokenizer.json").write_text(checkpoint.tokenizer)
    model = Model(backend, Tokenizer(tmp_path / "tokenizer.json"), backend.contract.gate, "torch", "fp32")
    ids = [5, 6, 7, 8, 9]
    answer = model.generate(ids, max_new_tokens=20)
    plain = decode_whole(backend, Request(np.array(ids), 20))
    assert answer.token_ids == plain.token_ids
    assert "".join(block.text for block in model.stream(torch.tensor(ids).numpy(), max_new_tokens=20)) == answer.text


def test_an_answer_has_all_that_a_result_has() -> None:
    assert {field.name for field in fields(Answer)} == {"text", *(field.name for field in fields(Result))}


def test_the_tokens_asked_for_by_default_are_cut_to_the_room(tmp_path: Path) -> None:
    model = speaker(tmp_path, PROMPT, "x" * 300, capacity=64)
    assert len(model.generate(PROMPT).token_ids) == 56  # 64 less the prompt's 6, in blocks of 4
    with pytest.raises(UserError, match="room for 56"):
        model.generate(PROMPT, max_new_tokens=57)
    roomy = speaker(tmp_path, PROMPT, "x" * 300, capacity=400)
    assert len(roomy.generate(PROMPT).token_ids) == 256


def test_a_threshold_may_be_a_function_that_is_read_at_every_step(tmp_path: Path) -> None:
    model, read = speaker(tmp_path, PROMPT, "abcdefg", every_other), []

    def threshold() -> float:
        read.append(0.2 if read else 0.99)  # one token in the first step, all that is open in every later one
        return read[-1]

    answer = model.generate(PROMPT, threshold=threshold)
    assert (answer.text, answer.steps, len(read)) == ("abcdefg", 3, 3)


def test_the_engines_gate_replaces_the_contracts(tmp_path: Path) -> None:
    model = speaker(tmp_path, PROMPT, "abcdefg")
    careful = Model(model.backend, model.tokenizer, GateSpec(rule="count"), "scripted", "int8")
    assert (model.generate(PROMPT).steps, careful.generate(PROMPT).steps) == (2, 8)


def test_two_answers_of_one_model_are_not_mixed_up(tmp_path: Path) -> None:
    model = speaker(tmp_path, PROMPT, "abcdefgh")
    stream = model.stream(PROMPT)
    next(stream)
    with pytest.raises(UserError, match="in the middle of another answer"):
        model.generate(PROMPT)
    stream.close()  # type: ignore[attr-defined]
    assert model.generate(PROMPT).text == "abcdefgh"


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ([1, VOCAB], {}, f"token id {VOCAB} is not in the vocabulary"),
        ([-1], {}, "token id -1"),
        ([1.5], {}, "float64"),
        ([[1]], {}, r"array \[1, 1\]"),
        ("x" * 64, {}, "room for 0"),
        ("x", {"max_new_tokens": 0}, "expected at least 1"),
        ("x", {"threshold": 1.5}, "outside"),
        ("x", {"threshold": float("nan")}, "outside"),
        ("\udc80", {}, "surrogate"),
    ],
)
def test_mistakes_are_refused_before_any_forward(
    tmp_path: Path, prompt: Any, options: dict[str, Any], reason: str
) -> None:
    model = speaker(tmp_path, PROMPT, ANSWER)
    with pytest.raises(UserError, match=reason) as caught:
        model.generate(prompt, **options)
    assert "\n" not in str(caught.value)
    assert model.backend.forwards == []  # type: ignore[attr-defined]


def test_scores_that_are_no_numbers_end_the_answer_and_free_the_model(tmp_path: Path) -> None:
    model = speaker(tmp_path, PROMPT, ANSWER, lambda place: float("nan"))
    for _ in range(2):
        with pytest.raises(NumericalError):
            model.generate(PROMPT)


def drawn(model: Model, view: type[Lines] | type[Screen], wanted: int | None = None) -> str:
    out = io.StringIO()
    for _ in watched(model.steps(PROMPT, max_new_tokens=wanted), view(model.tokenizer, model.contract, out)):
        pass
    return out.getvalue()


def test_in_a_pipe_a_step_is_a_line(tmp_path: Path) -> None:
    model = speaker(tmp_path, PROMPT, "ab\n\x1b😀", every_other)
    assert drawn(model, Lines).splitlines() == [
        "step 1  block 1  |a░⏎░|  +2 tokens",
        "step 2  block 1  |ab⏎░|  +1 tokens",
        "step 3  block 1  |ab⏎·|  +1 tokens",
        "step 4  block 2  |·░·░|  +2 tokens",
        "step 5  block 2  |·░|  +1 tokens",
        "step 6  block 2  |😀|  +1 tokens",
        "step 7  block 3  ||  +2 tokens",
    ]


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
            assert sum(map(columns_of, lines[row])) < columns, "a full line leaves the cursor nowhere"
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
    model = speaker(tmp_path, PROMPT, answer, every_other, block=block, canvas=96, capacity=128, alignment=alignment)
    text = printable(model.generate(PROMPT, max_new_tokens=wanted).text)
    expected = ["".join(char for char, _ in part) for line in text.split("\n") for part in wrap_text(line, columns - 1)]
    assert played(drawn(model, Screen, wanted), columns, 24) == [*expected, ""]


def wrap_text(line: str, columns: int) -> list[list[tuple[str, str]]]:
    return wrap([(char, "") for char in line], columns)


def test_wide_and_combining_characters_take_their_columns() -> None:
    lines = wrap_text("你好e\u0301😀x", 4)
    assert ["".join(char for char, _ in line) for line in lines] == ["你好", "e\u0301😀x"]


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    assert printable("a\x1b[2J\u202e\x07\ufffd\tb\nc") == "a·[2J··· b\nc"


def test_the_summary_counts_separate_commits_on_both_sides(tmp_path: Path) -> None:
    model = speaker(tmp_path, PROMPT, "abcdefg", every_other)
    assert "8 tokens in 6 forwards, 1.33 a forward" in summary(decode_result(model, True))
    assert "8 tokens in 7 forwards, 1.14 a forward" in summary(decode_result(model, False))
    assert summary(decode_result(model, True)).endswith("one token a step takes at least 8 forwards")
    assert summary(decode_result(model, False)).endswith("one token a step takes at least 9 forwards")


def decode_result(model: Model, fused: bool) -> Result:
    last = list(model.steps(PROMPT, fused=fused))[-1].result
    assert last is not None
    return last


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(speaking_bundle(tmp_path_factory.mktemp("speaker"), PROMPT, ANSWER, every_other))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # hashes seen are remembered there


def command(module: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", f"runtime.{module}", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, timeout=120, check=False, **options)


def test_generate_prints_the_text_and_nothing_else(bundle: str) -> None:
    done = command("generate", bundle, PROMPT)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, ANSWER + "\n", b"")


def test_generate_reads_stdin_without_its_last_line_end(bundle: str) -> None:
    for arguments in ([], ["-"]):
        done = command("generate", bundle, *arguments, input=PROMPT.encode() + b"\n")
        assert done.stdout.decode() == ANSWER + "\n"


def test_generate_json_has_what_the_readme_promises(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ",".join(map(str, ids_of(PROMPT)))
    assert generate.main([bundle, "--token-ids", ids, "--json", "--show", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    values = json.loads(captured.out)
    assert set(values) == {
        "text", "token_ids", "finish", "steps", "commits", "forwards", "blocks", "tokens_per_forward", "seconds",
        "prefill_seconds", "load_seconds", "engine", "cached",
    }  # fmt: skip
    tokens = [*ids_of(ANSWER), tiny.END]
    assert (values["text"], values["token_ids"], values["engine"]) == (ANSWER, tokens, "ort-fp32")
    assert (values["finish"], values["blocks"], values["commits"], values["cached"]) == ("eos", 8, 0, False)
    assert values["forwards"] == values["steps"] == 7 * 3 + 2  # the end token needs not all of the last block
    assert values["tokens_per_forward"] == pytest.approx(len(tokens) / values["forwards"])
    assert captured.err.startswith("step 1  block 1  |a░ ░|  +2 tokens\n")


def test_generate_show_draws_on_stderr_and_answers_on_stdout(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main([bundle, PROMPT, "--show"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ANSWER + "\n"
    assert captured.err.splitlines()[-1].endswith("forwards")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere", PROMPT], "no bundle at nowhere"),
        (["BUNDLE", ""], "the prompt is empty"),
        (["BUNDLE", "--token-ids", ""], "the prompt is empty"),
        (["BUNDLE", "x" * 60], "room for 0"),
        (["BUNDLE", PROMPT, "--max-new-tokens", "41"], "room for 40"),
        (["BUNDLE", PROMPT, "--max-new-tokens", "0"], "expected at least 1"),
        (["BUNDLE", PROMPT, "--max-new-tokens", "many"], "invalid int value"),
        (["BUNDLE", PROMPT, "--threshold", "1.1"], "outside [0, 1]"),
        (["BUNDLE", PROMPT, "--threshold", "nan"], "outside [0, 1]"),
        (["BUNDLE", PROMPT, "--token-ids", "1,2"], "both a prompt and --token-ids"),
        (["BUNDLE", "--token-ids", "1,x"], "expected whole numbers"),
        (["BUNDLE", "--token-ids", f"1,{VOCAB}"], "not in the vocabulary"),
        (["BUNDLE", PROMPT, "--engine", "trt-fp16"], "trt-fp16"),
        (["BUNDLE", PROMPT, "--threads", "0"], "threads is 0"),
        (["BUNDLE", PROMPT, "--commit", "later"], "invalid choice"),
        (["BUNDLE", PROMPT, "--loud"], "--help lists the options"),
        ([], "--help lists the options"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    bundle: str, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert generate.main([bundle if part == "BUNDLE" else part for part in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert reason in captured.err


def test_text_that_is_not_utf8_is_a_mistake_too(bundle: str) -> None:
    for done in (
        command("generate", bundle, input=b"\xff"),
        command("generate", bundle, b"\xff".decode(errors="surrogateescape")),
    ):
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1


def test_a_closed_pipe_ends_quietly(bundle: str) -> None:
    line = [sys.executable, "-m", "runtime.generate", bundle, PROMPT]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(line, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_ends_with_130(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Model:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "load_model", interrupted)
    assert generate.main([bundle, PROMPT]) == 130


def test_unusable_numbers_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = speaking_bundle(tmp_path, PROMPT, ANSWER, lambda place: float("nan"))
    assert generate.main([str(broken), PROMPT]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_chat_template_in_the_bundle_applies_unless_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "<|pad|>{{ messages[0]['content'] }}"
    # The graph speaks by position: behind the template's extra token the first byte is missing.
    bundle = str(speaking_bundle(tmp_path, PROMPT, "xyz", template=template))
    assert generate.main([bundle, PROMPT]) == 0
    assert generate.main([bundle, PROMPT, "--raw"]) == 0
    assert capsys.readouterr().out == "yz\nxyz\n"


def test_bench_reports_every_kind_of_forward_and_its_conditions(
    bundle: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"prompt": "{PROMPT}"}}\n' * 3)
    options = ["--repeat", "2", "--warmup", "0", "--threads", "1", "--prompts", str(prompts)]
    assert bench.main([bundle, *options, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    values = json.loads(captured.out)
    assert [row["width"] for row in values["forwards"]] == [41, 52, 64]
    assert values["answers"]["count"] == 3
    assert values["answers"]["tokens"]["median"] == len(ids_of(ANSWER)) + 1
    assert {"processor", "threads", "engine", "precision", "block", "capacity", "versions"} <= set(values["conditions"])
    assert bench.main([bundle, *options]) == 0
    table = capsys.readouterr().out
    assert command("bench", bundle, "--repeat", "0").returncode == 2
    assert "tokens per second" in table and "host ms per forward" in table


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
def test_the_forwards_that_are_timed_are_those_that_decoding_makes(tmp_path: Path, alignment: str, shift: bool) -> None:
    checkpoint = tiny.checkpoint(alignment=alignment, shift=shift)
    backend = TorchBackend(checkpoint.build(), contract_of(checkpoint))
    rows = list(measure.forwards(backend, repeat=1, warmup=0))
    assert {row.forward for row in rows} == {"step", "commit", "fused step", "prefill"}
    assert {row.past for row in rows if row.forward == "step"} == {0, 28, 56}
    spoken = speaker(tmp_path, "x" * 8, "abcdefgh", alignment=alignment, shift=shift, gate={"rule": "count"})
    spoken.generate("x" * 8)
    made = spoken.backend.forwards  # type: ignore[attr-defined]
    fused = next(f for f in made if f.past_length[0] == 8 and f.input_ids.shape[1] == 8)
    timed = measure.fused(spoken.contract, 8)
    step = next(f for f in made if f.past_length[0] == 8 and f.input_ids.shape[1] == 4)
    for one, other in ((fused, timed), (step, measure.canvas(spoken.contract, 8))):
        assert np.array_equal(one.visible, other.visible)
        assert np.array_equal(one.rows, other.rows)


@pytest.mark.parametrize(
    ("content", "reason"), [("", "is empty"), ('{"text": "x"}', "line 1"), ('{"prompt": "x"}\nx', "line 2")]
)
def test_bench_names_the_line_of_a_bad_prompts_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: str, content: str, reason: str
) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    assert bench.main([bundle, "--prompts", str(tmp_path / "prompts.jsonl")]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_the_byte_tokenizer_of_these_tests_is_one_token_a_byte(tmp_path: Path) -> None:
    tokenizer = Tokenizer(saved(byte_tokenizer(), tmp_path))
    assert tokenizer.encode(ANSWER).tolist() == ids_of(ANSWER)
