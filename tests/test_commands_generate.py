"""The command runtime.generate: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from speaking import ANSWER, PROMPT, VOCAB, encode_ids, every_other, make_speaking_bundle

from runtime import generate, load
from runtime.decoding.options import DecodeOptions, Request
from runtime.model import Model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_speaking_bundle(tmp_path_factory.mktemp("speaker"), PROMPT, ANSWER, every_other))


def command(module: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", f"runtime.{module}", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, timeout=120, check=False, **options)


def test_generate_prints_the_text_and_nothing_else(bundle: str) -> None:
    done = command("generate", bundle, PROMPT)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, ANSWER + "\n", b"")


def test_generate_reads_stdin_without_its_last_line_end(bundle: str) -> None:
    written = PROMPT.encode()
    for arguments, text in (([], written + b"\n"), (["-"], b"\xef\xbb\xbf" + written + b"\r\n")):
        done = command("generate", bundle, *arguments, input=text)
        assert done.stdout.decode() == ANSWER + "\n"


def test_generate_json_has_what_the_readme_promises(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ",".join(map(str, encode_ids(PROMPT)))
    assert generate.main([bundle, "--token-ids", ids, "--json", "--show", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    values = json.loads(captured.out)
    assert set(values) == {
        "text", "token_ids", "finish", "steps", "commits", "forwards", "blocks", "tokens_per_forward", "seconds",
        "prefill_seconds", "load_seconds", "engine", "cached", "seed", "mode",
    }  # fmt: skip
    tokens = [*encode_ids(ANSWER), tiny.END]
    assert (values["text"], values["token_ids"], values["engine"]) == (ANSWER, tokens, "ort-fp32")
    assert (values["finish"], values["blocks"], values["commits"], values["cached"]) == ("eos", 8, 0, False)
    assert values["seed"] is None
    assert values["forwards"] == values["steps"] == 7 * 3 + 2  # the end token needs not all of the last block
    assert values["tokens_per_forward"] == pytest.approx(len(tokens) / values["forwards"])
    assert captured.err.startswith("step 1  block 1  |a░ ░|  +2 tokens\n")


@pytest.mark.parametrize("extra", [[], ["--show"]])
def test_an_answer_that_is_cut_is_reported_on_stderr_with_what_to_do(
    bundle: str, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    assert generate.main([bundle, PROMPT, "--max-new-tokens", "3", *extra]) == 0
    captured = capsys.readouterr()
    line = "cut: no end token within 3 tokens; --max-new-tokens may be up to 40 for this prompt"
    assert captured.out == "ab \n" and captured.err.splitlines()[-1] == line and captured.err.count("cut: ") == 1
    assert generate.main([bundle, PROMPT, "--max-new-tokens", "3", *extra, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["finish"] == "length" and "cut: " not in captured.err
    assert generate.main([bundle, PROMPT, "--max-new-tokens", "3", "--suffix", "x", *extra]) == 0
    assert "cut: " not in capsys.readouterr().err  # a gap before a suffix has its length


def test_an_answer_as_long_as_the_canvas_or_the_kv_cache_names_what_gives_more_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = str(make_speaking_bundle(tmp_path, PROMPT, "x" * 50))
    assert generate.main([full, PROMPT]) == 0
    line = "cut: no end token within 40 tokens, the model's canvas; a longer answer needs a larger one (--canvas, if "
    assert capsys.readouterr().err.startswith(line)
    contract = tiny.contract()
    request = Request(np.arange(3, 11), DecodeOptions(56, mode="block"))
    assert generate.format_cut_line(contract, request) == (
        "cut: no end token within 56 tokens, which with the prompt's 8 fill the KV-cache capacity of 64; shorten the "
        "prompt, or export with a larger --capacity"
    )


@pytest.fixture(scope="module")
def sampling(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle with top tokens, where every second place is open to four other characters."""
    folder = tmp_path_factory.mktemp("sampling")
    return str(make_speaking_bundle(folder, PROMPT, "a quiet answer", every_other, others="wxyz"))


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert generate.main([*arguments, "--threads", "1", "--json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_generate_at_a_temperature_tells_the_seed_that_gives_the_answer_again(
    sampling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = told(capsys, sampling, PROMPT, "--seed", "4")
    assert (greedy["text"], greedy["seed"]) == ("a quiet answer", None)
    drawn = [told(capsys, sampling, PROMPT, "--temperature", "1.5") for _ in range(3)]
    assert len({values["seed"] for values in drawn}) == 3 and drawn[0]["text"] != greedy["text"]
    for values in drawn:
        again = [sampling, PROMPT, "--temperature", "1.5", "--seed", str(values["seed"])]
        assert told(capsys, *again)["token_ids"] == values["token_ids"]
        assert generate.main([*again, "--threads", "1"]) == 0
        assert capsys.readouterr().out == values["text"] + "\n"
    assert generate.main([*again, "--show"]) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"forward passes; seed {drawn[-1]['seed']}; no KV cache")


def test_a_models_three_levels_draw_the_same(sampling: str) -> None:
    model = load(sampling, threads=1)
    options: Any = {"temperature": 2.0, "seed": -3}
    answer = model.generate(PROMPT, **options)
    assert "".join(block.text for block in model.stream(PROMPT, **options)) == answer.text
    last = list(model.steps(PROMPT, **options))[-1].result
    assert (
        last is not None and (last.token_ids, last.seed) == (answer.result.token_ids, -3) and answer.result.seed == -3
    )
    assert model.share().generate(PROMPT, **options).text == answer.text
    assert model.generate(PROMPT, temperature=2.0, seed=-4).text != answer.text
    request = model.request(PROMPT, temperature=2.0)
    assert request.options.seed is not None and model.request(PROMPT, seed=5).options.seed is None


def test_generate_show_draws_on_stderr_and_answers_on_stdout(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main([bundle, PROMPT, "--show"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ANSWER + "\n"
    assert captured.err.splitlines()[-1].endswith("forward passes; no KV cache")


def test_generate_show_does_not_glue_text_and_steps_that_go_to_one_file(bundle: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        line = [sys.executable, "-m", "runtime.generate", bundle, PROMPT, "--show", "--threads", "1"]
        assert subprocess.run(line, cwd=ROOT, stdout=log, stderr=log, timeout=120, check=False).returncode == 0
    shown, _, summary = (tmp_path / "log").read_text(encoding="utf-8").partition(f"\n{ANSWER}\n")
    steps = shown.split("\n")
    assert len(steps) == 7 * 3 + 2 and all(
        re.fullmatch(r"step \d+  block \d+  \|.*\|  \+\d+ tokens?(, end)?", s) for s in steps
    )
    assert summary.count("\n") == 1 and summary.endswith("forward passes; no KV cache\n")


def test_generate_show_prints_the_answer_on_a_terminal_that_is_not_redrawn(
    bundle: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert generate.main([bundle, PROMPT, "--show"]) == 0
    assert capsys.readouterr().out == ANSWER + "\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere", PROMPT], "no bundle at nowhere"),
        (["", PROMPT], "the bundle's path is empty; expected the folder of a bundle"),
        (["BUNDLE", ""], "the prompt is empty"),
        (["BUNDLE", "--token-ids", ""], "the prompt is empty"),
        (["BUNDLE", "x" * 60], "room for 0"),
        (["BUNDLE", PROMPT, "--max-new-tokens", "41"], "room for 40"),
        (["BUNDLE", PROMPT, "--max-new-tokens", "0"], "expected at least 1"),
        (["BUNDLE", PROMPT, "--max-new-tokens", "many"], "got 'many'; expected a whole number"),
        (["BUNDLE", PROMPT, "--threshold", "1.1"], "outside [0, 1]"),
        (["BUNDLE", PROMPT, "--threshold", "nan"], "got 'nan'; expected a finite number"),
        (["BUNDLE", PROMPT, "--threshold=-inf"], "got '-inf'; expected a finite number"),
        (["BUNDLE", PROMPT, "--template-args", '{"a": 1, "a": 2}'], "'a' occurs twice in one object"),
        (["BUNDLE", PROMPT, "--temperature", "0.7"], "top-1 token alone; leave it out, or export with --top-k 32"),
        (["BUNDLE", PROMPT, "--temperature", "-1"], "temperature is -1; expected 0"),
        (["BUNDLE", PROMPT, "--temperature", "hot"], "got 'hot'; expected a finite number"),
        (["BUNDLE", PROMPT, "--seed", "9223372036854775808"], "expected a whole number of 64 bits"),
        (["BUNDLE", PROMPT, "--token-ids", "1,2"], "both a prompt and --token-ids"),
        (["BUNDLE", "--token-ids", "1,x"], "expected token ids with commas"),
        (["BUNDLE", "--token-ids", "9" * 30], "expected token ids with commas"),
        (["BUNDLE", "--token-ids", f"1,{VOCAB}"], "not in the vocabulary"),
        (["BUNDLE", PROMPT, "--engine", "trt-fp16"], "trt-fp16"),
        (["BUNDLE", PROMPT, "--threads", "0"], "--threads: got '0'; expected 1 to 1024 threads"),
        (["BUNDLE", PROMPT, "--threads", str(1 << 31)], "expected 1 to 1024 threads"),
        (["BUNDLE", PROMPT, "--commit", "separate"], "unrecognized arguments"),
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


def test_an_answer_that_is_cut_since_nobody_reads_its_steps_is_no_success(bundle: str) -> None:
    line = [sys.executable, "-m", "runtime.generate", bundle, PROMPT, "--show"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=writer, timeout=120, check=False)
    os.close(writer)
    assert done.returncode == 1 and done.stdout != f"{ANSWER}\n".encode()


@pytest.mark.parametrize(
    ("closed", "words", "code", "out"),
    [
        ("<&-", "", 2, ""), ("<&-", "'{prompt}'", 0, ANSWER), (">&-", "'{prompt}'", 0, ""), (">&-", "--help", 0, ""),
        ("2>&-", "'{prompt}' --show", 0, ANSWER), ("2>&-", "''", 2, ""), ("<&- >&- 2>&-", "'{prompt}'", 0, ""),
    ],
)  # fmt: skip
def test_a_closed_standard_stream_is_the_null_device(bundle: str, closed: str, words: str, code: int, out: str) -> None:
    line = f"{sys.executable} -m runtime.generate {bundle} {words.format(prompt=PROMPT)} {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode == code and done.stdout.decode().strip() == out, done.stderr
    assert done.stderr.count(b"\n") == (1 if code and "2>&-" not in closed else 0), done.stderr


def test_an_interrupt_ends_with_130(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Model:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "load_model", interrupted)
    assert generate.main([bundle, PROMPT]) == 130


def test_unusable_numbers_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = make_speaking_bundle(tmp_path, PROMPT, ANSWER, lambda place: float("nan"))
    assert generate.main([str(broken), PROMPT]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_chat_template_in_the_bundle_applies_unless_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "<|pad|>{{ messages[0]['content'] }}"
    # The graph speaks by position: behind the template's extra token the first byte is missing.
    bundle = str(make_speaking_bundle(tmp_path, PROMPT, "xyz", template=template))
    assert generate.main([bundle, PROMPT]) == 0
    assert generate.main([bundle, PROMPT, "--raw"]) == 0
    assert capsys.readouterr().out == "yz\nxyz\n"


def test_template_arguments_on_the_line_reach_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "{% if padded %}<|pad|>{% endif %}{{ messages[0]['content'] }}"
    bundle = str(make_speaking_bundle(tmp_path, PROMPT, "xyz", template=template))
    for words in ([], ["--template-args", '{"padded": true}'], ["--template-args", '{"padded": false}']):
        assert generate.main([bundle, PROMPT, *words]) == 0
    assert capsys.readouterr().out == "xyz\nyz\nxyz\n"
    assert generate.main([bundle, PROMPT, "--template-args", '{"tools": []}']) == 2
    assert "tools is given by the renderer itself" in capsys.readouterr().err


def test_a_prompt_is_utf8_whatever_the_locale_says() -> None:
    for typed, prompt in {"a\udcc3\udca9": "aé", "aé": "aé", "a\udce9": "a\udce9", "\ud800": "\ud800"}.items():
        assert generate.read_prompt(argparse.Namespace(prompt=typed, token_ids=None)) == prompt
