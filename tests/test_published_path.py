"""Published directories through the commands: exported and answered by ONNX Runtime, verified, distilled."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
from foreign import BLOCK, CANVAS, Stock
from slow_decode import slow_decode

from export import onnx as export
from export import verify
from runtime import load
from runtime.contract import GateSpec
from runtime.decode import Request, generate
from train import checkpoint, collect, distill, evaluate
from train.families import Overrides
from train.torch_backend import TorchBackend, contract_of
from train.trajectories import read_shards

SIZES = ["--block", str(BLOCK), "--canvas", str(CANVAS)]
TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"


def lines(folder: Path) -> Path:
    """Own data that fits a tiny context, one token a byte."""
    file = folder / "own.jsonl"
    made = ({"prompt": f"say {word} {n}\n", "answer": word} for n in range(90) for word in ("yes", "no, not"))
    file.write_text("".join(json.dumps(line) + "\n" for line in made))
    return file


def call(main: Callable[[], None], words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a `train.*` command."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object on the last line of stdout."""
    values: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return values


@pytest.mark.parametrize("name", foreign.FOREIGN)
def test_an_exported_directory_answers_as_the_stock_class(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Tiny-1.5B-Chat"
    stock: Any = foreign.write(folder, name, seed=3, template=TEMPLATE, sharp=4.0)
    assert export.main(["--ckpt", str(folder), *SIZES, "--json"]) == 0
    made = Path(told(capsys)["bundle"])
    assert made == tmp_path / "Tiny-1.5B-Chat.bundle"
    model, read = load(made), checkpoint.load(folder, Overrides(block=BLOCK, canvas=CANVAS))
    reference, slow = TorchBackend(read.build(), contract_of(read)), Stock(stock, model.contract.vocab)
    assert model.contract.gate == reference.contract.gate
    rng = np.random.default_rng(4)
    for length in (1, BLOCK, 2 * BLOCK + 1):
        prompt = rng.integers(0, model.contract.vocab, length)
        request = Request(prompt, CANVAS - 1)
        assert generate(model.backend, request).token_ids == generate(reference, request).token_ids
        answer, finish, _ = slow_decode(slow, model.contract, prompt.tolist(), CANVAS - 1, 0.4)  # type: ignore[arg-type]
        result = generate(model.backend, request, gate=GateSpec(threshold=0.4))
        assert (list(result.token_ids), result.finish) == (answer, finish)
    chat = model.request("hi", max_new_tokens=4).prompt.tolist()
    tokenizer = read.read_tokenizer()
    special = [tokenizer.token_to_id(token) for token in ("<|startoftext|>", foreign.FOREIGN[name].ends[0])]
    assert chat == [special[0], *tokenizer.encode("hi", add_special_tokens=False).ids, special[1]]

    words = [str(made), "--ckpt", str(folder), "--data", str(lines(tmp_path)), "--prompts", "4"]
    assert verify.main([*words, "--json"]) == 0 and told(capsys)["answers"] >= 4
    foreign.change_config(folder, note="another")
    assert verify.main(words) == 2
    assert "was not exported from" in capsys.readouterr().err


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.write(tmp_path, "sdar")
    foreign.change_config(tmp_path, model_type="sdar_moe")
    assert export.main(["--ckpt", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("name", ["dream", "llada"])
def test_a_published_teacher_is_distilled_and_its_student_answers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write(tmp_path / "teacher", name)
    own, found, student = str(lines(tmp_path)), str(tmp_path / "trajectories"), tmp_path / "student.pt"
    teacher, small = str(tmp_path / "teacher"), ["--no-bf16", *SIZES]
    few = ["--count", "4", "--shard", "4", "--batch", "4", "--temperatures", "0"]
    collected = ["--ckpt", teacher, "--data", own, "--out", found, *few]
    assert call(collect.main, [*collected, *small], monkeypatch) == 0
    assert call(collect.main, [*collected, "--no-bf16", "--block", "6", "--canvas", "12"], monkeypatch) == 2
    assert "trajectories of other settings" in capsys.readouterr().err
    start = (
        checkpoint.load(tmp_path / "teacher", Overrides(block=BLOCK)).read_tokenizer().token_to_id("<|startoftext|>")
    )
    assert all(start not in trajectory.prompt for trajectory in read_shards(Path(found)))
    short = ["--steps", "2", "--batch", "2", "--no-only-right"]
    words = ["--teacher", teacher, "--data", own, "--trajectories", found, "--out", str(student), *short, *small]
    assert call(distill.main, words, monkeypatch) == 0
    capsys.readouterr()
    assert export.main(["--ckpt", str(student), "--json"]) == 0
    made = load(told(capsys)["bundle"])
    assert made.contract.attention == "block_causal" and made.contract.shift == (name == "dream")
    assert len(made.generate("say yes 9\n", max_new_tokens=6).token_ids) <= 6


def test_a_directory_is_evaluated_under_both_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write(tmp_path / "model", "dream")
    words = ["--ckpt", str(tmp_path / "model"), "--data", str(lines(tmp_path)), "--split", "test", "--count", "2"]
    for attention in ("full", "block_causal"):
        assert call(evaluate.main, [*words, *SIZES, "--attention", attention, "--json"], monkeypatch) == 0
        assert told(capsys)["attention"] == attention
