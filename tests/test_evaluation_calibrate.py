"""Calibration: bins worked out by hand, what the model is asked, which threshold is chosen, and where it is written."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from block_alone import block_alone
from slow_decode import distributions
from speaking import BYTES, every_other, make_byte_tokenizer, make_speaking_bundle
from tiny import BLOCK, MASK, PAD

from export import onnx
from runtime.backend import Forward, Proposal
from runtime.bundle.store import read, set_gate, write
from runtime.contract import ALIGNMENTS, MODES, GateSpec
from runtime.errors import UserError
from train import calibrate, distill, evaluate, open_checkpoint, tasks, teacher
from train.calibrate import CalibrationPoint
from train.data import prompts
from train.data.batches import Example
from train.evaluation import evaluated_model, reliability
from train.evaluation.baseline import BaselineReport
from train.storage import student_pt
from train.tasks.problem import find_split
from train.torch_backend import TorchBackend


def test_bins_hold_what_lies_in_them_and_the_error_is_the_mean_distance() -> None:
    confidence = np.array([0.0, 0.5, 0.45, 0.75, 0.95, 1.0, 0.9], np.float32)
    right = np.array([0, 1, 0, 1, 1, 1, 0], np.bool_)
    bins = reliability.compute_reliability(confidence, right, 2)
    assert [(each.low, each.high, each.count) for each in bins] == [(0, 0.5, 3), (0.5, 1, 4)]
    assert [each.right for each in bins] == pytest.approx([1 / 3, 3 / 4])
    assert [each.confidence for each in bins] == pytest.approx([0.95 / 3, 0.9])
    error = (3 * abs(0.95 / 3 - 1 / 3) + 4 * abs(0.9 - 0.75)) / 7
    assert reliability.compute_expected_error(bins) == pytest.approx(error)
    assert (
        reliability.compute_reliability(confidence[:0], right[:0]) == [] and reliability.compute_expected_error([]) == 0
    )


class Recording:
    """A PyTorch backend that remembers what it was asked and said."""

    name = "recording"

    def __init__(self, inner: TorchBackend) -> None:
        self.inner, self.contract = inner, inner.contract
        self.seen: list[tuple[Forward, Proposal]] = []

    def open(self, batch: int, capacity: int) -> None:
        self.inner.open(batch, capacity)

    def keep(self, rows: np.ndarray) -> None:
        self.inner.keep(rows)

    def forward(self, forward: Forward) -> Proposal:
        self.seen.append((forward, self.inner.forward(forward)))
        return self.seen[-1][1]


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_probe_asks_what_a_step_asks(alignment: str, shift: bool, attention: str) -> None:
    seed = tiny.choose_seed()
    rng = random.Random(seed)
    contract, model = tiny.contract(alignment=alignment, shift=shift, attention=attention), tiny.model(seed)
    sizes = [(rng.randrange(1, 9), rng.randrange(1, 13)) for _ in range(12)]
    texts = [[rng.randrange(3, tiny.VOCAB) for _ in range(sum(size))] for size in sizes]
    examples = [Example(tuple(t[:p]), tuple(t[p:])) for t, (p, _) in zip(texts, sizes, strict=True)]
    backend = Recording(TorchBackend(model, contract))
    confidence, right = reliability.probe(backend, examples, seed)
    expected = []
    for text, (prompt, _), (forward, said) in zip(texts, sizes, backend.seen, strict=True):
        ids = forward.input_ids[0].tolist()
        wide = prompt + contract.canvas if attention == "full" else len(ids)
        first = int(forward.rows[0, -1]) + shift - BLOCK + 1
        open_ = [i for i in range(first, first + BLOCK) if ids[i] == MASK]
        assert ids[:first] == text[:first] and len(ids) == wide, f"seed {seed}"
        assert min(open_) >= prompt and set(ids[first + BLOCK :]) <= {MASK}, f"seed {seed}"
        assert all(ids[i] in (MASK, text[i] if i < len(text) else PAD) for i in range(first, first + BLOCK))
        truth = distributions(model, contract, ids, prompt)
        for place in (i for i in open_ if i < len(text)):
            best = truth[place].max(0)
            assert said.confidence[0][place - first] == pytest.approx(best.values.item(), abs=1e-4), f"seed {seed}"
            expected.append((best.values.item(), int(best.indices) == text[place]))
    assert confidence == pytest.approx([sure for sure, _ in expected], abs=1e-4), f"seed {seed}"
    assert right.tolist() == [verdict for _, verdict in expected], f"seed {seed}"


@pytest.mark.parametrize("shift", [False, True])
def test_a_probe_of_a_causal_context_sees_committed_tokens_causally_and_a_seed_given(shift: bool) -> None:
    seed = tiny.choose_seed()
    rng, model = random.Random(seed), tiny.model(seed)
    contract = tiny.contract(attention="causal_context", shift=shift)
    examples = [Example(tuple(tiny.prompt(rng, 1 + n).tolist()), (5, 6, 7, 8, 9, 10, 11)) for n in range(9)]
    backend = Recording(TorchBackend(model, contract))
    reliability.probe(backend, examples, seed)
    for example, (forward, said) in zip(examples, backend.seen, strict=True):
        ids = torch.from_numpy(forward.input_ids[0])
        first = len(ids) - BLOCK
        scores = model.logits(block_alone(model, contract, ids, len(example.prompt), first)).detach()
        scores[:, MASK] = float("-inf")
        sure = scores.softmax(-1).max(-1).values.numpy()
        open_ = (ids[first:] == MASK).numpy()
        assert said.confidence[0][open_] == pytest.approx(sure[open_], abs=1e-4), f"seed {seed}"
        assert shift or not open_[0]


def test_answers_without_room_are_not_asked_for() -> None:
    backend = Recording(TorchBackend(tiny.model(0), tiny.contract()))
    confidence, right = reliability.probe(backend, [Example((3,), (4,) * 13), Example((3,) * 63, (4,) * 5)], 0)
    assert len(confidence) == len(right) == 0 and backend.seen == []


def point(
    threshold: float | None, forwards: float, difference: float, low: float, mode: str = "block"
) -> CalibrationPoint:
    return CalibrationPoint(mode, threshold, forwards, difference, low, {})


@pytest.mark.parametrize(
    ("target", "bound", "chosen"),
    [
        (0.5, False, 0.9),
        (0.4, False, 0.95),
        (3.0, False, 0.5),
        (0.5, True, None),
        (1.0, True, 0.99),
        (-0.1, False, None),
    ],
)
def test_the_fewest_forwards_within_the_target_are_chosen(target: float, bound: bool, chosen: float | None) -> None:
    points = [
        point(0.5, 3, -0.03, -0.05), point(0.9, 5, -0.005, -0.02), point(0.95, 6, -0.004, -0.015),
        point(0.99, 9, 0.0, -0.01),
    ]  # fmt: skip
    best = calibrate.choose(points, target, bound)
    assert (best.threshold if best else None) == chosen
    sooner = point(None, 2, -0.002, -0.01, "speculative")
    assert calibrate.choose([*points, sooner], target, bound) is (sooner if target >= (1 if bound else 0.2) else None)


@pytest.mark.parametrize(
    ("target", "bound", "threshold"),
    [(0.5, False, 0.9), (0.25, False, 0.9), (0.15, False, 0.99), (-0.1, False, 0.999), (0.5, True, 0.9)],
)
def test_mode_block_keeps_the_threshold_it_would_have_alone_or_one_near_the_most_accurate(
    target: float, bound: bool, threshold: float
) -> None:
    points = [
        point(0.5, 3, -0.03, -0.05), point(0.9, 5, -0.005, -0.02), point(0.99, 9, -0.004, -0.01),
        point(0.999, 11, -0.003, -0.01), point(None, 2, 0.0, -0.01, "speculative"),
    ]  # fmt: skip
    assert calibrate.choose_for_block_mode(points, target, bound) == threshold


def hasty(forward: Forward) -> Proposal:
    """Only the first open position is known, the others are guessed wrong, and less surely. The answer is `ab`."""
    truth = [BYTES + byte for byte in b"ab"] + [tiny.END] + [PAD] * 5
    first = forward.past_length[0] + forward.rows[0, 0] - 2  # prompts have two tokens
    open_ = forward.input_ids[0, forward.rows[0]] == MASK
    token = [truth[int(first) + i] if i == open_.argmax() else BYTES for i in range(len(open_))]
    return tiny.proposal([token], [[0.95 if i == open_.argmax() else 0.6 for i in range(len(open_))]])


def test_a_sweep_compares_with_the_teacher_on_the_same_problems() -> None:
    spec = tiny.contract(vocab=BYTES + 256, canvas=BLOCK)
    engine = make_byte_tokenizer()
    backend = tiny.Scripted(spec, hasty)
    subject = evaluated_model.EvaluatedModel(
        backend, engine, prompts.make_plain_encoder(engine), spec.gate, 1, "scripted"
    )
    problems = [tasks.Problem(f"p{i}", "ab", "own") for i in range(4)]

    def grade(problems: Sequence[tasks.Problem], texts: Sequence[str]) -> list[bool]:
        return [text == "ab" for text in texts]

    report = BaselineReport(
        tasks.Task("own", lambda *_: iter(problems), grade), problems, [True, True, True, False], [6] * 4
    )
    low, high = calibrate.sweep(subject, GateSpec(), [0.5, 0.9], [report])
    assert (low.difference, low.forwards) == (-0.75, 1) and (high.difference, high.forwards) == (0.25, 3)
    assert high.by_task["own"]["fewer_forwards"] == 2 and low.by_task["own"]["accuracy"] == 0
    assert calibrate.choose([low, high], 0.5, False) is high


def teacher_report(folder: Path, data: Path, right: list[int], split: str = "train") -> Path:
    """What train.evaluate writes, as far as calibration reads it."""
    values = {"task": data.stem, "split": split, "seed": 0}
    path = folder / "teacher.json"
    path.write_text(json.dumps({**values, "per_problem": {"right": right, "forwards": [40] * len(right)}}))
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Problems of the training split, whose prompts are all as long as `say 1`."""
    prompts_ = [f"say {n}" for n in "abcdefghijkl" if find_split(f"say {n}") == "train"]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": "yes"}) + "\n" for p in prompts_))
    return tmp_path / "own.jsonl"


