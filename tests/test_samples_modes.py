"""The study of modes on a tiny student: what it counts, that it goes on where it was stopped, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_commands_modes import write_bundle

from runtime import load
from samples.study import modes
from train.tasks import Problem, Task
from train.tasks import table as tables

PROMPTS = ["%#'%#'", "#'%#'%#", "'%#'%", "%%%"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("modes"))


@pytest.fixture(autouse=True)
def short_task(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [Problem(prompt, "#", "periodic") for prompt in PROMPTS]
    task = Task("short", lambda split, count, seed: iter(problems[:count]), lambda _, texts: ["#" in t for t in texts])
    monkeypatch.setitem(tables.TASKS, "short", task)


def run(bundle: Path, out: Path, count: int) -> list[dict[str, Any]]:
    words = [str(bundle), "--task", "short", "--count", str(count), "--widths", "2", "--out", str(out)]
    assert modes.main(words) == 0
    return modes.read_records(out)


def test_each_mode_answers_each_problem_once(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model = tmp_path / "modes.jsonl", load(bundle, threads=1)
    assert len(run(bundle, out, 2)) == 8
    records = run(bundle, out, 4)
    ways = ["student:block", "student:speculative", "student:causal", "student:speculative@2"]
    assert sorted((r["way"], r["problem"]) for r in records) == sorted((way, i) for way in ways for i in range(4))
    for record in records:
        mode = record["way"].split(":")[1]
        if mode in model.contract.modes:
            right = model.generate(PROMPTS[record["problem"]], max_new_tokens=model.contract.canvas, mode=mode).result
            assert (record["tokens"], record["forwards"]) == ([*right.token_ids], right.forwards)
    told = capsys.readouterr().out
    assert "0 of 8 speculative answers differ from the causal ones" in told
    assert all(sum(line.startswith(f"| {way} | 4 |") for line in told.splitlines()) == 1 for way in ways)


def test_an_answer_that_is_not_the_causal_one_is_found(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "modes.jsonl"
    lines = [json.dumps(record) for record in run(bundle, out, 2)]
    changed = json.loads(lines[1]) | {"tokens": [3]}
    assert changed["way"] == "student:speculative"
    out.write_text("\n".join([lines[0], json.dumps(changed), *lines[2:]]) + "\n", encoding="utf-8")
    words = [str(bundle), "--task", "short", "--count", "2", "--widths", "2", "--out", str(out)]
    assert modes.main(words) == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"split": "test"}, "has answers of student to the split test by"),
        ({"file": "ort-fp32-0.onnx"}, "by ort-fp32-0.onnx; give another --out"),
        ({"threads": 2}, "has answers of --threads 2; give another --out"),
    ],
    ids=["split", "bundle", "threads"],
)
def test_answers_of_another_split_or_bundle_or_number_of_threads_are_not_taken(
    change: dict[str, Any], line: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "modes.jsonl"
    lines = [json.dumps(record | change) for record in run(bundle, out, 1)]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert modes.main([str(bundle), "--task", "short", "--count", "1", "--out", str(out)]) == 2
    assert line in capsys.readouterr().err


def test_with_more_threads_times_are_by_the_clock(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    words = [str(bundle), "--task", "short", "--count", "1", "--threads", "2", "--out", str(tmp_path / "modes.jsonl")]
    assert modes.main(words) == 0 and "time by the clock to student:causal" in capsys.readouterr().out


def test_a_line_that_was_cut_off_and_a_strange_mode_are_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "modes.jsonl"
    out.write_text('{"task": "sh', encoding="utf-8")
    words = [str(bundle), "--task", "short", "--count", "1", "--out", str(out)]
    assert modes.main(words) == 2 and modes.main([*words, "--modes", "blocks"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "is not what this tool wrote" in lines[0] and "--modes has blocks; expected some of block" in lines[1]


def test_a_width_beyond_the_block_is_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert modes.main([str(bundle), "--widths", "5", "--out", str(tmp_path / "out")]) == 2
    assert "--widths has 5, but student has blocks of 4 tokens; give 2 to 4" in capsys.readouterr().err
