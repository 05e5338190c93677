"""The study's page of made-up reports: rows, differences, thresholds, times, controls; and what is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from samples.study import methods_table, recipe_table

SPLITS = ("test", "test_families")
GATE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.95}


def write_report(runs: Path, name: str, task: str, split: str, right: list[int], forwards: int) -> None:
    outcome = {"right": right, "forwards": [forwards] * len(right)}
    share = sum(right) / len(right)
    gate = {**GATE, "rule": "count"} if name in ("baseline", "teacher") else GATE
    values = {"task": task, "split": split, "seed": 0, "accuracy": share, "accuracy_95": [share, share], "gate": gate}
    report = {**values, "forwards": float(forwards), "tokens_per_forward": 1.0, "per_problem": outcome}
    (runs / f"{name}-{task}-{split}.json").write_text(json.dumps(report), encoding="utf-8")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Reports of 100 problems: the baseline has 80 right, CDLM 83, its control 81; the teacher answered 50 of them."""
    runs = tmp_path / "runs"
    runs.mkdir()
    for task in ("math", "code"):
        for split in SPLITS:
            write_report(runs, "baseline", task, split, [1] * 80 + [0] * 20, 40)
            write_report(runs, "teacher", task, split, [1] * 40 + [0] * 10, 60)
            write_report(runs, "cdlm", task, split, [1] * 83 + [0] * 17, 5)
            write_report(runs, "cdlm-control", task, split, [1] * 81 + [0] * 19, 8)
    points = [
        {"threshold": at, "by_task": {task: {"forwards": 9 * at, "accuracy": at - 0.1} for task in ("math", "code")}}
        for at in (0.5, 0.9)
    ]
    (runs / "cdlm-threshold.json").write_text(json.dumps({"points": points}), encoding="utf-8")
    lines = [
        {"task": "math", "way": f"{name}:block", "problem": place, "seconds": seconds}
        for name, seconds in (("baseline", 0.05), ("cdlm", 0.01))
        for place in range(3)
    ]
    lines.append({"task": "math", "way": "cdlm:causal", "problem": 0, "seconds": 9.0})  # not its default mode
    (runs / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (runs / "stages.tsv").write_text("baseline\t120\tblockstep\n", encoding="utf-8")
    return runs


def written(runs: Path, out: Path) -> tuple[str, dict[str, Any]]:
    assert methods_table.main([str(runs), "--out", str(out)]) == 0
    values: dict[str, Any] = json.loads((out / "study.json").read_text(encoding="utf-8"))
    return (out / "study.md").read_text(encoding="utf-8"), values


def test_a_row_has_both_splits_its_threshold_and_its_time(runs: Path, tmp_path: Path) -> None:
    text, values = written(runs, tmp_path / "out")
    math = text.split("## math")[1].split("## code")[0].splitlines()
    row = next(line for line in math if line.startswith("| CDLM, by a threshold"))
    assert row.startswith("| CDLM, by a threshold | 0.95 | 83.0 | +3.0, ") and row.endswith("| 5.00 | 10.0 | 5.0 |")
    assert next(line for line in math if line.startswith("| teacher")).startswith(
        "| teacher, one token per forward pass ✗ |  | 80.0 |"
    )
    assert math[4].startswith("| autoregressive baseline |  | 80.0 |  |") and math[4].endswith("| 40.00 | 50.0 | 1.0 |")
    first = text.split("## math")[0].splitlines()
    row = next(line for line in first if line.startswith("| CDLM, by a threshold"))
    assert (
        row.startswith("| CDLM, by a threshold | 83.0 (+3.0, ")
        and row.count("| 5.00 |") == 2
        and row.endswith("| 5.00 |  |")
    )
    assert next(line for line in first if line.startswith("| auto")) == (
        "| autoregressive baseline | 80.0 | 40.00 | 50.0 | 80.0 | 40.00 |  |"
    )
    found = {row["name"]: row for row in values["tables"]["math"]}
    # the teacher answered the first 50, of which it has 40 right and the baseline all
    assert found["teacher"]["cells"]["test"]["to_baseline"][0] == pytest.approx(-0.2)
    assert list(found) == ["baseline", "teacher", "cdlm", "cdlm-control"] and values["record"]["total_minutes"] == 2.0
    assert [row["milliseconds"] for row in values["tables"]["code"]] == [None] * 4


def test_a_student_that_drafts_for_itself_has_a_row_and_a_time_per_mode(runs: Path, tmp_path: Path) -> None:
    write_report(runs, "cdlm-speculative", "math", "test", [1] * 85 + [0] * 15, 4)
    times, line = runs / "times.jsonl", {"task": "math", "way": "cdlm:speculative", "problem": 0, "seconds": 0.02}
    times.write_text(json.dumps(line) + "\n" + times.read_text(encoding="utf-8"), encoding="utf-8")
    found = {row["name"]: row for row in written(runs, tmp_path / "out")[1]["tables"]["math"]}
    assert (found["cdlm-speculative"]["milliseconds"], found["cdlm"]["milliseconds"]) == (20, 10)


def test_the_teacher_that_drafts_for_itself_is_timed_as_the_undistilled_row(runs: Path, tmp_path: Path) -> None:
    write_report(runs, "undistilled-speculative", "math", "test", [1] * 79 + [0] * 21, 9)
    line = {"task": "math", "way": "teacher:speculative", "problem": 0, "seconds": 0.03}
    with (runs / "times.jsonl").open("a", encoding="utf-8") as times:
        times.write(json.dumps(line) + "\n")
    found = {row["name"]: row for row in written(runs, tmp_path / "out")[1]["tables"]["math"]}
    assert found["undistilled-speculative"]["milliseconds"] == 30 and found["teacher"]["milliseconds"] is None


def test_changed_prompts_which_not_every_row_has_count_in_no_mean_and_no_mark(runs: Path, tmp_path: Path) -> None:
    write_report(runs, "cdlm", "math", "test_surface", [0] * 100, 50)
    math = written(runs, tmp_path / "out")[0].split("## math")[1].split("## code")[0].splitlines()
    row = next(line for line in math if line.startswith("| CDLM, by a threshold"))
    assert "✗" not in row and row.endswith("| 5.00 | 10.0 | 5.0 |")


def test_a_method_is_compared_with_its_control_over_all_problems(runs: Path, tmp_path: Path) -> None:
    text, values = written(runs, tmp_path / "out")
    found = values["controls"]["cdlm"]
    assert found["problems"] == 400 and found["difference"][0] == pytest.approx(0.02) and found["forwards"] == [5, 8]
    assert found["difference"][1] < 0.02 < found["difference"][2]
    assert "| CDLM, by a threshold | +2.0 (" in text and list(values["controls"]) == ["cdlm"]
    write_report(runs, "cdlm-speculative", "math", "test", [1] * 85 + [0] * 15, 4)
    write_report(runs, "cdlm-control-speculative", "math", "test", [1] * 84 + [0] * 16, 5)
    text, values = written(runs, tmp_path / "out")
    found = values["controls"]["cdlm-speculative"]
    assert found["problems"] == 100 and found["difference"][0] == pytest.approx(0.01) and found["forwards"] == [4, 5]
    for path in runs.glob("*-control-*.json"):
        path.unlink()
    text, values = written(runs, tmp_path / "out")
    assert values["controls"] == {} and "## What each method" not in text


def test_there_is_a_figure_per_task(runs: Path, tmp_path: Path) -> None:
    written(runs, tmp_path / "out")
    for task in ("math", "code"):
        assert (tmp_path / "out" / f"study-{task}.png").read_bytes().startswith(b"\x89PNG")


def test_the_study_of_pronounce_has_a_page_of_its_own(runs: Path, tmp_path: Path) -> None:
    for path in runs.glob("*-code-*.json"):
        path.unlink()
    for path in runs.glob("*-math-*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["split"] == "test":
            named = runs / path.name.replace("-math", "")
            named.write_text(json.dumps({**values, "task": "pronounce"}), encoding="utf-8")
        path.unlink()
    times = (runs / "times.jsonl").read_text(encoding="utf-8").replace('"math"', '"pronounce"')
    (runs / "times.jsonl").write_text(times, encoding="utf-8")
    points = [{"threshold": 0.5, "by_task": {"pronounce": {"forwards": 9, "accuracy": 0.6}}}]
    (runs / "cdlm-threshold.json").write_text(json.dumps({"points": points}), encoding="utf-8")
    out = tmp_path / "out"
    assert methods_table.main([str(runs), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "study-pronounce.json", "study-pronounce.md", "study-pronounce.png",
    ]  # fmt: skip
    page = (out / "study-pronounce.md").read_text(encoding="utf-8")
    assert "1 points below the baseline on 2,000 of `valid`" in page and "test_families" not in page
    assert (
        "| CDLM, by a threshold | 0.95 | 83.0 | +3.0, " in page
        and "| 5.00 | 10.0 | 5.0 |" in page
        and "| CDLM, by a threshold | +2.0 (" in page
    )


def test_a_folder_of_one_task_is_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in runs.glob("*-code-*.json"):
        path.unlink()
    assert methods_table.main([str(runs), "--out", str(tmp_path / "out")]) == 2
    assert (
        "has reports of math; expected those of TASK=math,code or pronounce" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )


def test_a_row_of_fewer_problems_names_their_number_and_is_compared_on_them_alone(runs: Path) -> None:
    for name, forwards in (("baseline", [10] * 50 + [90] * 50), ("teacher", [20] * 50)):
        path = runs / f"{name}-math-test.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values |= {"forwards": sum(forwards) / len(forwards)}
        values["per_problem"]["forwards"] = forwards
        path.write_text(json.dumps(values), encoding="utf-8")
    assert recipe_table.main([str(runs)]) == 0
    text = (runs / "table.md").read_text(encoding="utf-8")
    table = text.split("## math test, 100 problems\n")[1].split("## ")[0]
    assert "| teacher (50 problems) | 80.0 (80.0 to 80.0) | 20.00 | " in table
    assert "| baseline | 80.0 " in table and "| cdlm | 83.0 " in table and table.count("problems") == 1
    rows = {row["model"]: row for row in json.loads((runs / "recipe.json").read_text())["tables"]["math test"]}
    assert rows["teacher"]["problems"] == 50 and rows["teacher"]["fewer_forwards"] == 0.5  # of the first 50 problems
    assert rows["cdlm"]["fewer_forwards"] == 10  # of all


def test_reports_that_left_out_problems_are_compared_on_those_that_both_have(runs: Path) -> None:
    ours, theirs = (
        {"per_problem": {"right": right, "forwards": [9] * len(right)}, "left_out": left_out}
        for right, left_out in (([1, 0, 1], [1]), ([0, 1, 1, 0], [2]))
    )
    # ours are problems 0, 2 and 3, theirs are 0, 1, 3 and 4
    assert recipe_table.select_common(ours, theirs, "right") == ([1, 1], [0, 1])
    assert recipe_table.estimate_difference(ours, theirs).mean == 0.5


def test_the_recorded_commit_is_of_this_repository_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").write_text("#!/bin/sh\npwd\n", encoding="utf-8")
    (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert recipe_table.run_git("rev-parse", "HEAD") == str(Path(__file__).resolve().parents[1])


def test_a_recipe_s_table_is_compared_with_the_one_it_replaces(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = runs / "recipe.json"
    assert recipe_table.main([str(runs)]) == 0
    write_report(runs, "cdlm", "math", "test", [1] * 10 + [0] * 90, 5)
    (runs / "cdlm-control-code-test.json").unlink()
    capsys.readouterr()
    assert recipe_table.main([str(runs), "--against", str(earlier)]) == 1
    err = capsys.readouterr().err
    assert "differs: cdlm on math test: 0.1 to 0.1 here" in err
    assert "differs: cdlm-control on code test is missing here" in err and err.count("differs") == 2
    kept = earlier.read_bytes()
    for text in ("{", "[]", "{}", '{"tables": 5}'):
        other = runs / "other.txt"
        other.write_text(text, encoding="utf-8")
        assert recipe_table.main([str(runs), "--against", str(other)]) == 2
        err = capsys.readouterr().err
        assert "other.txt is not a recipe.json" in err and err.count("\n") == 1 and earlier.read_bytes() == kept
