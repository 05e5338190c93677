"""The table of ways to fill the form of task intents: figures of models whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.decisions.form import Decision, Field, FieldDecision, Form
from samples.study import intents_table as table
from train.evaluation.decisions import find_right_indices
from train.tasks import intents

PROBLEMS = [*intents.sample_problems("test", 12, 0)]
ANSWERS = {problem.prompt: problem.answer for problem in PROBLEMS}


class Stub:
    """Decides each form rightly but for the intent of the prompts in `wrong`; writes no JSON text."""

    decision_temperature = 2.0

    def __init__(self, wrong: set[str]) -> None:
        self.wrong, self.calls = wrong, list[str]()

    def generate(self, prompt: str) -> Any:
        self.calls.append("generate")
        return SimpleNamespace(text="{", result=SimpleNamespace(forwards=7))

    def decide_form(self, prompt: str, form: Form, *, probability: str, temperature: float) -> Decision:
        assert temperature == 1.0
        self.calls.append(probability)
        chosen, fields, parts = iter(find_right_indices(form, ANSWERS[prompt])), [], []
        for part in form.parts:
            if not isinstance(part, Field):
                parts.append(str(part))
                continue
            index = next(chosen)
            index = (index + 1) % len(part.values) if prompt in self.wrong and part.path == ("intent",) else index
            rest = 0.2 / (len(part.values) - 1)
            shares = tuple(0.8 if place == index else rest for place in range(len(part.values)))
            fields.append(FieldDecision(part.path, part.values[index], index, shares, 0.8))
            parts.append(part.values[index])
        return Decision("".join(parts), tuple(fields), 2, False, "parallel")


def test_every_way_is_measured_on_every_utterance_and_each_model_s_first_answer_is_not_kept() -> None:
    first, second = Stub(set()), Stub({problem.prompt for problem in PROBLEMS[:3]})
    ways = [table.ModelFill("a", "parallel"), table.ModelFill("a", table.TEXT), table.ModelFill("b", "ordered")]
    found = table.measure({"a": first, "b": second}, ways, PROBLEMS)  # type: ignore[dict-item]
    assert first.calls == ["parallel", "parallel", "generate"] * 12 and second.calls == ["ordered"] * 24
    assert all(len(each.texts) == len(each.milliseconds) == len(each.forwards) == 12 for each in found.values())
    right = table.grade_by_part(PROBLEMS, found[ways[0]].texts)["exact"]
    rows = [table.make_row(way, first, found[way], PROBLEMS, right) for way in ways]  # type: ignore[arg-type]
    assert [row["exact"] for row in rows] == [1, 0, 0.75] and [row["slots_accuracy"] for row in rows] == [1, 0, 1]
    assert rows[2]["intent_accuracy"] == 0.75 and rows[2]["exact_to_first"][0] == -0.25
    assert [row["within_schema"] for row in rows] == [12, 0, 12] and [row["forwards"] for row in rows] == [2, 7, 2]
    before, after = rows[2]["calibration"]
    fields = len(intents.FIELDS)
    assert before["expected_calibration_error"] == pytest.approx(1 - 3 / 12 / fields - 0.8, abs=1e-5)
    assert (before["temperature"], after["temperature"]) == (1, 2) and "calibration" not in rows[1]


def test_the_page_has_a_row_per_way_and_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = {name: 0.5 for name in table.ACCURACIES} | {f"{name}_95": [0.4, 0.6] for name in table.ACCURACIES}
    linear = {"rows": [{"size": 20000, "ms": 3.25, **{split: shares for split in table.SPLITS}}]}
    (tmp_path / "linear.json").write_text(json.dumps(linear))
    bundle = SimpleNamespace(engines=[SimpleNamespace(name="ort-fp32", model="a.onnx")])
    monkeypatch.setattr(table.manifest, "read", lambda path: bundle)
    ways = [table.ModelFill("student", "parallel"), table.ModelFill("student", table.TEXT)]
    monkeypatch.setattr(table, "open_models", lambda runs: ({"student": Stub(set())}, ways))
    monkeypatch.setattr(table.intents, "sample_problems", lambda split, count, seed: PROBLEMS[:count])
    words = [
        str(tmp_path),
        "--linear",
        str(tmp_path / "linear.json"),
        "--count",
        "5",
        "--out",
        str(tmp_path / "t.json"),
    ]
    assert table.main(words) == 0
    page, report = (tmp_path / "t.md").read_text(), json.loads((tmp_path / "t.json").read_text())
    assert capsys.readouterr().out.strip() == page.strip()
    assert page.count("| student | parallel | 100.0 (56.6 to 100.0) |  | 100.0") == 2
    assert page.count("| student | JSON text | 0.0 (0.0 to 43.4) | -100.0") == 2
    assert page.count("| linear classifiers, 20,000 utterances |  | 50.0 (40.0 to 60.0) |") == 2
    assert len(report["splits"]["test"]) == 2 and page.count("| 2.000 | ") == 2
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows[: len(rows) // 2]} <= {
        len(table.HEADS) + 1,
        len(table.CALIBRATION_HEADS) + 1,
    }


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{", "cannot be read"), ('{"rows": [{"ms": 1}]}', "cannot be read"),
        ('{"rows": [{"test": {}}]}', "lacks times"),
        ('{"rows": [{"ms": 1, "test": {"exact": 1}, "test_surface": {}}]}', "lacks times or slots"),
    ],
)  # fmt: skip
def test_a_file_without_the_classifiers_figures_is_refused_before_the_work(
    written: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "linear.json").write_text(written)
    words = [str(tmp_path), "--linear", str(tmp_path / "linear.json"), "--out", str(tmp_path / "t.json")]
    assert table.main(words) == 2
    assert said in capsys.readouterr().err


def test_no_utterances_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([str(tmp_path), "--count", "0", "--out", str(tmp_path / "t.json")]) == 2
    assert "--count is 0; expected at least one utterance" in capsys.readouterr().err
    assert table.main([str(tmp_path), "--out", str(tmp_path / "t.md")]) == 2
    assert "expected a .json file" in capsys.readouterr().err
