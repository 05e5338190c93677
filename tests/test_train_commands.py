"""What the train.* commands have in common: one line for a mistake, one JSON object for --json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from speaking import make_speaking_bundle

from train import calibrate, collect, distill, evaluate, open_checkpoint, teacher
from train.cli_options import choose_bf16
from train.storage import student_pt
from train.tasks.problem import find_split

Main = Callable[[list[str]], int]
COMMANDS = [teacher.main, collect.main, distill.main, evaluate.main, calibrate.main]
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
        (collect.main, "--ckpt {} --threshold 1.5", "--threshold is 1.5"),
        (collect.main, "--ckpt {} --task cooking", "unknown task 'cooking'"),
        (evaluate.main, "--ckpt {} --task math --split dev", "unknown split 'dev'"),
        (evaluate.main, "--ckpt {} --task math,code", "--task is math,code; evaluation takes one task at a time"),
        (evaluate.main, "--ckpt {} --task math --split all", "--split all is for --data"),
        (evaluate.main, "--ckpt {} --count 0", "--count is 0; expected at least 1"),
        (evaluate.main, "--ckpt {} --engine ort", "--engine was given with --ckpt"),
        (evaluate.main, "--ckpt {} --commit separate", "unrecognized arguments"),
        (evaluate.main, "--ckpt {} --gate sub_block=0", "gate.sub_block is 0"),
        (teacher.main, "--no-shift --causal-every 2", "--causal-every 2 trains row i to predict token i + 1"),
        (teacher.main, "--causal-every -1", "--causal-every is -1"),
        (teacher.main, "--objective causal --causal-every 2", "--causal-every 2 is for --objective masked"),
        (teacher.main, "--attention causal_context --causal-every 2", "--causal-every is for --attention full"),
        (
            teacher.main,
            "--attention block_causal --no-shift",
            "--attention block_causal trains row i to predict token i + 1",
        ),
        (
            teacher.main,
            "--objective causal --attention full",
            "--attention full was given, but an autoregressive model",
        ),
        (teacher.main, "--seed 4294967296", "--seed: '4294967296' is not a whole number from -4294967295 to"),
        (distill.main, "--teacher {} --seed -4294967296", "is not a whole number from -4294967295 to 4294967295"),
        (teacher.main, "--seed 1.5", "--seed: '1.5' is not a whole number"),
        (teacher.main, "--learning-rate 1e400", "--learning-rate: '1e400' is not a number above 0"),
        (collect.main, "--ckpt {} --threshold inf", "--threshold: got 'inf'; expected a finite number"),
        (teacher.main, "--dropout 1", "--dropout: '1' is not a share from 0 to below 1"),
        (teacher.main, "--dropout nan", "--dropout: 'nan' is not a share"),
        (teacher.main, "--optimizer sgd", "--optimizer: invalid choice: 'sgd'"),
        (teacher.main, "--canvas 10 --block 4", "--canvas 10 is not a multiple of --block 4"),
        (distill.main, "--teacher {} --weights 1,2", "expected three numbers"),
        (distill.main, "--teacher {} --weights 1,2,-3", "--weights is '1,2,-3'"),
        (distill.main, "--teacher {} --lora-rank 0", "--lora-rank is 0"),
        (distill.main, "--teacher {} --next-token nan", "--next-token: got 'nan'; expected a finite number"),
        (distill.main, "--teacher {} --next-token 1", "has no shift"),
        (distill.main, "--teacher {} --lora-alpha 4", "--lora-alpha is 4, but there is no --lora-rank"),
        (
            distill.main,
            "--teacher {} --lora-rank 2 --lora-alpha nan",
            "--lora-alpha: got 'nan'; expected a finite number",
        ),
    ],
)
def test_wrong_values_are_told_in_one_line(
    main: Main, words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student_pt.save(tiny.checkpoint(attention="full"), tmp_path / "teacher.pt")
    rest = ["--out", str(tmp_path / "out.pt")] + (["--trajectories", "none"] if main is distill.main else [])
    assert main([*words.format(tmp_path / "teacher.pt").split(), *rest]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("error: ") and err.count("\n") == 1


def test_data_that_is_no_utf_8_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "a"}\n')
    assert teacher.main(["--data", str(tmp_path / "own.jsonl"), "--out", str(tmp_path / "teacher.pt")]) == 2
    assert "not UTF-8 at byte 15" in capsys.readouterr().err


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
    assert values["tokens_per_second"] > 0 and logged["tokens_per_second"] > 0 and logged["seconds_left"] == 0
    assert out.is_file() and not (tmp_path / "new" / "rival.pt.resume").exists()


def test_a_gradient_that_is_no_number_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"prompt": f"say {n}\n", "answer": "yes"} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = f"--objective causal --data {tmp_path / 'own.jsonl'} --steps 4 --batch 2 --no-bf16 {SHAPE}"
    out = ["--out", str(tmp_path / "rival.pt"), "--learning-rate", "1e38"]
    assert teacher.main([*words.split(), *out]) == 1
    assert (
        "norm is nan at update 2; lower --learning-rate" in capsys.readouterr().err
        and not (tmp_path / "rival.pt").exists()
    )


def own_lines(folder: Path, *lines: tuple[str, str]) -> Path:
    """A file of one's own (prompt, answer) lines."""
    texts = [json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in lines]
    (folder / "own.jsonl").write_text("".join(texts))
    return folder / "own.jsonl"


