"""Calibrating decisions: the right values of answers, a fitted temperature, and that checkpoint and bundle keep it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import torch
from speaking import make_speaking_bundle

from runtime.bundle import store
from runtime.decisions.encoded_form import EncodedField, encode_form
from runtime.decisions.form import Field, Form
from runtime.errors import UserError
from runtime.open_bundle import load
from runtime.text.tokenizer import Tokenizer, read_engine
from train import calibrate, tasks
from train.checkpoint import Checkpoint, Decoding
from train.data.bpe import END, MASK, PAD, train_tokenizer
from train.evaluation import decisions
from train.evaluation.temperature import fit_temperature, measure_calibration
from train.storage import student_pt
from train.tasks import intents
from train.transformer.network import ModelConfig, Transformer

[TASK] = tasks.choose_tasks("intents")
FORM = Form(("a ", Field(("x",), ("1", "12", "2")), Field(("y",), ("0", "20")), ".", Field(("z",), ("no",))))


def fill(form: Form, indices: Sequence[int]) -> str:
    """The answer in which each field has the value of its index."""
    left = iter(indices)
    return "".join(part.values[next(left)] if isinstance(part, Field) else str(part) for part in form.parts)


def test_the_right_values_are_those_that_the_answer_was_filled_with() -> None:
    form = intents.make_form()
    fields = [part for part in form.parts if isinstance(part, Field)]
    assert [field.path for field in fields] == [(name,) for name in intents.FIELDS]
    for problem in TASK.problems("train", 200, 0):
        found = decisions.find_right_indices(form, problem.answer)
        values = json.loads(problem.answer)
        assert fill(form, found) == problem.answer
        assert [json.loads(field.values[i]) for field, i in zip(fields, found, strict=True)] == [*values.values()]
    rng = random.Random(0)
    for _ in range(50):
        chosen = [rng.randrange(len(field.values)) for field in fields]
        assert decisions.find_right_indices(form, fill(form, chosen)) == chosen


def test_an_answer_that_fills_the_form_in_no_way_or_in_two_is_refused() -> None:
    assert decisions.find_right_indices(FORM, "a 220.no") == [2, 1, 0]
    for answer, ways in (("a 3", 0), ("a 10.", 0), ("a 10.no!", 0), ("", 0), ("a 120.no", 2)):
        with pytest.raises(UserError, match=f"in {ways} ways"):
            decisions.find_right_indices(FORM, answer)


@pytest.fixture(scope="module")
def learned() -> str:
    problems = [*TASK.problems("train", 300, 0)]
    return train_tokenizer(
        (text for each in problems for text in (each.prompt, each.answer)), 2048, TASK.split_pattern
    ).to_str()


def test_the_form_s_parts_encoded_apart_are_the_answer_s_tokens(learned: str) -> None:
    """So the model reads in a form what it learned from whole answers."""
    tokenizer = Tokenizer(learned)
    form, spec = intents.make_form(), tiny.contract(vocab=5000, candidates=64)
    parts = encode_form(form, tokenizer.encode, spec)
    for problem in TASK.problems("valid", 60, 0):
        chosen = iter(decisions.find_right_indices(form, problem.answer))
        apart = [token for p in parts for token in (p.values[next(chosen)] if isinstance(p, EncodedField) else p)]
        assert apart == tokenizer.encode(problem.answer).tolist()


def overconfident(prompt: Sequence[int], form: Form) -> list[list[float]]:
    """Gives the value that the prompt's only number names .99 of each field, whatever that is worth."""
    fields = [part for part in form.parts if isinstance(part, Field)]
    rows = []
    for field in fields:
        rest = 0.01 / max(1, len(field.values) - 1)
        rows.append([0.99 if i == prompt[0] else rest for i in range(len(field.values))])
    return rows


def test_outcomes_are_those_of_each_field_and_calibration_is_of_all_of_them() -> None:
    form = Form((Field(("x",), ("a", "b")), "-", Field(("y",), ("c", "d"))))
    task = tasks.Task("own", lambda *_: iter(()), lambda *_: [], form=lambda: form)
    problems = [tasks.Problem("", answer, "") for answer in ("a-c", "a-c", "b-c", "a-d")]
    found = decisions.collect_outcomes(task, problems, [[0]] * 4, overconfident)
    assert {path: each.right for path, each in found.items()} == {("x",): [0, 0, 1, 0], ("y",): [0, 0, 0, 1]}
    decided = decisions.join_outcomes(found)
    assert measure_calibration(decided, 1.0).error == pytest.approx(0.99 - 0.75, abs=1e-6)
    temperature = fit_temperature(decided)
    assert measure_calibration(decided, temperature).error == pytest.approx(0, abs=1e-6) and temperature > 1
    fields = decisions.summarize_fields(found, temperature)
    assert fields["x"] == {"right": 0.75, "expected_calibration_error": 0.24, "calibrated": 0.0}
    with pytest.raises(UserError, match="the answers of math are not filled forms; --decisions is for intents"):
        decisions.collect_outcomes(tasks.choose_tasks("math")[0], problems, [[0]] * 4, overconfident)


