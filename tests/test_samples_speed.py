"""samples/bench/speed.py in small: one canvas rule for all, conditions on record, the factors multiply to the whole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from samples.bench import speed
from train import open_checkpoint
from train.checkpoint import Checkpoint, Decoding
from train.storage import student_pt
from train.transformer.network import ModelConfig, Transformer, initialize

SAMPLES = Path(__file__).parent.parent / "samples"
COUNT = {"rule": "count", "min": 1}


def write(path: Path, seed: int, **changes: object) -> None:
    """An untrained model with the samples' tokenizer."""
    text = open_checkpoint.load(SAMPLES / "teacher.pt").tokenizer
    shape = ModelConfig(1536, 8, 1, 1, 1, 8, 8)
    how = {"alignment": "prompt", "attention": "full", "shift": True, "block": 16, "canvas": 96, "context": 256}
    how |= {"mask_id": 2, "eos_ids": (1,), "pad_id": 0, "gate": COUNT} | changes
    weights = dict(initialize(Transformer(shape), seed).state_dict())
    student_pt.save(Checkpoint(shape, Decoding(**how), weights, text), path)  # type: ignore[arg-type]


def accuracy_report(path: Path, model: str, gate: dict[str, object], accuracy: float, problems: int = 400) -> None:
    attention = "full" if "teacher" in model else "block_causal"
    values = {"model": model, "task": "math", "split": "test", "attention": attention, "gate": gate, "bf16": False}
    path.write_text(json.dumps({**values, "problems": problems, "accuracy": accuracy, "accuracy_95": [0, 1]}))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Untrained models of all three kinds, and reports of theirs."""
    write(tmp_path / "teacher.pt", 0)
    write(tmp_path / "student.pt", 1, attention="block_causal", gate={"rule": "threshold", "threshold": 0.9})
    write(tmp_path / "baseline.pt", 2, attention="block_causal", alignment="absolute", block=1)
    reports = tmp_path / "reports"
    reports.mkdir()
    accuracy_report(reports / "a.json", "any/teacher.pt", {**COUNT, "threshold": 1.0}, 0.5)
    accuracy_report(reports / "b.json", "any/teacher.pt", COUNT, 0.75, problems=2000)
    accuracy_report(reports / "c.json", "any/teacher.pt", {"rule": "threshold", "threshold": 0.9}, 0.99, problems=9000)
    accuracy_report(reports / "d.json", "student.bundle", {"rule": "threshold", "threshold": 0.01}, 0.25)
    (reports / "speed.json").write_text('{"tasks": {}}')
    return tmp_path


@pytest.mark.long
def test_the_report_holds_what_it_was_measured_with(models: Path) -> None:
    words = f"--models {models} --reports {models}/reports --count 1 --repeat 1 --threads 1 --threshold 0.01"
    out = models / "new" / "speed.json"
    assert speed.main([*words.split(), "--ways", "eager fp32", "--out", str(out)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["cpu"] and report["threads"] == 1 and report["prompts"] == 1 and report["versions"]["onnxruntime"]
    assert {name: task["canvas"] for name, task in report["tasks"].items()} == {"math": 96, "code": 64}
    for task in report["tasks"].values():
        rows, factors = task["contenders"], task["factors"]
        assert len(rows) == 7 and all(row["tokens"] <= task["canvas"] for row in rows.values())
        assert (
            rows["student in PyTorch, eager fp32"]["gate"]["threshold"] == 0.01 == rows[speed.FAST]["gate"]["threshold"]
        )
        assert rows["teacher, eager fp32"]["gate"]["rule"] == rows[speed.BASELINE]["gate"]["rule"] == "count"
        for each in (factors, task["factors_int8"]):
            assert each["whole"] == pytest.approx(math.prod(each[name] for name in ("forwards", "cache", "engine")))
        assert factors["teacher"] == "teacher, eager fp32"
        assert factors["against_student_in_torch"] == pytest.approx(
            rows["student in PyTorch, eager fp32"]["ms_an_answer"] / rows[speed.FAST]["ms_an_answer"]
        )
        assert all(row["ms_an_answer"] == pytest.approx(sum(row["ms"]), rel=1e-3) for row in rows.values())
        slow = rows[speed.SLOW]
        assert (slow["forwards"], slow["tokens"]) == tuple(
            rows["teacher, eager fp32"][name] for name in ("forwards", "tokens")
        )
    found = {name: row["accuracy"] for name, row in report["tasks"]["math"]["contenders"].items()}
    teacher, student = found["teacher, eager fp32"], found[speed.FAST]
    assert (teacher["report"], teacher["accuracy"], teacher["problems"]) == ("b.json", 0.75, 2000)
    assert student["accuracy"] == 0.25 and found[speed.BASELINE] is None
    assert report["tasks"]["code"]["contenders"]["teacher, eager fp32"]["accuracy"] is None
    assert sorted(path.name for path in models.iterdir() if path.suffix == ".bundle") == []


def test_wrong_options_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--count", "0"], ["--ways", "eager fp16"]):
        assert speed.main(words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: got --count") and err.count("\n") == 1
