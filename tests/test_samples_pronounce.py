"""The pronunciation table: IPA as ARPAbet, rivals in processes of their own, ours next to them; no timing asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pupils import make_teacher
from remembering import Remembering
from test_server_batch import model_of

from runtime.errors import UserError
from samples.study import pronounce_rivals, pronounce_table, rival_worker
from samples.study.ipa_to_arpabet import convert_to_arpabet
from train import evaluate, tasks
from train.storage import student_pt

SAMPLES = Path(__file__).parent.parent / "samples"
PROBLEMS = list(tasks.choose_tasks("pronounce")[0].problems("test", 30, 0))


@pytest.mark.parametrize(
    ("ipa", "phonemes"),
    [
        ("wˈɔːk", "W AO1 K"), ("w ˈɔ k", "W AO1 K"), ("skˈuːljɑːɹd", "S K UW1 L Y AA0 R D"), ("bˈʌʔn̩", "B AH1 T AH0 N"),
        ("t͡ʃˈe\u200dɪnd͡ʒ", "CH EY1 N JH"), ("tʃˈeɪndʒ", "CH EY1 N JH"), ("wˈɔːɾɚ", "W AO1 T ER0"),
        ("ˌɪntɚˈɛst", "IH2 N T ER0 EH1 S T"), ("bˈɜːd", "B ER1 D"), ("ˈɑɹmɚɹi", "AA1 R M ER0 IY0"),
        ("ˈlɪtl̩", "L IH1 T AH0 L"), ("ø", "?"), ("", ""),
    ],
)  # fmt: skip
def test_ipa_becomes_arpabet_with_the_stress_on_the_vowel(ipa: str, phonemes: str) -> None:
    assert " ".join(convert_to_arpabet(ipa)) == phonemes


def answers_of(problems: Sequence[tasks.Problem], wrong: int) -> list[str]:
    """Right answers, the first few of them wrong."""
    return ["W AO1 K" if place < wrong else problem.answer for place, problem in enumerate(problems)]


def worker_report(**other: Any) -> dict[str, Any]:
    found = {"load_seconds": 1.0, "words_per_second": 100.0, "words_per_second_batch": None, "program_per_call": False}
    found |= {
        "peak_mb": 50.0,
        "packages": {"numpy": {"version": "2", "bytes": 7 * 10**7}},
        "known": None,
        "forwards": None,
    }
    return found | {"python": "3.11"} | other


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the workers: g2p-en makes 3 mistakes, gruut answers in IPA, one is missing, ours makes 1."""
    names: list[str] = []

    def run_worker(python: Path, name: str, lines: Sequence[str], *options: object) -> dict[str, Any]:
        names.append(name)
        if name == "g2p-en":
            return worker_report(answers=answers_of(PROBLEMS, 3))
        if name == "gruut":
            return worker_report(answers=["wˈɔːk"] * len(lines), known=29)
        if name == "phonetisaurus":
            return worker_report(answers=answers_of(PROBLEMS, 5), words_per_second_batch=900.0, program_per_call=True)
        if name == "blockstep" and "--together" not in options:
            parts = {"weights apart": {"version": "", "bytes": 2 * 10**6}}
            return worker_report(answers=answers_of(PROBLEMS, 1), forwards=2.5, packages=parts)
        if name == "blockstep":
            assert options[-2:] == ("--together", 20) and [*lines] == [problem.prompt for problem in PROBLEMS[:20]]
            return worker_report(answers=answers_of(PROBLEMS[:20], 3), forwards=7.0, words_per_second=400.0)
        raise UserError(f"not installed: {name}; {pronounce_rivals.OTHER_PROGRAMS[name].install}")

    monkeypatch.setattr(pronounce_rivals, "run_worker", run_worker)
    monkeypatch.setattr(pronounce_rivals, "train_phonetisaurus", lambda python, work: (Path("g2p.fst"), 130.0))
    monkeypatch.setattr(pronounce_rivals, "list_held_out_words", lambda: PROBLEMS)
    return names


