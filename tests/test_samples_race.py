"""samples/bench: the race, its ratios and goals, the page, the command; small shapes, no timing asserted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from steppers import Counting

from runtime.perf.data_sheets import Device
from runtime.perf.op_counts import ModelShape, PassSize
from samples.bench import __main__ as command
from samples.bench import answers, host, page, plot, step
from samples.bench.contender import Cell, Contender, take_turn
from samples.bench.goals import format_bound, format_verdict, judge
from samples.bench.race import race
from samples.bench.ratios import compare_loop, compute_ratios

BUNDLE = Path(__file__).parent.parent / "samples" / "student.bundle"
SHAPE = ModelShape(64, 2, 4, 2, 32, 96, 512, qk_norm=True)
DEVICE = Device("toy", 10, {"fp32": 1, "fp16": 1, "int8": 4, "int4": 4}, "fp32", "made up")


def test_a_turn_times_what_is_asked_after_one_step_that_is_not() -> None:
    stepper = Counting()
    stepper.place(Cell(1, 0))
    told = take_turn(stepper, 3)
    assert len(told["ms"]) == 3 and stepper.steps == 4 and told["peak_mb"] > 10


def test_contenders_take_turns_and_one_that_fails_costs_no_other() -> None:
    entered = [
        Contender("ours", Counting, {}, ours=True, precision="fp32"),
        Contender("breaks", Counting, {"fails": "wide"}),
        Contender("absent", Counting, {"fails": "making"}),
        Contender("theirs", Counting, {}, past=0),
    ]
    groups = [[Cell(1, 0)], [Cell(2, 0)], [Cell(2, 0, 32), Cell(2, 0, 64)], [Cell(1, 9)]]
    result = race(entered, groups, rounds=2, steps=3)
    assert {name: reason.split(":")[0] for name, reason in result.failed.items()} == {
        "breaks": "RuntimeError", "absent": "ValueError",
    }  # fmt: skip
    assert "\n" not in result.failed["absent"]
    cells = [(row["contender"], row["width"], row["capacity"], row["count"]) for row in result.rows]
    ours = [("ours", width, capacity, 6) for width, capacity in ((1, None), (2, None), (2, 32), (2, 64), (1, None))]
    assert cells == [*ours, ("theirs", 1, None, 6), ("theirs", 2, None, 6)]
    # Three steps to warm up at a place, then one and three in each of two turns there; those of a group alternate.
    found = [row["best"] for row in result.rows if row["contender"] == "ours"]
    assert found == [[1, 11], [2, 22], [5, 43], [6, 50], [7, 61]]
    assert all(len(row["rounds"]) == 2 and min(row["rounds"]) > 0 for row in result.rows)


def test_a_process_that_is_killed_is_left_out() -> None:
    result = race([Contender("dies", os._exit, {"status": 9})], [[Cell(1, 0)]], 1, 1)
    assert "ended with code 9" in result.failed["dies"] and result.rows == []


def row(
    name: str, width: int, past: int, *ms: float, ours: bool = False, capacity: int | None = None
) -> dict[str, Any]:
    """A row of a race whose rounds had these medians."""
    middle = sorted(ms)[len(ms) // 2]
    made = {"contender": name, "width": width, "past": past, "capacity": capacity, "ours": ours, "rounds": list(ms)}
    made |= {"precision": "int8" if ours else "", "ms": {"p10": middle - 1, "median": middle, "p90": middle + 1}}
    limit = {"limit_ms": middle / 2, "memory_ms": middle / 2, "compute_ms": 1.0} if ours else {}
    return {**made, "count": 4, **limit}


def measured_rows() -> list[dict[str, Any]]:
    """The machine is half as fast in the third round."""
    ours = [row("blockstep int8", 32, past, ms, ms, 2 * ms, ours=True) for past, ms in ((0, 40), (256, 50), (1024, 80))]
    ours += [row("blockstep int8", width, 256, 30, 30, 60, ours=True) for width in (1, 8)]
    ours += [row("blockstep int8", 32, 0, ms, ms, 2 * ms, ours=True, capacity=c) for c, ms in ((256, 40), (4096, 44))]
    bf16 = row("PyTorch eager bf16", 32, 256, 200, 200, 400)
    return [*ours, bf16, *(row("llama.cpp Q4_0", b, 256, ms, ms, 2 * ms) for b, ms in ((32, 100), (8, 60)))]


def test_ratios_are_taken_round_by_round_beside_goal_and_limit() -> None:
    entries = {entry["what"]: entry for entry in compute_ratios(measured_rows(), SHAPE, DEVICE)}
    assert {entry["contender"] for entry in entries.values()} == {"blockstep int8"}
    found = {what: (e["value"], e["most"], e["reached"], e["limit"]) for what, e in entries.items()}
    assert found.pop("B 32, past 256, over PyTorch eager bf16") == (0.25, 0.35, True, 0.125)
    assert found.pop("B 32, past 256, over llama.cpp Q4_0") == (0.5, 0.45, False, 0.25)
    assert found.pop("B 8, past 256, over llama.cpp Q4_0") == (0.5, 0.7, True, 0.25)
    assert found.pop("B 32, past 256, over this machine's limit") == (2.0, 2.0, True, 1.0)
    assert found.pop("B 32, past 0, capacity 4096 over 256") == (1.1, 1.05, False, 1.0)
    assert found.pop("B 32, past 256, over its own autoregressive forward pass (B 1)") == (50 / 30, None, None, 50 / 30)
    ((what, (value, most, reached, _)),) = found.items()
    moved = 1024 * SHAPE.cached * 4 / 10e9  # seconds; its operations, below, take longer
    done = 4 * 32 * 1024 * SHAPE.heads * SHAPE.head_dim * SHAPE.layers / 1e12
    assert most == 2.0 and not reached and what.startswith("B 32, what past 1024 adds")
    assert value == pytest.approx((80 - 40) / (1000 * max(moved, done)))
    pair = entries["B 32, past 256, over PyTorch eager bf16"]
    assert pair["p10"] == pair["p90"] == 0.25  # though each alone spread by a factor of two


def test_a_step_that_is_given_no_candidates_is_held_against_a_graph_without_them() -> None:
    rows = [row("blockstep fp32", width, 256, 40, 40, 80, ours=True) for width in (1, 32)]
    rows += [row("blockstep fp32 with candidates", width, 256, 41, 42, 82, ours=True) for width in (1, 32)]
    [entry] = [entry for entry in compute_ratios(rows, SHAPE, DEVICE) if "given no candidates" in entry["what"]]
    assert entry["contender"] == "blockstep fp32 with candidates" and "B 32, past 256" in entry["what"]
    assert entry["value"] == pytest.approx(41 / 40) and (entry["most"], entry["reached"]) == (None, None)


def test_the_hosts_loop_is_judge_by_the_widest_step() -> None:
    ms = {"p10": 0.5, "median": 1.0, "p90": 2.0}
    alone, share, absent = compare_loop(measured_rows(), {"blockstep int8": ms, "not raced": ms})
    assert (alone["value"], alone["most"], alone["reached"]) == (1000.0, 100.0, False) == (
        absent["value"], absent["most"], absent["reached"],
    )  # fmt: skip
    assert (share["p10"], share["value"], share["reached"]) == (pytest.approx(0.012), 0.02, True)
    assert "B 32, past 256" in share["what"]


def test_a_figure_keeps_its_bound_or_misses_it() -> None:
    cases = {
        ("≤ 2", "reached"): judge("", [1, 2, 3], most=2), ("≤ 1.9", "missed"): judge("", [1, 2, 3], most=1.9),
        ("≥ 60", "missed"): judge("", [70, 80], least=60, value=59), ("≥ 1", "reached"): judge("", [1], least=1),
        ("", ""): judge("", [1]),
    }  # fmt: skip
    assert [(format_bound(entry), format_verdict(entry)) for entry in cases.values()] == list(cases)


def test_whole_answers_are_judge_by_their_sums_and_accuracies() -> None:
    right = [{"accuracy": value, "accuracy_95": [value - 0.01, value + 0.01]} for value in (0.97, 0.98)]
    rows = {
        "teacher, eager fp32": {"ms": [500.0, 700.0], "accuracy": None},
        "student in PyTorch, eager fp32": {"ms": [20.0, 40.0], "accuracy": right[0]},
        "student, ONNX Runtime": {"ms": [5.0, 15.0], "accuracy": right[0]},
        "baseline, ONNX Runtime": {"ms": [30.0, 30.0], "accuracy": right[1]},
        "student, ONNX Runtime int8": {"ms": [4.0, 6.0], "accuracy": None},
        "baseline, ONNX Runtime int8": {"ms": [20.0, 20.0], "accuracy": None},
    }
    names = {"teacher": "teacher, eager fp32", "student_in_torch": "student in PyTorch, eager fp32"}
    task = {"contenders": rows, "factors": names, "factors_int8": names}
    found = list(answers.make_goals(task))
    assert [(e["value"], e["least"], e["reached"]) for e in found] == [
        (60.0, 60.0, True), (3.0, 3.0, True), (3.0, 1.0, True), (120.0, 60.0, True), (6.0, 3.0, True), (4.0, 1.0, True),
        (97.0, 98.0, False),
    ]  # fmt: skip
    assert found[0]["p90"] > 90 and "96.0 to 98.0" in found[6]["what"]
    rows["baseline, ONNX Runtime"]["accuracy"] = None
    assert len(list(answers.make_goals(task))) == 6


def test_ratios_without_their_rows_are_left_out() -> None:
    assert list(compute_ratios([], SHAPE, DEVICE)) == []
    assert [entry["what"] for entry in compute_ratios(measured_rows()[:1], SHAPE, DEVICE)] == []


def test_the_limit_of_a_row_is_the_larger_of_moving_and_computing() -> None:
    load = DEVICE.count_work(SHAPE, "int8", PassSize(1, 32, 256, 32))
    found = step.compute_limit(SHAPE, row("blockstep int8", 32, 256, 1, ours=True), DEVICE)
    assert found["limit_ms"] == max(DEVICE.estimate_memory_ms(load), DEVICE.estimate_compute_ms(load, "int8"))
    assert step.compute_limit(SHAPE, row("PyTorch eager fp32", 32, 256, 1), DEVICE) == {}


@pytest.mark.long
def test_the_command_measures_a_small_shape_and_keeps_other_sections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench.json").write_text(json.dumps({"host": HOST, "other": 1}))
    small = "hidden=64,layers=1,heads=4,kv_heads=2,head_dim=32,ffn=96,vocab=512,qk_norm=true"
    words = ["--only", "step", "--shape", small, "--rounds", "1", "--steps", "1", "--threads", "1", "--widths", "1,4"]
    words += ["--pasts", "0,256", "--contenders", "int8,eager fp32", "--out", str(tmp_path), "--json"]
    assert command.main(words) == 0
    section = json.loads(capsys.readouterr().out)["step"]
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report == {"step": section, "host": HOST}
    assert list(section["contenders"]) == ["blockstep int8", "PyTorch eager fp32"]
    assert len(section["rows"]) == 2 * 4 + 2 and section["conditions"]["threads"] == 1
    assert section["same_tokens"] == []  # of 32 tokens, which were not asked for
    assert list(section["host_ms_per_forward"]) == ["blockstep int8"] and section["left_out"] == {}
    assert "## One step" in (tmp_path / "bench.md").read_text() and (tmp_path / "bench.png").stat().st_size > 9999


SPREAD = {"p10": 1.0, "median": 2.0, "p90": 3.0}
CONDITIONS = {"cpu": "a cpu", "cores": 2, "threads": 2, "load": 0.1, "seconds": 60.0}
CONDITIONS |= {"versions": {"python": "3", "gguf": None}}
HOST: dict[str, Any] = {
    "conditions": CONDITIONS, "starts": 3, "bundle_mb": 10.0, "engine": {"name": "ort-fp32", "mb": 9.0},
    "install": {"mb": 100.0, "largest_mb": {"onnxruntime": 60.0, "numpy": 30.0}},
    "goals": [judge("threads", [0.95, 0.97], least=0.9)],
    **dict.fromkeys(("whole_ms", "import_ms", "load_ms", "first_answer_ms", "peak_mb"), SPREAD),
    **dict.fromkeys(("host_ms_per_forward", "open_ms", "tokens_per_second"), SPREAD),
}  # fmt: skip


def step_section() -> dict[str, Any]:
    rows = measured_rows()
    return {
        "conditions": CONDITIONS, "shape": {"layers": 2, "hidden": 64, "vocab": 512}, "rounds": 5, "steps_a_round": 2,
        "device": {"bandwidth": 10.0, "rates": {"int8": 4.0}}, "rows": rows,
        "ratios": list(compute_ratios(rows, SHAPE, DEVICE)), "left_out": {"llama.cpp Q8_0": "not installed"},
        "contenders": {"blockstep int8": {"peak_mb": 900.0, "seconds": 1.5}},
        "host_ms_per_forward": {"blockstep int8": SPREAD},
        "same_tokens": [{"contender": "blockstep int8", "same": 30, "of": 32}],
    }  # fmt: skip


def answers_section() -> dict[str, Any]:
    answer = dict.fromkeys(("ms_an_answer", "ms_an_answer_median"), 1.0)
    answer |= {"forwards": 2.0, "ms_a_forward": 0.5, "tokens_a_second": 9.0}
    rows = {"student": {**answer, "accuracy": {"accuracy": 0.5}}, "teacher": {**answer, "accuracy": None}}
    factors = {"teacher": "teacher, eager", "forwards": 8.0, "cache": 2.0, "engine": 3.0, "whole": 48.0}
    task = {
        "contenders": rows,
        "factors": factors | {"against_baseline": 3.0},
        "factors_int8": factors | {"against_baseline": 4.0, "whole": 60.0},
        "goals": [judge("faster", [48], least=60)],
    }
    return {"conditions": CONDITIONS, "prompts": 5, "split": "valid", "repeat": 2, "tasks": {"math": task}}


def test_the_page_has_each_section_that_was_measured(tmp_path: Path) -> None:
    text = page.format_text({"step": step_section(), "answers": answers_section(), "host": HOST})
    assert "| blockstep int8, B 32, past 256, over llama.cpp Q4_0 | 0.5 |  | ≤ 0.45 | missed | 0.25 |" in text
    assert "| 30.0 (29.0–31.0) | 30.0 (29.0–31.0) | 50.0 (49.0–51.0) |" in text
    assert "| *limit of blockstep int8* | *15.0* | *15.0* | *25.0* |" in text
    assert "llama.cpp Q8_0 was left out: not installed" in text and "| 900 | 1.5 | 2.000 | 30 of 32 |" in text
    assert "In fp32 48.0 × faster than teacher, eager: 8.00" in text and "In int8 60.0 × faster" in text
    assert "| faster | 48.00 |  | ≥ 60 | missed |" in text
    assert "| student | 1.00 | 1.00 | 2.00 | 0.50 | 9 | 50.0 % |" in text
    assert "runtime-only installation | 100 MB | onnxruntime 60, numpy 30" in text and "gguf" not in text
    assert "| threads | 0.96 | 0.952 to 0.968 | ≥ 0.9 | reached |" in text
    assert page.format_text({}).count("##") == 0
    plot.draw(tmp_path / "bench.png", measured_rows())
    assert (tmp_path / "bench.png").stat().st_size > 9999


def test_as_many_answers_of_one_thread_and_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "ANSWERS", 1)
    monkeypatch.setattr(host, "ROUNDS", 2)
    found = host.measure_shared_session(BUNDLE, 1)
    assert found["threads"] == 4 and len(found["answers_a_second"]["one"]) == len(found["answers_a_second"]["all"]) == 2
    (loop, threads) = host.make_goals({"host_ms_per_forward": SPREAD, "threads": found})
    assert (loop["value"], loop["most"], loop["reached"]) == (2000.0, 100.0, False)
    assert threads["value"] > 0 and threads["least"] == 0.9


def test_a_fresh_process_tells_its_stages_and_its_own_memory() -> None:
    told = host.run_fresh(BUNDLE, 1)
    assert told["whole_ms"] > told["import_ms"] + told["load_ms"] + told["first_answer_ms"] > 0
    assert 20 < told["peak_mb"] < 400  # not that of this process, which holds torch


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12")
    (tmp_path / "c").write_bytes(b"345")
    assert host.count_bytes(tmp_path) == 5 and host.count_bytes(tmp_path / "c") == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--only", "steps"], "some of step, answers, host"), (["--rounds", "0"], "--rounds is 0"),
        (["--pasts", "-1"], "tokens such as 0,256"), (["--shape", "hidden=4", "--only", "step"], "of --shape"),
    ],
)  # fmt: skip
def test_wrong_options_are_told_in_one_line(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*words, "--out", str(tmp_path)]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(err) == 1 and reason in err[0] and not (tmp_path / "bench.json").exists()


def test_a_file_that_is_no_report_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text("{")
    assert command.main(["--only", "host", "--out", str(tmp_path)]) == 2
    assert "is not a report of the bench" in capsys.readouterr().err and (tmp_path / "bench.json").read_text() == "{"
