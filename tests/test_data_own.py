"""Own data in all its forms: read, or refused with the line and what to do; what does not fit is left out, by line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_export_onnx import student

from export.proof import held_out
from runtime.errors import UserError
from train import collect, distill, evaluate, teacher
from train.data import prompts
from train.evaluation import baseline
from train.storage import student_pt
from train.tasks import jsonl
from train.tasks.problem import find_split
from train.torch_backend import derive_contract

GOOD = '{"prompt": "a", "answer": "b"}'
LONG = "word " * 200
SOUND = [f"say {n}" for n in range(40) if find_split(f"say {n}") == "train"][:12]


def write(path: Path, *asked: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "answer": "yes"}) + "\n" for prompt in asked))
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = student(attention="full")
    path = tmp_path_factory.mktemp("saved") / "teacher.pt"
    student_pt.save(replace(source, decoding=replace(source.decoding, context=64)), path)
    return path


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (f"\ufeff{GOOD}\n{GOOD}\n", [1, 2]), (f"{GOOD}\n\ufeff{GOOD}", [1, 2]),
        (f"{GOOD}\r\n\r\n{GOOD}\r\n\r\n", [1, 3]),
        (f"\n \n{GOOD}\n\n\n", [3]), ('{"prompt": "a", "answer": "b", "tests": null, "score": NaN}', [1]),
        ('{"prompt": "", "answer": "b"}\n' + GOOD, [1, 2]), (f'{GOOD[:-1]}, "id": {"9" * 400}}}', [1]),
    ],
)  # fmt: skip
def test_what_editors_and_programs_write_is_read(content: str, lines: list[int], tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(content.encode())
    read = jsonl.read(tmp_path / "own.jsonl")
    assert [problem.line for problem in read] == lines and {problem.answer for problem in read} == {"b"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{GOOD}\nnull", "line 2: got null; expected an object"), (f"{GOOD}\n5", "line 2: got 5; expected an object"),
        (f"{GOOD}\n" + '{"prompt": "a", "answer": 5}', "line 2: got the keys answer, prompt, but answer is 5; "),
        ('{"question": ["a"], "answer": "b"}', 'question is ["a"]; expected a string'),
        ('{"text": "a", "code": null, "test_list": []}', "code is null; expected a string"),
        ('{"prompt": "a", "prompt": "b", "answer": "c"}', "line 1: 'prompt' occurs twice"),
        ('{"messages": []}', "got the keys messages; expected prompt and answer"),
        ("[" * 100_000, "begins as a JSON array"), (f"[{GOOD}]", "jq -c"), ('{"a":' * 100_000, "nested too deeply"),
        ('{\n "prompt": "a"}', "line 1: Expecting property name"),
        (f"{GOOD}\n{GOOD[:9]}\0", "line 2: "),
        (f"{GOOD} {GOOD}", "line 1: Extra data"), ("", "holds no problems"), ("\n\n", "holds no problems"),
        ('{"prompt": "", "answer": "b"}', "holds no prompts"),
        ('{"prompt": "a", "answer": ' + "9" * 5000 + "}", "line 1"),
        (GOOD.encode("utf-16"), "is UTF-16; expected"), (GOOD.encode("latin-1") + b"\xe9", "not UTF-8 at byte 30"),
        (GOOD.encode("utf-16-le"), "is UTF-16; expected"), (GOOD.encode("utf-16-be"), "iconv -f UTF-16BE"),
        (GOOD.encode("utf-32"), "is UTF-32; expected"), (bz2.compress(GOOD.encode()), "compressed by bzip2"),
        (lzma.compress(GOOD.encode()), "compressed by xz"),
        ('{"text": "a", "code": "b", "test_list": [], "test_setup_code": ["import os"]}', 'is ["import os"]; expected'),
        (gzip.compress(GOOD.encode(), mtime=0), "compressed by gzip"), (b"PAR1\x15\x04", "a Parquet file"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_its_line_and_what_is_expected(
    content: str | bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        jsonl.read(tmp_path / "own.jsonl")
    assert said in str(caught.value) and str(tmp_path / "own.jsonl") in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        jsonl.read(tmp_path)


def collected(saved: Path, data: Path, out: Path, shard: int) -> dict[str, bytes]:
    words = (
        f"--ckpt {saved} --data {data} --out {out} --count 12 --shard {shard} --batch 4 --temperatures 0,0.5 --no-bf16"
    )
    assert collect.main(words.split()) == 0
    tensors = {path.name: load_file(path) for path in sorted(out.glob("shard-*"))}
    return {
        name: b"".join(np.ascontiguousarray(row).tobytes() for row in each.values()) for name, each in tensors.items()
    }


@pytest.mark.parametrize("bad", [LONG, ""])
def test_a_collection_goes_on_without_a_prompt_that_does_not_fit(
    bad: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = next(f"{bad}{n}" for n in range(99) if find_split(f"{bad}{n}") == "train") if bad else bad
    if find_split(long) != "train":
        pytest.skip("the empty prompt is in another split, where no collection meets it")
    sound = collected(saved, write(tmp_path / "own.jsonl", *SOUND), tmp_path / "sound", 4)
    capsys.readouterr()
    spoilt = write(tmp_path / "own.jsonl", *SOUND[:5], long, *SOUND[6:])
    found = collected(saved, spoilt, tmp_path / "out", 4)
    told = capsys.readouterr()
    assert "1 of 12 prompts are left out, line 6: " in told.err and told.out.startswith("22 collected, 22 of them now")
    assert found.keys() == sound.keys() and sum(found[name] == sound[name] for name in sound) == 4  # of 6 shards
    (tmp_path / "out" / "shard-00000.safetensors").unlink()
    assert collected(saved, spoilt, tmp_path / "out", 4) == found
    alone = collected(saved, spoilt, tmp_path / "alone", 1)
    assert len(alone) == 22 and "shard-00023.safetensors" in alone  # numbers, and with them seeds, are as planned


def test_an_evaluation_leaves_out_lines_and_its_report_says_which(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "own.jsonl", "say 1", LONG, "say 2", ""), tmp_path / "report.json"
    words = f"--ckpt {saved} --data {data} --split all --gate metric=entropy,threshold=0.4"
    assert evaluate.main([*words.split(), "--out", str(out)]) == 0
    assert "2 of 4 prompts are left out, lines 2, 4: a prompt of " in capsys.readouterr().err
    report = json.loads(out.read_text())
    assert report["problems"] == 2 and report["per_problem"]["left_out"] == [1, 3]
    assert [report["gate"][key] for key in ("metric", "comparator", "threshold")] == ["entropy", "<=", 0.4]
    assert evaluate.main([*words.split(), "--against", str(out)]) == 0
    report["per_problem"]["left_out"] = [0, 3]
    out.write_text(json.dumps(report))
    capsys.readouterr()
    assert evaluate.main([*words.split(), "--against", str(out)]) == 2
    assert "other lines were left out" in capsys.readouterr().err
    write(data, LONG, "")
    assert evaluate.main(words.split()) == 2
    assert "2 of 2 prompts leave no room in a KV-cache capacity of 64: a prompt of " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"right": [1]}, "its per_problem is damaged"), ({"right": ["a", 1]}, "its per_problem is damaged"),
        ({"right": [], "forwards": []}, "its per_problem is damaged"), ({"forwards": None}, "not NoneType"),
        ({"left_out": ["x"]}, "its per_problem is damaged"), ({}, "of other problems"), (None, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_report_is_checked_before_the_work_that_is_compared_with_it(
    change: dict[str, Any] | None, said: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = {"right": [1, 0], "forwards": [4, 5], **(change or {})}
    values = {"task": "own", "split": "valid", "seed": 0, "per_problem": outcome}
    (tmp_path / "report.json").write_text("[" * 100_000 if change is None else json.dumps(values))
    words = f"--ckpt {saved} --data {write(tmp_path / 'own.jsonl', *SOUND)} --split all"
    assert evaluate.main([*words.split(), "--against", str(tmp_path / "report.json")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (collect, "--count 0"), (collect, "--count -1"), (collect, "--shard 0"), (collect, "--batch 1e3"),
        (teacher, "--steps 0"), (teacher, "--batch 0"), (teacher, "--save-every 0"), (teacher, "--layers 0"),
        (teacher, "--learning-rate nan"), (teacher, "--heads 3 --kv-heads 2"), (teacher, "--head-dim 7"),
        (distill, "--steps -1"), (distill, "--batch 0"), (distill, "--save-every 0"), (distill, "--learning-rate -1"),
    ],
)  # fmt: skip
def test_counts_and_rates_that_train_nothing_are_refused(
    command: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    needed = {
        collect: "--ckpt x.pt --out x",
        teacher: "--out x.pt",
        distill: "--teacher x.pt --out y.pt --method cd4lm",
    }
    assert command.main([*needed[command].split(), *words.split()]) == 2
    err = capsys.readouterr().err
    assert words.split(maxsplit=1)[0] in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_report_is_read_without_what_was_left_out(tmp_path: Path) -> None:
    data = write(tmp_path / "own.jsonl", *SOUND)
    task = jsonl.sample_problems(jsonl.read(data), "train", 5, 3)
    outcome = {"right": [1, 0, 1], "forwards": [4, 5, 6], "left_out": [1, 3]}
    values = {"task": "own", "split": "train", "seed": 3, "per_problem": outcome}
    (tmp_path / "report.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(values).encode())
    drawn = [problem.prompt for problem in task]
    found = baseline.read_report(tmp_path / "report.json", data)
    assert [problem.prompt for problem in found.problems] == [drawn[0], drawn[2], drawn[4]]


def test_a_comparison_leaves_out_prompts_without_room(capsys: pytest.CaptureFixture[str]) -> None:
    contract = replace(derive_contract(student()), capacity=16)
    encode = prompts.make_encoder(student(), raw=True)
    requests = held_out.make_held_out_requests(encode, contract, ["ab", LONG, "", "abc"], [3, 5, 6, 9])
    assert [len(request.prompt) for request in requests] == [2, 3]
    assert "2 of 4 prompts are left out, lines 5, 6: " in capsys.readouterr().err
    held_out.make_held_out_requests(encode, contract, ["ab", LONG])
    assert "1 of 2 prompts are left out, problem 2: " in capsys.readouterr().err


def test_a_small_file_gives_a_proof_all_its_prompts_and_a_large_one_its_held_out_ones(tmp_path: Path) -> None:
    asked = [f"say {n}" for n in range(400)]
    valid, others = ([p for p in asked if (find_split(p) == "valid") == held] for held in (True, False))
    for lines in (others[:6], [*others[:3], valid[0], *others[3:6]]):  # none of the split valid, and one
        found = [each.prompt for each in held_out.take_held_out_texts("", write(tmp_path / "own.jsonl", *lines), 200)]
        assert found == sorted(lines, key=lambda prompt: (prompt not in valid, lines.index(prompt)))
        assert held_out.take_recorded_problems("", tmp_path / "own.jsonl") == held_out.take_held_out_texts(
            "", tmp_path / "own.jsonl", 200
        )
    large = write(tmp_path / "large.jsonl", *asked)
    found = [each.prompt for each in held_out.take_held_out_texts("", large, len(valid) + 2)]
    assert sorted(found[:-2]) == sorted(valid) and found[-2:] == others[:2]
    assert {each.prompt for each in held_out.take_held_out_texts("", large, 3)} < {*valid}


def test_training_names_the_lines_that_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = next(f"{LONG}{n}" for n in range(99) if find_split(f"{LONG}{n}") == "train")
    data = write(tmp_path / "own.jsonl", *SOUND[:3], long, *SOUND[3:])
    shape = "--width 16 --layers 1 --heads 2 --kv-heads 1 --head-dim 8 --ffn 16 --vocab 270 --block 4 --canvas 8"
    words = f"--data {data} --out {tmp_path / 'a.pt'} --context 64 --steps 1 --batch 2 --no-bf16 {shape}"
    assert teacher.main(words.split()) == 0
    err = capsys.readouterr().err
    assert "1 of 13 training examples" in err and "with its prompt, or the prompt has none: line 4\n" in err


def test_many_lines_are_not_all_named() -> None:
    assert prompts.name_lines([7]) == "line 7" and prompts.name_lines([9, 3]) == "lines 3, 9"
    assert prompts.name_lines(range(1, 14)) == "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more"