def test_rivals_that_are_there_get_a_row_and_the_others_a_reason(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rivals.json"
    assert pronounce_rivals.main(["--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert asked == [*pronounce_rivals.OTHER_PROGRAMS] and set(report["rows"]) == {"g2p-en", "phonetisaurus", "gruut"}
    assert report["left_out"]["g2p2"] == "not installed: g2p2; pip install g2p2 g2p2-group-germanic"
    row = report["rows"]["g2p-en"]
    assert row["word_error"] == 0.1 == row["word_error_without_stress"] and row["words"] == 30
    assert row["per_problem"]["word_error"] == [1] * 3 + [0] * 27 and "per_problem" not in printed["rows"]["g2p-en"]
    assert 0 < row["word_error_95"][0] < 0.1 < row["word_error_95"][1] < 1
    assert row["ranked"] and not report["rows"]["gruut"]["ranked"] and report["rows"]["gruut"]["word_error"] == 1
    assert report["rows"]["phonetisaurus"]["train_seconds"] == 130
    # one alone: the other rows stay
    assert pronounce_rivals.main(["--out", str(out), "--only", "g2p-en"]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["rows"].keys() == report["rows"].keys()
    assert asked[-1] == "g2p-en" and "10.0 % of words wrong" in capsys.readouterr().out


def test_a_file_of_other_words_or_a_damaged_one_is_left_as_it_is(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rivals.json"
    for text, said in [
        ("{", "is not a report"),
        ('{"words": 1}', "is not a report"),
        ('{"words": "x", "rows": {}, "left_out": {}}', "other words"),
    ]:
        out.write_text(text, encoding="utf-8")
        assert pronounce_rivals.main(["--out", str(out)]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and out.read_text(encoding="utf-8") == text and asked == []


def test_a_rival_that_is_not_installed_ends_its_worker_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, str(SAMPLES / "study" / "rival_worker.py"), "g2p2"]
    done = subprocess.run(command, input="walk\n", capture_output=True, text=True)
    assert done.returncode == pronounce_rivals.NOT_INSTALLED and done.stdout == ""
    assert done.stderr.startswith("not installed: ") and done.stderr.count("\n") == 1
    with pytest.raises(UserError, match=r"not installed: .*g2p2-group-germanic; pip install g2p2 g2p2-group-germanic"):
        pronounce_rivals.run_worker(Path(sys.executable), "g2p2", ["walk"])
    with pytest.raises(UserError, match="--python nowhere/python does not start"):
        pronounce_rivals.run_worker(Path("nowhere/python"), "g2p2", ["walk"])


def test_a_worker_counts_what_a_bundle_of_ours_takes() -> None:
    bundle = SAMPLES / "student.bundle"
    found = rival_worker.report("blockstep", ["1 + 1", "2 + 2"], bundle, 0, "ort-fp32")
    assert len(found["answers"]) == 2 and found["forwards"] >= 1 and found["words_per_second_batch"] is None
    parts = found["packages"]
    assert {"numpy", "onnxruntime", "tokenizers", "huggingface-hub"} <= parts.keys() and "torch" not in parts
    assert parts["weights apart"]["bytes"] == sum(
        path.stat().st_size for path in bundle.iterdir() if path.suffix != ".npz" and "int8" not in path.name
    )
    assert found["peak_mb"] > 10 and parts["numpy"]["bytes"] > 10**6


def test_words_asked_at_once_have_the_answers_of_words_asked_alone(tmp_path: Path) -> None:
    # of an engine that takes one sequence the forward passes of a sentence are a sum, of a batch they are shared
    bundle, asked = SAMPLES / "student.bundle", ["1 + 1", "2 + 2", "3 + 4"]
    alone, together = (rival_worker.report("blockstep", asked, bundle, 0, "ort-fp32", size) for size in (1, 2))
    assert alone["answers"] == together["answers"]
    assert together["forwards"] * 2 == pytest.approx(alone["forwards"] * 3)
    words = [problem.prompt for problem in PROBLEMS[:7]]
    solo, passes = rival_worker.decode_one_by_one(model_of(tmp_path, 1), words)
    model = model_of(tmp_path, 3)
    batch = model.batch(3)
    texts, shared = rival_worker.decode_in_batch(model, batch, words)
    assert isinstance(model.backend, Remembering)
    assert texts == solo and shared == len(model.backend.computed) < passes
    assert rival_worker.decode_in_batch(model, batch, words[:2])[0] == solo[:2]


def test_a_program_s_lines_and_its_own_memory_are_read() -> None:
    programs = rival_worker.ProcessRunner()
    code = "import sys; held = bytearray(80_000_000); print(sys.stdin.read().upper(), end='')"
    assert programs.run([sys.executable, "-c", code], "a\nb\n") == ["A", "B"]
    assert 80 < programs.peak_mb < 200
    with pytest.raises(RuntimeError, match="ended with code 3"):
        programs.run([sys.executable, "-c", "raise SystemExit(3)"])


def evaluated(tmp_path: Path, *extra: str) -> dict[str, Any]:
    """What evaluating an untrained model on the task reports."""
    student_pt.save(make_teacher(16, 0), tmp_path / "teacher.pt")
    out = tmp_path / "baseline-test.json"
    words = ["--ckpt", str(tmp_path / "teacher.pt"), "--task", "pronounce", "--split", "test", "--count", "30"]
    assert evaluate.main([*words, "--out", str(out), *extra]) == 0
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return report


def test_an_evaluation_reports_the_task_s_own_rates_with_intervals(tmp_path: Path) -> None:
    report = evaluated(tmp_path)
    assert report["words"] == 30 and report["word_error"] == 1 == report["word_error_without_stress"]
    assert 0.8 < report["word_error_95"][0] < report["word_error_95"][1] <= 1 and report["phoneme_error"] >= 0.5
    assert report["per_problem"]["word_error"] == [1] * 30 == [1 - right for right in report["per_problem"]["right"]]


def test_the_table_has_ours_next_to_the_rivals(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rivals, out = tmp_path / "rivals.json", tmp_path / "results"
    out.mkdir()
    assert pronounce_rivals.main(["--out", str(rivals)]) == 0
    assert pronounce_rivals.main(["--out", str(rivals), "--ours", str(SAMPLES / "student.bundle")]) == 0
    assert json.loads(rivals.read_text(encoding="utf-8"))["rows"]["ort-fp32"]["forwards"] == 2.5
    evaluated(tmp_path)
    capsys.readouterr()
    words = [str(tmp_path), "--rivals", str(rivals), "--out", str(out)]
    assert pronounce_table.main([*words, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert [*rows] == ["baseline", "g2p-en", "phonetisaurus", "gruut", "ort-fp32", "ort-int8"]
    assert rows["baseline"]["to_same_data"][0] == round(25 / 30, 5) and rows["baseline"]["weights_bytes"] > 1000
    assert rows["ort-fp32"]["to_same_data"][0] == round(-4 / 30, 5) and "to_same_data" not in rows["phonetisaurus"]
    assert rows["ort-fp32"]["sentence_forwards"] == 7 and rows["ort-fp32"]["ms_per_word"] == 10
    assert rows["ort-fp32"]["ms_per_sentence"] == 50 and rows["ort-fp32"]["sentence_differing"] == 2
    page = (out / "pronounce.md").read_text(encoding="utf-8")
    lines = page.split("## Programs that return IPA")[0].splitlines()
    order = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert order == [
        "**the sample: CDLM, ONNX Runtime**",
        "**the sample in int8**",
        "g2p-en",
        "phonetisaurus",
        "**autoregressive baseline**",
    ]  # the fewest wrong words first
    assert "| phonetisaurus \\* |  |  | 10.00 | 1.11 | 22.2 | 50 |  | 70 |" in page  # a sentence at its best
    assert "gruut" not in page.split("## Programs that return IPA")[0] and "its lexicon has 29 of these words" in page
    assert (
        "g2p2 was left out: not installed" in page and "by the package's own command; 2 minutes of one core |" in page
    )
    assert pronounce_table.select_plotted([*rows.values()])["phonetisaurus, in a batch"] == (
        1000 / 900,
        pytest.approx(100 / 6, rel=1e-4),
    )
    assert (out / "pronounce.png").read_bytes().startswith(b"\x89PNG")
    assert {row["name"] for row in json.loads((out / "pronounce.json").read_text(encoding="utf-8"))["rows"]} == {*rows}


def test_a_table_of_other_words_or_of_an_older_report_is_refused(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rivals, words = tmp_path / "rivals.json", [str(tmp_path), "--out", str(tmp_path), "--rivals"]
    assert pronounce_rivals.main(["--out", str(rivals), "--only", "phonetisaurus"]) == 0
    report = evaluated(tmp_path, "--count", "7")
    capsys.readouterr()
    assert pronounce_table.main([*words, str(rivals)]) == 2
    assert "baseline is of 7 words, phonetisaurus of 30" in capsys.readouterr().err
    del report["word_error_without_stress"]
    (tmp_path / "baseline-test.json").write_text(json.dumps(report), encoding="utf-8")
    assert pronounce_table.main([*words, str(rivals)]) == 2
    assert "has no word_error_without_stress; evaluate the task pronounce again" in capsys.readouterr().err
    assert pronounce_table.main([*words, str(tmp_path / "none.json")]) == 2
    assert "is not a report of samples.study.pronounce_rivals" in capsys.readouterr().err
