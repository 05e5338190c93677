"""The study on tiny models: every row with a checkpoint is there, its figures too, and nothing is measured twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from pupils import LINES, teacher_of
from slow_decode import distributions

from train.data.batches import Example
from train.storage import student_pt
from train.transformer.network import Transformer

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SAMPLES / "study"))
    import study

    return study


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Checkpoints of some rows, one of them with two seeds, and own data."""
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    gate = {"rule": "threshold", "metric": "entropy", "comparator": "<=", "threshold": 0.5}
    student_pt.save(teacher_of(16, 0), tmp_path / "teacher.pt")
    student_pt.save(teacher_of(16, 1, attention="block_causal", gate={"threshold": 0.9}), tmp_path / "cdlm.pt")
    student_pt.save(teacher_of(16, 2, attention="block_causal", gate={"threshold": 0.9}), tmp_path / "cdlm-seed2.pt")
    student_pt.save(teacher_of(16, 3, gate=gate), tmp_path / "dparallel-full.pt")
    return tmp_path


def words_of(models: Path, *extra: str) -> list[str]:
    given = f"--models {models} --data {models}/own.jsonl --split train --tuning 2 --count 3 --out {models}/out"
    return [*given.split(), *extra]


def kept_in(models: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((models / "out" / "study.json").read_text(encoding="utf-8"))
    return kept


def test_a_study_shows_every_row_there_is_and_measures_nothing_twice(
    study: ModuleType, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, probed = study.evaluation_run.evaluate, []

    def counted(*args: Any, **options: Any) -> Any:
        probed.append(args)
        return evaluate(*args, **options)

    monkeypatch.setattr(study.evaluation_run, "evaluate", counted)
    assert study.main(words_of(models, "--json")) == 0
    captured = capsys.readouterr()
    titles = [row["title"] for row in json.loads(captured.out)["rows"]]
    assert titles == [
        "teacher", "not distilled: the teacher's weights, block-causal", "CDLM", "CDLM, seed 2",
        "dParallel, full attention", *(f"ablation: teacher truncated to {n} tokens a step" for n in (2, 4, 8)),
        "ablation: CAD without DSCD, not distilled", "ablation: CAD without DSCD, the teacher, full attention",
    ]  # fmt: skip
    assert "no rival.pt" in captured.err and "no cd4lm.pt" in captured.err
    page = (models / "out" / "study.md").read_text(encoding="utf-8")
    assert all(f"| {title}" in page for title in titles) and "expected calibration error" in page
    assert "✗" not in page.split("## Every threshold")[1]
    for name in ("own", "forwards", "calibration"):
        assert (models / "out" / f"study-{name}.png").read_bytes().startswith(b"\x89PNG")
    kept = kept_in(models)
    rows = {row["title"]: row for row in kept["rows"]}
    counts = {title: (len(row["tuned"]), len(row["judged"])) for title, row in rows.items()}
    assert counts["teacher"] == counts["ablation: CAD without DSCD, not distilled"] == (1, 1)
    assert counts["CDLM"] == (5, 1) and counts["dParallel, full attention"] == (7, 1)
    points = {point["key"] for row in kept["rows"] for point in (*row["tuned"], *row["judged"])}
    assert len(probed) == len(points)  # the ablation's first point is one of the row's above it
    assert all(row["judged"][0]["threshold"] in [each["threshold"] for each in row["tuned"]] for row in kept["rows"])
    judged = {(each["split"], each["seed"], each["problems"]) for row in kept["rows"] for each in row["judged"]}
    tuned = {(each["split"], each["seed"], each["problems"]) for row in kept["rows"] for each in row["tuned"]}
    assert judged == {("train", 1, 3)} and tuned == {("valid", 0, 2)}
    by_count = [row["judged"][0]["forwards"] for title, row in rows.items() if "teacher" in title and len(title) < 50]
    assert by_count == sorted(by_count, reverse=True) and by_count[0] > by_count[-1]
    rows["CDLM"]["tuned"][0]["length"] = rows["CDLM"]["probe"]["calibration_error"] = -1  # not measured again
    (models / "out" / "study.json").write_text(json.dumps(kept), encoding="utf-8")
    assert study.main(words_of(models)) == 0
    assert kept_in(models) == kept and "| CDLM" in capsys.readouterr().out and len(probed) == len(points)


def test_a_row_stays_when_its_checkpoint_is_gone_and_seeds_are_taken_from_every_folder(
    study: ModuleType, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in study.ROWS if row.title in ("teacher", "CDLM", "dParallel, full attention")]
    monkeypatch.setattr(study, "ROWS", tuple(rows))
    assert study.main(words_of(models)) == 0
    before = kept_in(models)
    (models / "more").mkdir()
    (models / "cdlm-seed2.pt").rename(models / "more" / "cdlm-seed10.pt")
    (models / "cdlm.pt").unlink()
    assert study.main([*words_of(models), "--models", str(models), str(models / "more")]) == 0
    after = kept_in(models)
    titles = [row["title"] for row in after["rows"]]
    assert titles == ["teacher", "CDLM", "CDLM, seed 10", "CDLM, seed 2", "dParallel, full attention"]
    assert [after["rows"][i] for i in (0, 1, 3, 4)] == before["rows"]
    monkeypatch.setattr(study, "ROWS", (rows[0], rows[2]))
    assert study.main(words_of(models)) == 0  # a row that is listed no longer goes
    assert [row["title"] for row in kept_in(models)["rows"]] == ["teacher", "dParallel, full attention"]


def test_a_study_of_other_settings_or_a_damaged_one_is_left_as_it_is(
    study: ModuleType, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "ROWS", study.ROWS[:1])
    path = models / "out" / "study.json"
    assert study.main(words_of(models)) == 0
    before = path.read_bytes()
    capsys.readouterr()
    for extra, said in [
        (["--count", "2"], "made with count 3, here it is 2"),
        (["--judged-seed", "0"], "made with judged_seed 1, here it is 0"),
        (["--split", "valid"], "--split is valid, on which thresholds are chosen"),
    ]:
        assert study.main(words_of(models, *extra)) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and path.read_bytes() == before
    teacher = (models / "teacher.pt").read_bytes()
    student_pt.save(teacher_of(16, 9), models / "teacher.pt")
    assert study.main(words_of(models)) == 2  # its rows would be compared with a teacher that they never met
    err = capsys.readouterr().err
    assert "made with teacher " in err.splitlines()[-1] and path.read_bytes() == before
    (models / "teacher.pt").write_bytes(teacher)
    for damaged in ("[]", '{"rows": [{"title": "teacher"}]}', '{"rows": [1]}', "{"):
        path.write_text(damaged, encoding="utf-8")
        assert study.main(words_of(models)) == 2
        assert "is not a study" in capsys.readouterr().err and path.read_text(encoding="utf-8") == damaged


def test_a_study_needs_its_teacher(study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["--models", str(tmp_path), "--out", str(tmp_path), "--count", "1", "--task", "math"]) == 2
    assert "no teacher.pt" in capsys.readouterr().err


def point(threshold: float | None, right: list[int], each: list[int]) -> dict[str, object]:
    means = {"accuracy": float(np.mean(right)), "forwards": float(np.mean(each)), "length": 9.0, "length_p95": 12}
    return {"task": "math", "threshold": threshold, "right": right, "each": each, **means}


def test_a_row_is_chosen_by_the_fewest_forwards_half_a_point_below_the_teacher_or_the_most_right_answers(
    study: ModuleType,
) -> None:
    page, right, few, fewer = study.study_page, [1] * 1000, [1] * 995 + [0] * 5, [1] * 994 + [0] * 6
    wrong, base = [0] * 1000, [point(None, right, [40] * 1000)]
    good = [point(0.8, fewer, [2] * 1000), point(0.9, few, [5] * 1000), point(0.99, right, [8] * 1000)]
    bad = [point(0.5, wrong, [2] * 1000), point(0.9, [1] * 900 + [0] * 100, [5] * 1000)]
    assert page.choose_line(page.lines("good", "full", good, base)).threshold == 0.9
    assert page.choose_line(page.lines("bad", "full", bad, base)).threshold == 0.9


def test_a_row_holds_by_the_lower_bound_of_its_difference(study: ModuleType) -> None:
    base = [point(None, [1] * 1000, [40] * 1000)]
    judged = {"good": point(0.9, [1] * 999 + [0], [5] * 1000), "bad": point(0.9, [1] * 990 + [0] * 10, [5] * 1000)}
    rows = [{"title": "teacher", "attention": "full", "judged": base}]
    rows += [{"title": title, "attention": "block_causal", "judged": [each]} for title, each in judged.items()]
    teacher, good, bad = study.study_page.summary({"rows": rows})
    assert (good.holds, good.cells[0].fewer) == (True, 8)  # 1 of 1000: its bound is -0.56 points
    assert not bad.holds and teacher.cells[0].difference == 0  # 10 of 1000: -1.8
    lines = study.study_page.table([teacher, good, bad]).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and "bad ✗" in lines[4]
    assert "8.0 ×" in lines[3] and "×" not in lines[2]


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_divergences_are_those_of_nested_masks(study: ModuleType, attention: str) -> None:
    """One block: every ratio recomputed position by position from the definition."""
    contract, model = tiny.contract(attention=attention), tiny.model(3)
    example = Example((5, 6, 7), (8, 9, 10, 11))
    found = study.invariance.divergences(model, contract, [example], 4)
    generator = torch.Generator().manual_seed(4)
    torch.rand(1, generator=generator)  # the layout's coin
    drawn = torch.rand((1, 32), generator=generator)[0, 3:7].tolist()
    said = []
    for ratio in study.invariance.RATIOS:
        ids = [5, 6, 7] + [
            tiny.MASK if chance < ratio else token for chance, token in zip(drawn, (8, 9, 10, 11), strict=True)
        ]
        said.append(distributions(model, contract, ids, 3)[3:].clamp_min(1e-300))
    asked = [i for i, chance in enumerate(drawn) if chance < study.invariance.RATIOS[0]]
    expected = [
        float(np.mean([(said[0][i] * (said[0][i].log() - each[i].log())).sum().item() for i in asked] or [0.0]))
        for each in said
    ]
    assert found == pytest.approx(expected, abs=1e-4) and asked and found[0] == 0 and max(found) > 0


def test_a_model_that_ignores_the_answer_does_not_diverge(study: ModuleType) -> None:
    model: Transformer = tiny.model(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("o_proj.weight"):
                parameter.zero_()  # positions see themselves alone, and the asked ones are masks at every ratio
    examples = [Example((5, 6), tuple(range(3, 11)))] * 4
    assert study.invariance.divergences(model, tiny.contract(attention="full"), examples, 0) == pytest.approx(
        [0.0] * 4, abs=1e-6
    )
