"""What the train.* commands have in common: one line for a mistake, one JSON object for --json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from speaking import speaking_bundle

from train import checkpoint, collect, distill, evaluate, teacher
from train.tasks.jsonl import split_of

Main = Callable[[list[str]], int]
COMMANDS = [teacher.main, collect.main, distill.main, evaluate.main]
SHAPE = "--width 16 --layers 1 --heads 2 --kv-heads 1 --head-dim 8 --ffn 16 --vocab 270 --block 4 --canvas 8"


@pytest.mark.parametrize("main", COMMANDS, ids=lambda main: main.__module__)
@pytest.mark.parametrize("words", ["--nonsense 1", "--count many --steps many", ""])
def test_wrong_options_are_told_in_one_line(main: Main, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "--help" in err


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (collect.main, "--ckpt {} --task code --temperatures 0,warm", "--temperatures is '0,warm'"),
        (collect.main, "--ckpt {} --task cooking", "unknown task 'cooking'"),
        (evaluate.main, "--ckpt {} --task math --split dev", "unknown split 'dev'"),
        (distill.main, "--teacher {} --weights 1,2", "expected three numbers"),
        (distill.main, "--teacher {} --weights 1,2,-3", "--weights is '1,2,-3'"),
        (distill.main, "--teacher {} --lora-rank 0", "--lora-rank is 0"),
        (distill.main, "--teacher {} --next-token nan", "--next-token is nan"),
        (distill.main, "--teacher {} --next-token 1", "has no shift"),
        (distill.main, "--teacher {} --lora-alpha 4", "--lora-alpha is 4, but there is no --lora-rank"),
        (distill.main, "--teacher {} --lora-rank 2 --lora-alpha nan", "--lora-alpha is nan"),
    ],
)
def test_wrong_values_are_told_in_one_line(
    main: Main, words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tiny.checkpoint(attention="full"), tmp_path / "teacher.pt")
    rest = ["--out", str(tmp_path / "out.pt")] + (["--trajectories", "none"] if main is distill.main else [])
    assert main([*words.format(tmp_path / "teacher.pt").split(), *rest]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("error: ") and err.count("\n") == 1


def test_data_that_is_no_utf_8_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "a"}\n')
    assert teacher.main(["--data", str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "teacher.pt")]) == 2
    assert "no UTF-8 at byte 15" in capsys.readouterr().err


def test_a_training_run_tells_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"prompt": f"say {n}\n", "answer": "yes"} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "new" / "rival.pt"
    words = f"--objective causal --data {tmp_path / 'own.jsonl'} --out {out} --steps 2 --batch 2 --no-bf16 {SHAPE}"
    assert teacher.main([*words.split(), "--json"]) == 0
    told = capsys.readouterr().out.splitlines()
    values = json.loads(told[0])
    assert len(told) == 1 and values["out"] == str(out) and values["steps"] == 2
    logged = json.loads((tmp_path / "new" / "rival.pt.log.jsonl").read_text().splitlines()[-1])
    assert all(values[name] == logged[name] for name in ("loss", "next")) and values["seconds"] >= 0
    assert out.is_file() and not (tmp_path / "new" / "rival.pt.resume").exists()


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"prompt": f"say {n}\n", "answer": "yes"} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = f"--objective causal --data {tmp_path / 'own.jsonl'} --steps 4 --batch 2 --no-bf16 {SHAPE}"
    out = ["--out", str(tmp_path / "rival.pt"), "--learning-rate", "inf"]
    assert teacher.main([*words.split(), *out]) == 1
    assert "the loss is nan" in capsys.readouterr().err and not (tmp_path / "rival.pt").exists()


def test_evaluation_asks_in_the_chat_template_unless_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = next(f"say {n}" for n in range(10) if split_of(f"say {n}") == "train")
    # It answers at the places behind a prompt of exactly that length.
    made = speaking_bundle(tmp_path, f"[{prompt}]", "yes", template="[{{ messages[0]['content'] }}]")
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": prompt, "answer": "yes"}) + "\n")
    words = ["--bundle", str(made), "--data", str(tmp_path / "own.jsonl"), "--split", "train", "--count", "2", "--json"]
    for extra, accuracy in (([], 1.0), (["--raw"], 0.0)):
        assert evaluate.main([*words, *extra]) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("main", "words", "out"),
    [
        (evaluate.main, "--ckpt {0}/teacher.pt --task math --count 1", "file/report.json"),
        (evaluate.main, "--ckpt {0}/teacher.pt --task math --count 1", "folder"),
        (teacher.main, "--task code --steps 1 --batch 1 {1}", "folder"),
        (teacher.main, "--task code --steps 1 --batch 1 {1}", "file/teacher.pt"),
        (collect.main, "--ckpt {0}/teacher.pt --task math --count 1", "file"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    main: Main, words: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tiny.checkpoint(attention="full"), tmp_path / "teacher.pt")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([*words.format(tmp_path, SHAPE).split(), "--out", str(tmp_path / out)]) == 2
    told, err = capsys.readouterr()
    assert told == "" and err.startswith("error: ") and err.count("\n") == 1 and "cannot be written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before and not list((tmp_path / "folder").iterdir())