def test_the_canvas_is_the_99th_percentile_of_the_training_answers_in_whole_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [n for n in range(700) if find_split(f"say {n}") == "train"][:500]
    answers = ["x" * 9] * 493 + ["x" * 29] * 7  # with the end token 10 and 30 tokens: one in a hundred is fewer than 7
    data = own_lines(tmp_path, *((f"say {n}", answer) for n, answer in zip(numbers, answers, strict=True)))
    shape = SHAPE.replace("--canvas 8", "").replace("--vocab 270", "--vocab 259")  # bytes alone
    words = f"--objective causal --data {data} --steps 1 --batch 2 --no-bf16 --out {tmp_path / 'a.pt'} {shape}"
    for extra, canvas, said in (
        ("", 32, ""),
        ("--canvas 12", 12, "7 of 500 training examples (1.4 %) are left out: an answer has more than 12 tokens"),
    ):
        assert teacher.main([*words.split(), *extra.split()]) == 0
        assert open_checkpoint.load(tmp_path / "a.pt").decoding.canvas == canvas
        err = capsys.readouterr().err
        assert said in err and ("left out" in err) == bool(said)


def test_a_teacher_without_shift_never_learns_the_next_token(tmp_path: Path) -> None:
    data, out = own_lines(tmp_path, *((f"say {n}", "yes") for n in range(30))), tmp_path / "a.pt"
    words = f"--no-shift --data {data} --out {out} --steps 2 --batch 4 --no-bf16 --dtype bf16 {SHAPE}"
    assert teacher.main(words.split()) == 0
    (logged,) = [json.loads(line) for line in (tmp_path / "a.pt.log.jsonl").read_text().splitlines()]
    assert "masked" in logged and not {"next", "blocks"} & logged.keys()  # every second update would, with shift
    saved = open_checkpoint.load(out)
    assert not saved.decoding.shift and {weight.dtype for weight in saved.weights.values()} == {torch.bfloat16}


def test_bf16_is_the_default_where_the_processor_says_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--out", "a.pt"]
    for found in ({"avx512_bf16": True}, {"amx_bf16": True, "avx2": True}, {"avx2": True, "amx_bf16": False}, {}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        faster = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
        for more, expected in (([], faster), (["--bf16"], True), (["--no-bf16"], False)):
            args = teacher.make_parser().parse_args([*words, *more])
            choose_bf16(args)
            assert args.bf16 == expected
        assert f"here: {'on' if faster else 'off'}" in " ".join(teacher.make_parser().format_help().split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--attention full", "--attention was given with --bundle"),
        ("--batch 8", "--batch was given with --bundle"),
        ("--bf16", "--bf16 was given with --bundle"),
        ("--block 4", "--block was given with --bundle"),
        ("--mask-id 4", "--mask-id was given with --bundle"),
        ("--threads 0", "--threads: got '0'; expected 1 to 1024 threads"),
    ],
)
def test_options_that_an_engine_does_not_have_are_refused(
    options: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, data = make_speaking_bundle(tmp_path, "say 1", "yes"), own_lines(tmp_path, ("say 1", "yes"))
    words = f"--bundle {made} --data {data} --split all {options}"
    assert evaluate.main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_a_bundle_is_evaluated_by_its_engines_own_gate_on_every_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_speaking_bundle(tmp_path, "say 1", "yes, no and maybe")
    data = own_lines(tmp_path, ("say 1", "yes, no and maybe"), ("say 2", "no"), ("say 1", "yes, no and maybe"))
    words = ["--bundle", str(made), "--data", str(data), "--split", "all", "--threads", "1", "--json"]
    forwards = {}
    for rule in ("threshold", "count"):
        manifest = json.loads((made / "manifest.json").read_text())
        manifest["engines"][0]["gate"] = {"rule": rule}
        (made / "manifest.json").write_text(json.dumps(manifest))
        assert evaluate.main(words) == 0
        told = json.loads(capsys.readouterr().out)
        assert (
            told["gate"]["rule"] == rule
            and told["problems"] == 3
            and told["accuracy"] == pytest.approx(2 / 3, abs=1e-4)
        )
        forwards[rule] = told["forwards"]
    assert forwards["count"] == 18 > forwards["threshold"]  # 17 bytes and the end token, one a step
    assert evaluate.main([*words, "--gate", "sub_block=2,eos_guard=0.5,min=2"]) == 0
    gate = json.loads(capsys.readouterr().out)["gate"]
    assert (gate["rule"], gate["sub_block"], gate["eos_guard"], gate["min"]) == ("count", 2, 0.5, 2)


def test_evaluation_asks_in_the_chat_template_unless_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = next(f"say {n}" for n in range(10) if find_split(f"say {n}") == "train")
    # It answers at the places behind a prompt of exactly that length.
    made = make_speaking_bundle(tmp_path, f"[{prompt}]", "yes", template="[{{ messages[0]['content'] }}]")
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
        (calibrate.main, "--ckpt {0}/teacher.pt --teacher-report {0}/file", "file/report.json"),
        (calibrate.main, "--ckpt {0}/teacher.pt --teacher-report {0}/file --plot {0}/file/r.png", "report.json"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    main: Main, words: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student_pt.save(tiny.checkpoint(attention="full"), tmp_path / "teacher.pt")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([*words.format(tmp_path, SHAPE).split(), "--out", str(tmp_path / out)]) == 2
    told, err = capsys.readouterr()
    assert told == "" and err.startswith("error: ") and err.count("\n") == 1 and "cannot be written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before and not list((tmp_path / "folder").iterdir())