def test_a_bundles_engine_gets_the_threshold_as_its_own_gate(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_speaking_bundle(tmp_path, "say 1", "yes", confidence=every_other)
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    report = teacher_report(tmp_path, own, [1, 1, 1])
    words = ["--bundle", str(made), "--data", str(own), "--teacher-report", str(report), "--thresholds", "0.2,0.4,0.99"]
    assert calibrate.main([*words, "--no-write", "--json"]) == 0
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    capsys.readouterr()
    assert calibrate.main([*words, "--json", "--plot", str(tmp_path / "r.png"), "--out", str(tmp_path / "c.json")]) == 0
    out = capsys.readouterr().out
    told = json.loads(out)
    assert out.count("\n") == 1 and (told["chosen"], told["written"]) == (0.2, True)
    assert [p["forwards"] for p in told["points"]] == [1, 3, 4] and told == json.loads(
        (tmp_path / "c.json").read_text()
    )
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert read(made).find_engine().gate == GateSpec(threshold=0.2)
    after = {path.name: path.read_bytes() for path in made.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {
        "manifest.json"
    } and after.keys() == before.keys()
    words = ["--bundle", str(made), "--data", str(own), "--split", "train", "--count", "3", "--json"]
    assert evaluate.main(words) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["threshold"] == 0.2  # what evaluation and runtime start from


def test_an_engine_is_held_to_the_bundles_own_fp32_engine_where_no_report_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_speaking_bundle(tmp_path, "say 1", "yes", confidence=every_other)
    plain, data = read(made).find_engine(), tmp_path / "own.jsonl"
    letters = [chr(code) for code in range(33, 127) if find_split(f"say {chr(code)}") == "valid"]
    data.write_text("".join(json.dumps({"prompt": f"say {each}", "answer": "yes"}) + "\n" for each in letters))
    words = ["--bundle", str(made), "--data", str(data), "--thresholds", "0.2,0.99"]
    assert calibrate.main(words) == 2
    assert "has no fp32 engine to hold ort-fp32 to; give --teacher-report, or export fp32" in capsys.readouterr().err
    (tmp_path / "student.pt").touch()
    assert calibrate.main(["--ckpt", str(tmp_path / "student.pt"), "--data", str(data)]) == 2
    assert "--teacher-report is missing" in capsys.readouterr().err
    few = replace(plain, name="ort-int8", precision="int8")
    write(made, read(made).contract, few, [made / plain.model], make_byte_tokenizer().to_str(), None, {})
    assert calibrate.main([*words, "--engine", "ort-int8", "--count", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["engine"], told["held_to"], told["chosen"]) == ("ort-int8", ["ort-fp32"], 0.2)
    [own] = told["points"][1]["by_task"].values()
    assert (own["problems"], own["difference"], own["fewer_forwards"]) == (2, 0, 3 / 4)  # fp32 by its own gate, 0.5
    assert read(made).find_engine("ort-int8").gate == GateSpec(threshold=0.2)
    assert read(made).find_engine("ort-fp32").gate == plain.gate


def test_no_threshold_within_the_target_ends_with_1_and_changes_nothing(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_speaking_bundle(tmp_path, "say 1", "no")
    before = (made / "manifest.json").read_bytes()
    words = ["--bundle", str(made), "--data", str(own), "--teacher-report", str(teacher_report(tmp_path, own, [1, 1]))]
    assert calibrate.main([*words, "--thresholds", "0.9"]) == 1
    assert (
        "no threshold meets the target" in capsys.readouterr().out and (made / "manifest.json").read_bytes() == before
    )


def test_a_checkpoint_keeps_everything_but_its_threshold(own: Path, tmp_path: Path) -> None:
    saved = tiny.checkpoint()
    student_pt.save(saved, tmp_path / "student.pt", torch.bfloat16)
    tokens = saved.read_tokenizer()
    assert tokens.get_vocab_size() > tiny.VOCAB  # so its prompts cannot be answered, but its gate can be written
    before = torch.load(tmp_path / "student.pt", weights_only=True)
    student_pt.set_gate(tmp_path / "student.pt", {"rule": "threshold", "threshold": 0.8})
    after = torch.load(tmp_path / "student.pt", weights_only=True)
    assert after["config"].pop("gate") == {"rule": "threshold", "threshold": 0.8} and before["config"].pop("gate")
    assert after["config"] == before["config"] and after["tokenizer"] == before["tokenizer"]
    assert all(torch.equal(w, before["model"][n]) and w.dtype == torch.bfloat16 for n, w in after["model"].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.jsonl", "student.pt"]
    with pytest.raises(UserError, match="calibrate its --bundle"):
        student_pt.set_gate(tmp_path, {})


def test_a_mode_that_meets_the_target_in_fewer_forward_passes_becomes_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = json.dumps({"prompt": "one two three", "answer": "four five"}) + "\n"
    (tmp_path / "own.jsonl").write_text(words * 3, encoding="utf-8")
    seen = f"--data {tmp_path}/own.jsonl --no-bf16"
    small = "--width 32 --layers 1 --heads 2 --head-dim 16 --ffn 32 --vocab 300 --block 4 --canvas 16 --context 64"
    learned = f"{seen} {small} --steps 60 --batch 4 --learning-rate 1e-2 --out {tmp_path}/teacher.pt"
    assert teacher.main(learned.split()) == 0
    drafting = f"--method cd4lm --attention causal_context --next-token 1 --teacher {tmp_path}/teacher.pt {seen}"
    assert distill.main([*drafting.split(), "--steps", "60", "--batch", "4", "--out", f"{tmp_path}/s.pt"]) == 0
    report = teacher_report(tmp_path, tmp_path / "own.jsonl", [1])
    asked = f"--ckpt {tmp_path}/s.pt --data {tmp_path}/own.jsonl --teacher-report {report} --json --target 100"
    before = open_checkpoint.load(tmp_path / "s.pt").decoding
    capsys.readouterr()
    assert before.modes == MODES and calibrate.main([*asked.split(), "--thresholds", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["mode"], each["threshold"]) for each in told["points"]] == [("block", 1), ("speculative", None)]
    fewest = min(told["points"], key=lambda each: each["forwards"])
    assert (told["mode"], told["chosen"]) == (fewest["mode"], fewest["threshold"]) == ("speculative", None)
    after = open_checkpoint.load(tmp_path / "s.pt").decoding
    assert after == replace(before, modes=("speculative", "block", "causal"), gate=after.gate)
    assert told["block_threshold"] == after.gate["threshold"] == 1 != before.gate["threshold"]
    made = tmp_path / "s.bundle"
    assert onnx.main(["--ckpt", str(tmp_path / "s.pt"), "--out", str(made)]) == 0
    assert read(made).contract.modes == after.modes
    set_gate(made, "ort-fp32", GateSpec(), "block")
    assert read(made).contract.modes == ("block", "speculative", "causal")
    with pytest.raises(UserError, match="mode is 'other'; this model decodes in the mode block or speculative or c"):
        set_gate(made, "ort-fp32", GateSpec(), "other")


@pytest.mark.parametrize(
    ("change", "extra", "said"),
    [
        ({"split": "test"}, "", "is of the split test; a threshold chosen there would spoil it"),
        ({"split": "all"}, "", "is of the split all; a threshold chosen there would spoil it"),
        ({"per_problem": {}}, "", "is not a report of blockstep train evaluate --out"),
        ({"task": "other"}, "", "problems of other, which are not there"),
        ({}, "--thresholds 1.5", "threshold 1.5 is outside"),
        ({}, "--gate rule=count", "has no threshold; give --gate rule=threshold"),
    ],
)
def test_what_cannot_be_calibrated_is_told_in_one_line(
    change: dict[str, object], extra: str, said: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, report = make_speaking_bundle(tmp_path, "say 1", "yes"), teacher_report(tmp_path, own, [1])
    report.write_text(json.dumps({**json.loads(report.read_text()), **change}))
    words = ["--bundle", str(made), "--data", str(own), "--teacher-report", str(report), *extra.split()]
    assert calibrate.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--bundle none.bundle", "no bundle at none.bundle"),
        ("--bundle BUNDLE --engine ort-int4", "has no engine 'ort-int4'"),
        ("--bundle BUNDLE --engine ort-int4 --teacher-report none.json", "has no engine 'ort-int4'"),
        ("--bundle BUNDLE --threads 0", "--threads: got '0'; expected 1 to 1024 threads"),
        ("--bundle BUNDLE --batch 4", "--batch was given with --bundle"),
        ("--bundle BUNDLE --task maths", "unknown task 'maths'"),
        ("--bundle BUNDLE --count 0", "'0' is not a whole number from 1"),
        ("--bundle BUNDLE --thresholds high", "--thresholds is 'high'"),
        ("--ckpt none.pt", "no checkpoint at none.pt"),
        ("--ckpt none.pt --teacher-report none.json", "no checkpoint at none.pt"),
        ("--bundle BUNDLE", "has no fp32 engine to hold ort-fp32 to"),
    ],
)
def test_the_missing_report_is_named_after_what_is_wrong_with_the_model_and_the_options(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = str(make_speaking_bundle(tmp_path, "say 1", "yes"))
    assert calibrate.main([made if word == "BUNDLE" else word for word in words.split()]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_reference_with_nothing_right_chooses_no_threshold(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, report = make_speaking_bundle(tmp_path, "say 1", "no"), teacher_report(tmp_path, own, [0, 0])
    before = (made / "manifest.json").read_bytes()
    words = ["--bundle", str(made), "--data", str(own), "--teacher-report", str(report), "--thresholds", "0.9"]
    assert calibrate.main([*words, "--out", str(tmp_path / "c.json"), "--plot", str(tmp_path / "r.png")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {report} has 0 of 2 problems of own right; expected some")
    assert err.count("\n") == 1 and (made / "manifest.json").read_bytes() == before
    assert not (tmp_path / "c.json").exists() and not (tmp_path / "r.png").exists()


def valid_letters(tmp_path: Path, answer: str) -> tuple[Path, Path, list[str]]:
    """A bundle that answers `answer`, a file of the problems `say X` of the split `valid`, right if "yes", their X."""
    made, data = make_speaking_bundle(tmp_path, "say 1", answer), tmp_path / "own.jsonl"
    letters = [chr(code) for code in range(33, 127) if find_split(f"say {chr(code)}") == "valid"]
    data.write_text("".join(json.dumps({"prompt": f"say {each}", "answer": "yes"}) + "\n" for each in letters))
    return made, data, letters


def test_an_fp32_engine_with_nothing_right_holds_no_other_engine_to_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, data, _ = valid_letters(tmp_path, "no")
    few = replace(read(made).find_engine(), name="ort-int8", precision="int8")
    write(made, read(made).contract, few, [made / few.model], make_byte_tokenizer().to_str(), None, {})
    before = (made / "manifest.json").read_bytes()
    words = ["--bundle", str(made), "--data", str(data), "--thresholds", "0.9", "--engine", "ort-int8", "--count", "2"]
    assert calibrate.main(words) == 2 and (made / "manifest.json").read_bytes() == before
    assert "error: ort-fp32 has 0 of 2 problems of own right" in capsys.readouterr().err


def test_a_split_with_fewer_problems_than_requested_is_used_whole_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, data, letters = valid_letters(tmp_path, "yes")
    plain, told = (
        read(made).find_engine(),
        f"the split valid of own has {len(letters)} problems, fewer than the 99 requested",
    )
    few = replace(plain, name="ort-int8", precision="int8")
    write(made, read(made).contract, few, [made / plain.model], make_byte_tokenizer().to_str(), None, {})
    words = ["--bundle", str(made), "--data", str(data), "--engine", "ort-int8"]
    for count, reported in ((99, True), (len(letters), False)):
        assert calibrate.main([*words, "--thresholds", "0.2", "--no-write", "--count", str(count)]) == 0
        out, err = capsys.readouterr()
        assert f"(to ort-fp32, worst task; problems: {len(letters)} of own)" in out and (told in err) == reported
        assert evaluate.main([*words, "--count", str(count)]) == 0
        assert (told in capsys.readouterr().err) == reported
    assert evaluate.main([*words, "--split", "all"]) == 0
    assert "requested" not in capsys.readouterr().err


def test_two_reports_of_one_task_are_refused(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, report = make_speaking_bundle(tmp_path, "say 1", "yes"), str(teacher_report(tmp_path, own, [1]))
    assert calibrate.main(["--bundle", str(made), "--data", str(own), "--teacher-report", report, report]) == 2
    assert capsys.readouterr().err == (
        "error: --teacher-report has two reports of own; give one per task, of the model with more right\n"
    )


def test_a_gate_that_does_not_fit_is_not_written(tmp_path: Path) -> None:
    made = make_speaking_bundle(tmp_path, "p", "a")
    before = (made / "manifest.json").read_bytes()
    for engine, spec, said in (("ort-int4", GateSpec(), "no engine"), ("ort-fp32", GateSpec(threshold=2), "outside")):
        with pytest.raises(UserError, match=said):
            set_gate(made, engine, spec)
    assert (made / "manifest.json").read_bytes() == before