def untrained(path: Path, learned: str) -> Path:
    """A tiny checkpoint that has the task's tokens and no idea of it, with blocks that hold a whole form."""
    tokens = read_engine(learned)
    shape = ModelConfig(tokens.get_vocab_size(), 32, 1, 2, 1, 16, 32)
    ids = {name: tokens.token_to_id(name) for name in (PAD, END, MASK)}
    decoding = Decoding(
        alignment="prompt", attention="full", shift=False, block=16, canvas=64, context=256, mask_id=ids[MASK],
        eos_ids=(ids[END],), pad_id=ids[PAD], gate={"threshold": 0.5},
    )  # fmt: skip
    torch.manual_seed(0)
    student_pt.save(Checkpoint(shape, decoding, dict(Transformer(shape).state_dict()), learned), path)
    return path


def test_a_checkpoint_keeps_the_temperature_of_its_decisions(
    learned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = untrained(tmp_path / "student.pt", learned)
    before = torch.load(path, weights_only=True)
    assert "decision_temperature" not in before["config"]
    words = ["--ckpt", str(path), "--decisions", "--task", "intents", "--count", "2", "--out", str(tmp_path / "r.json")]
    assert calibrate.main([*words, "--json", "--no-write"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["written"] is False and student_pt.read(path).decoding.decision_temperature == 1
    assert (told["problems"], told["decisions"]) == (2, 2 * len(intents.FIELDS))
    assert told["after"]["negative_log_likelihood"] <= told["before"]["negative_log_likelihood"]
    assert told == json.loads((tmp_path / "r.json").read_text()) and told["by_field"].keys() == {*intents.FIELDS}
    assert calibrate.main([*words, "--plot", str(tmp_path / "r.png")]) == 0
    assert f"temperature {told['temperature']:g}: expected calibration error" in capsys.readouterr().out
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    kept = student_pt.read(path)
    assert kept.decoding.decision_temperature == told["temperature"] != 1
    after = torch.load(path, weights_only=True)
    assert after["config"].pop("decision_temperature") == told["temperature"] and after["config"] == before["config"]


def test_a_bundle_keeps_it_by_engine_and_the_model_decides_with_it(tmp_path: Path) -> None:
    made = make_speaking_bundle(tmp_path, "p", "a")
    before = (made / "manifest.json").read_text()
    assert "decision_temperature" not in before and load(made).decision_temperature == 1
    assert store.set_decision_temperature(made, "ort-fp32", 1.75).find_engine().decision_temperature == 1.75
    assert load(made).decision_temperature == 1.75
    values = json.loads((made / "manifest.json").read_text())
    assert values["engines"][0].pop("decision_temperature") == 1.75 and values == json.loads(before)
    for engine, temperature, said in (("ort-int4", 2.0, "no engine"), ("ort-fp32", 0.0, "decision_temperature is 0.0")):
        with pytest.raises(UserError, match=said):
            store.set_decision_temperature(made, engine, temperature)
    assert store.read(made).find_engine().decision_temperature == 1.75
    store.set_decision_temperature(made, "ort-fp32", 1.0)
    assert store.read(made).find_engine().decision_temperature == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--task math", "--task is math; --decisions takes one task of intents"),
        ("--task intents,math", "--decisions takes one task of intents"),
        ("--task intents --teacher-report x.json", "--teacher-report was given with --decisions"),
        ("--task intents --thresholds 0.5", "--thresholds was given with --decisions"),
        ("--task intents --target 1", "--target was given with --decisions"),
        ("--task intents --by bound", "--by was given with --decisions"),
        ("--task intents --count 0", "--count: '0' is not a whole number from 1"),
        ("--task intents --attention full", "cannot be given its temperature"),
    ],
)
def test_what_cannot_be_calibrated_is_told_in_one_line(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main(["--ckpt", str(tmp_path / "none.pt"), "--decisions", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("error: ") and err.count("\n") == 1
