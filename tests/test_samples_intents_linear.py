"""The linear classifiers next to the task intents: their figures, a small run, and what is said if they are missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from samples.study import intents_linear
from train.tasks import Problem, intents


def test_shares_are_those_of_answers_made_by_hand() -> None:
    fields = {field: ["null"] * 4 for field in intents.FIELDS}
    right = {**fields, "intent": ['"device_on"', '"device_off"', '"device_on"', '"device_on"']}
    given = {**right, "intent": ['"device_on"'] * 4, "room": ["null", "null", '"attic"', "null"]}
    found = intents_linear.compute_shares(given, right)
    assert (found["intent_accuracy"], found["slot_room"], found["slots_accuracy"], found["exact"]) == (
        0.75,
        0.75,
        0.75,
        0.5,
    )
    assert found["slot_hour"] == 1 and found["exact_95"][0] < 0.5 < found["exact_95"][1]
    alone = intents_linear.compute_shares({"intent": given["intent"]}, {"intent": right["intent"]})
    assert alone.keys() == {"intent_accuracy", "intent_accuracy_95"}


def test_labels_are_the_answers_values() -> None:
    problem = Problem("", intents.write_answer("alarm_set", {"hour": 7, "minute": 0}), "plain")
    labels = intents_linear.collect_labels([problem], ("intent", "hour", "day"))
    assert labels == {"intent": ['"alarm_set"'], "hour": ["7"], "day": ["null"]}


def test_a_small_run_is_better_with_more_utterances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    out = tmp_path / "linear.json"
    words = ["--sizes", "60,600", "--count", "200", "--no-slots", "--out", str(out)]
    assert intents_linear.main(words) == 0
    printed = capsys.readouterr().out
    few, many = json.loads(out.read_text())["rows"]
    assert printed.count("intent_accuracy") == 6 and "exact" not in printed
    assert few["size"] == 60 and many["features"] > few["features"]
    for split in intents_linear.SPLITS:
        assert 0.03 < few[split]["intent_accuracy"] < many[split]["intent_accuracy"] < 0.95


def test_a_library_that_is_missing_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    assert intents_linear.main(["--sizes", "10"]) == 2
    err = capsys.readouterr().err
    assert "needs scikit-learn, which is not installed: pip install scikit-learn" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "0"], "expected numbers of utterances"),
        (["--sizes", "a"], "--sizes is 'a'"),
        (["--count", "0"], "--count is 0"),
        (["--regularization", "0"], "--regularization 0.0; expected"),
    ],
)
def test_wrong_options_are_told_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert intents_linear.main(words) == 2
    assert said in (err := capsys.readouterr().err) and err.count("\n") == 1
