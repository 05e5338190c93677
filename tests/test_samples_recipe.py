"""The recipe's stages, with programs that only note how they are called; `make train-smoke` runs the real ones."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

RECIPE = Path(__file__).parent.parent / "samples" / "recipe.sh"
STUB = """#!/bin/sh
echo "blockstep $*" >> "$CALLS"
case "$*" in *"$FAILING"*) [ -n "$FAILING" ] && echo "$SAYING" >&2 && exit 1 ;; esac
exit 0
"""
STUDENTS = ["cdlm", "cd4lm", "dparallel"]


def run(
    folder: Path, task: str, failing: str = "", saying: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """Runs the recipe with stubs of blockstep and python; a command that has the words `failing` in it prints `saying`
    to stderr and ends in 1."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("blockstep", "python"):
        (programs / name).write_text(STUB, encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    environment |= {"TASK": task, "RUNS": str(folder / "runs"), "FAILING": failing, "SAYING": saying}
    environment |= settings
    return subprocess.run(["bash", str(RECIPE)], capture_output=True, text=True, env=environment)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text(encoding="utf-8").splitlines()


def stages(folder: Path) -> list[str]:
    lines = (folder / "runs" / "stages.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0] for line in lines]


@pytest.mark.parametrize(
    ("task", "held_to", "splits"),
    [
        ("pronounce", "baseline-valid", ["test"]),
        ("intents", "baseline-valid", ["test", "test_surface"]),
        ("math", "baseline-valid_families", ["test", "test_surface", "test_seen", "test_families"]),
    ],
)
def test_the_stages_of_a_task_in_their_order(tmp_path: Path, task: str, held_to: str, splits: list[str]) -> None:
    done = run(tmp_path, task, SMOKE="1")
    assert done.returncode == 0, done.stderr
    exports = ["export-fp32", "export-int8"]
    if task == "intents":
        exports = ["export-fp32", "fp32-decisions", "export-int8", "int8-decisions"]
    modes = ("",) if task == "intents" else ("", "-speculative")
    both = (name + mode for name in STUDENTS for mode in modes)
    models = ["baseline", *both, "ort-fp32", "ort-int8", "teacher"]
    teachers = ["teacher-first", "teacher"] if task == "math" else ["teacher"]
    assert stages(tmp_path) == [
        "baseline", *teachers, "trajectories", "answers", *STUDENTS, held_to,
        *(f"{name}-threshold" for name in STUDENTS), *exports,
        *(f"{model}-{split}" for model in models for split in splits), "table",
    ]  # fmt: skip
    held = [line for line in calls(tmp_path) if "--teacher-report" in line]
    assert len(held) == 3 and all(f"--teacher-report {tmp_path}/runs/{held_to}.json" in line for line in held)
    # a second run has nothing to do
    before = calls(tmp_path)
    assert run(tmp_path, task, SMOKE="1").returncode == 0 and calls(tmp_path) == before


def test_two_tasks_have_one_model_and_reports_of_their_own(tmp_path: Path) -> None:
    assert run(tmp_path, "math,code", SMOKE="1").returncode == 0
    made, called = stages(tmp_path), calls(tmp_path)
    calibrated = [name.removesuffix("-threshold") for name in made if name.endswith("-threshold")]
    assert calibrated == [*STUDENTS, "tad"]
    assert all("--task math,code " in line for line in called if "train teacher" in line or "train distill" in line)
    assert {
        "baseline-math-valid_families",
        "baseline-code-valid_families",
        "tad-math-test_families",
        "ort-int8-code-test",
    } <= {*made}
    reports = (f"{tmp_path}/runs/baseline-{task}-valid_families.json" for task in ("math", "code"))
    held = f"--teacher-report {' '.join(reports)}"
    assert all(held in line for line in called if "train calibrate" in line)
    # more rows later; a model that is there is not trained again
    for name, threshold in (("undistilled", 0.95), ("cd4lm", 0.97)):
        found = {"target": 0.5, "chosen": None, "mode": "speculative", "block_threshold": threshold, "written": True}
        (tmp_path / "runs" / f"{name}-threshold.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    assert run(tmp_path, "math,code", SMOKE="1", STUDY="1").returncode == 0
    more = calls(tmp_path)[len(called) :]
    trained = [line.rpartition("/")[2] for line in more if "train distill" in line]
    controls = [f"{name}-control.pt" for name in (*STUDENTS, "tad")]
    assert trained == [*controls, "cd4lm-full.pt", "dparallel-full.pt"]
    assert not [line for line in more if "train teacher" in line]
    assert stages(tmp_path)[-1] == "study-table"
    plain = [line for line in more if "train evaluate" in line and "--gate rule=threshold,threshold=0.95 " in line]
    assert len(plain) == 6 and all(f"--ckpt {tmp_path}/runs/teacher.pt " in line for line in plain)
    # a control is decoded by its method's threshold
    assert not [name for name in stages(tmp_path) if name.endswith("-control-threshold")]
    controlled = [line for line in more if "/cd4lm-control.pt --mode block" in line]
    assert len(controlled) == 6 and all("--mode block --threshold 0.97 " in line for line in controlled)
    surface = [name for name in stages(tmp_path) if name.endswith("-code-test_surface")]
    assert "tad-speculative-code-test_surface" in surface and "tad-control-code-test_surface" not in surface
    # whoever can check drafts is judged with them, so that a method and its control are compared in both modes
    drafting = [name for name in stages(tmp_path) if name.endswith("-speculative-math-test")]
    assert [name.removesuffix("-speculative-math-test") for name in drafting] == [
        *STUDENTS, "tad", *(f"{name}-control" for name in (*STUDENTS, "tad")), "undistilled",
    ]  # fmt: skip


def test_a_plan_leaves_no_folder(tmp_path: Path) -> None:
    done = run(tmp_path, "math,code", PLAN="1")
    assert done.returncode == 0 and "min to go" in done.stdout and not (tmp_path / "runs").exists()


def test_a_study_of_pronounce_has_controls_that_share_their_method_s_threshold(tmp_path: Path) -> None:
    assert run(tmp_path, "pronounce", SMOKE="1", STUDY="1").returncode == 0
    trained = [line.rpartition("/")[2] for line in calls(tmp_path) if "train distill" in line]
    assert trained == [f"{name}{kind}.pt" for kind in ("", "-control") for name in STUDENTS]
    made = stages(tmp_path)
    for name in STUDENTS:
        assert {f"{name}-control-test", f"{name}-control-speculative-test"} <= {*made}
        assert f"{name}-control-threshold" not in made and f"{name}-bundle" in made
    assert {"undistilled-threshold", "undistilled-test", "times"} <= {*made} and made[-1] == "study-table"
    assert "undistilled-speculative-test" not in made  # its teacher is bidirectional
    timed = [line for line in calls(tmp_path) if "samples.study.modes" in line]
    assert all("--split test " in line for line in timed)


def test_a_study_of_another_task_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "intents", SMOKE="1", STUDY="1")
    said = "error: STUDY=1 is for TASK=pronounce or math,code, not intents; leave it out\n"
    assert (done.returncode, done.stderr) == (2, said) and not (tmp_path / "runs").exists()


def test_pronounce_trains_on_canvases_of_a_word_and_math_as_before(tmp_path: Path) -> None:
    for task, given in (("pronounce", "--context 64 --canvas 32"), ("math", "--context 512 --vocab 1536")):
        folder = tmp_path / task
        folder.mkdir()
        run(folder, task, SMOKE="1")
        trained = [line for line in calls(folder) if "train teacher" in line]
        assert len(trained) == (3 if task == "math" else 2) and all(f" {given} --out " in line for line in trained)
        assert all(("--dropout 0.1" in line) == (task == "pronounce") for line in trained)


def test_students_of_pronounce_start_from_the_baseline_and_draft_for_themselves(tmp_path: Path) -> None:
    for task, start in (("pronounce", "baseline"), ("math", "teacher")):
        folder = tmp_path / task
        folder.mkdir()
        run(folder, task, SMOKE="1")
        distilled = [line for line in calls(folder) if "train distill" in line]
        given = f"--student {folder}/runs/baseline.pt --attention causal_context"
        assert len(distilled) == 3 and all((given in line) == (start == "baseline") for line in distilled)
        assert all("--attention causal_context" in line for line in distilled)
        modes = [line.split("--mode ")[1].split()[0] for line in calls(folder) if "--mode " in line]
        splits = 1 if task == "pronounce" else 4
        assert modes == (["block"] * splits + ["speculative"] * splits) * 3


def test_intents_are_exported_with_candidates_and_their_decisions_calibrated(tmp_path: Path) -> None:
    run(tmp_path, "intents", SMOKE="1")
    exported = [line for line in calls(tmp_path) if "export onnx" in line]
    assert len(exported) == 2 and all(" --candidates 128 " in line for line in exported)
    fitted = [line for line in calls(tmp_path) if "calibrate --decisions" in line]
    assert len(fitted) == 2 and all("--task intents" in line for line in fitted)
    trained = [line for line in calls(tmp_path) if "train teacher" in line]
    assert all(" --context 128 --canvas 24 --block 24 --vocab 2048 --out " in line for line in trained)


def test_a_student_that_no_threshold_keeps_up_goes_on_with_its_own(tmp_path: Path) -> None:
    report = tmp_path / "runs" / "cd4lm-threshold.json"
    report.parent.mkdir()
    report.write_text("{}", encoding="utf-8")
    done = run(tmp_path, "pronounce", "train calibrate --ckpt " + str(tmp_path / "runs" / "cd4lm.pt"), SMOKE="1")
    assert done.returncode == 0 and stages(tmp_path)[-1] == "table"


NOTHING_RIGHT = "error: teacher.json has 0 of 4 problems of own right; expected some, or every threshold would meet"


def test_a_smoke_run_goes_on_without_thresholds_if_nothing_is_right(tmp_path: Path) -> None:
    done = run(tmp_path, "pronounce", "train calibrate", NOTHING_RIGHT, SMOKE="1")
    assert done.returncode == 0 and stages(tmp_path)[-1] == "table"


def test_a_whole_run_stops_if_nothing_is_right_and_a_smoke_run_at_any_other_failure(tmp_path: Path) -> None:
    for name, said, smoke in (("whole", NOTHING_RIGHT, ""), ("smoke", "error: --target is no number", "1")):
        folder = tmp_path / name
        folder.mkdir()
        done = run(folder, "pronounce", "train calibrate", said, SMOKE=smoke)
        assert done.returncode == 1 and said in done.stderr and stages(folder)[-1] == "baseline-valid"


def test_a_stage_that_fails_stops_the_recipe_and_is_run_again(tmp_path: Path) -> None:
    done = run(tmp_path, "pronounce", "train calibrate", SMOKE="1")
    assert done.returncode == 1 and "stopped in the stage cdlm-threshold" in done.stderr
    assert stages(tmp_path)[-1] == "baseline-valid"
    assert run(tmp_path, "pronounce", SMOKE="1").returncode == 0 and stages(tmp_path)[-1] == "table"
