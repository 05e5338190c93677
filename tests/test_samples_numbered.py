"""The numbered samples run as they stand, and are short. `4_serve.py` is run by test_server_command.py."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
from native import BUNDLE, PROMPTS, ROOT, needs_tools, run
from speaking import make_speaking_bundle

from runtime import load
from train.tasks import intents

pytestmark = pytest.mark.process

SAMPLES = ROOT / "samples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def output(*words: str | Path) -> str:
    """What a sample prints."""
    done = run(*words, cwd="/", env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_numbered_samples_are_short_and_in_the_table() -> None:
    names = sorted(path.name for path in SAMPLES.glob("[0-9]_*"))
    assert [name[0] for name in names] == ["1", "2", "3", "4", "5", "6", "7", "8"]
    assert [name for name in names if (SAMPLES / name).read_text(encoding="utf-8").count("\n") > 40] == []
    table = (SAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in [*names, "c/", "jetson/", "own.jsonl"] if f"| `{name}` |" not in table] == []


def test_generating() -> None:
    answer = load(BUNDLE, threads=1).generate(PROMPTS[0])
    lines = output(sys.executable, SAMPLES / "1_generate.py").splitlines()
    assert "\n".join(lines[:-6]) == answer.text
    assert f"{len(answer.result.token_ids)} tokens in {answer.result.forwards} forward passes" in lines[-6]
    passes = [int(re.findall(r"(\d+) forward passes", line)[0]) for line in lines[-5:]]
    speculative, _, causal, strict, loose = passes
    assert causal == len(answer.result.token_ids) - 1 > 4 * speculative and strict > loose
    assert speculative == answer.result.forwards


def test_the_models_of_math_and_code_are_what_the_recipe_made() -> None:
    made = json.loads((SAMPLES / "results" / "recipe-math-code.json").read_text(encoding="utf-8"))["record"]["sha256"]
    committed = {"baseline.pt": "baseline.pt", "teacher.pt": "teacher.pt", "cdlm.pt": "student.pt"}
    committed["student.bundle/manifest.json"] = "student.bundle/manifest.json"  # has the hashes of its other files
    for name, path in committed.items():
        assert hashlib.sha256((SAMPLES / path).read_bytes()).hexdigest() == made[name], path


def test_streaming_and_showing_blocks() -> None:
    answer = load(BUNDLE, threads=1).generate(PROMPTS[1])
    lines = output(sys.executable, SAMPLES / "2_stream.py").splitlines()
    texts = [eval(line.split(": ", 1)[1]) for line in lines if "tokens:" in line]
    steps = [line for line in lines if "accepted:" in line]
    assert "".join(texts) == answer.text and lines == [*lines[: len(texts)], *steps]
    assert "·" in steps[0] and steps[-1].startswith("block 1, ")


def test_pronouncing_a_sentence_word_by_word(tmp_path: Path) -> None:
    sample, bundle = SAMPLES / "7_pronounce.py", make_speaking_bundle(tmp_path, "walk", "W AO1 K")
    model = load(bundle, threads=1)
    words = ["Walk", "the", "dog's", "lead"]
    spoken = [model.generate(word).text for word in words]
    assert spoken[0] == spoken[3] == "W AO1 K" and spoken[1] != spoken[2] != spoken[3]
    *lines, whole = output(sys.executable, sample, "Walk the dog’s lead, 12 -- '!", bundle).splitlines()
    assert [line.split(None, 1)[0] for line in lines] == words
    assert [line[17:] for line in lines] == spoken and whole == " | ".join(spoken)
    assert output(sys.executable, sample, "wâlk, dög", bundle).splitlines()[:2] == [
        f"{'walk':16} W AO1 K",
        f"{'dog':16} {model.generate('dog').text}",
    ]
    for words_given, said in (
        (("12 -- '!",), "has no word; give a sentence"),
        ((), "has no word; give a sentence"),
        (("Walk.", tmp_path / "none.bundle"), "does not exist; make train writes one, runs/pronounce/student.bundle"),
    ):
        done = run(sys.executable, sample, *words_given, cwd="/", env=ENVIRONMENT)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_the_committed_pronunciation_is_the_recipes_and_answers() -> None:
    bundle, recipe = SAMPLES / "pronounce.bundle", SAMPLES / "results" / "recipe-pronounce.json"
    made = json.loads(recipe.read_text(encoding="utf-8"))["record"]
    written = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert written == made["sha256"]["student.bundle/manifest.json"]
    *_, whole = output(sys.executable, SAMPLES / "7_pronounce.py", "Diffusion walks.").splitlines()
    assert whole == "D IH0 F Y UW1 ZH AH0 N | W AO1 K S"
    for engine in ("ort-fp32", "ort-int8"):
        model = load(bundle, engine=engine, threads=1)
        assert model.contract.modes[0] == "speculative"
        assert model.generate("walks").text == model.generate("walks", mode="causal").text == "W AO1 K S"


def test_deciding_a_form(tmp_path: Path) -> None:
    sample = SAMPLES / "8_decide.py"
    schema = json.loads((SAMPLES / "intents.schema.json").read_text(encoding="utf-8"))
    assert schema == intents.make_schema()
    sentence = "close the blinds in the attic, no wait, open them"
    decision = load(SAMPLES / "intents.bundle", threads=1).decide(sentence, schema)
    *lines, last = output(sys.executable, sample, sentence).splitlines()
    assert [line.split()[0] for line in lines] == [*intents.FIELDS]
    assert last == f"1 forward pass: {decision.text}" and decision.forwards == 1
    assert '"intent":"blinds_open"' in last and '"room":"attic"' in last
    for given, said in (
        ((), "the sentence is empty; give one, in quotes"),
        (("stop", tmp_path / "none.bundle"), "does not exist; make train TASK=intents writes"),
    ):
        done = run(sys.executable, sample, *given, cwd="/", env=ENVIRONMENT)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_the_committed_decisions_are_the_recipes() -> None:
    """The bundle is the recipe's, and does what the table of it says: forms of families that no model has seen."""
    bundle, results = SAMPLES / "intents.bundle", SAMPLES / "results"
    made = json.loads((results / "recipe-intents.json").read_text(encoding="utf-8"))["record"]
    written = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert written == made["sha256"]["student.bundle/manifest.json"]
    rows = json.loads((results / "intents.json").read_text(encoding="utf-8"))["splits"]["test"]
    problems, form = [*intents.sample_problems("test", 40, 0)], intents.make_form()
    for engine in ("ort-fp32", "ort-int8"):
        model = load(bundle, engine=engine, threads=1)
        right = [intents.grade(each, model.decide_form(each.prompt, form).text) for each in problems]
        [row] = [row for row in rows if row["model"] == f"student, {engine}" and row["how"] == "parallel"]
        assert abs(sum(right) / len(right) - row["exact"]) < 0.15
        assert model.decision_temperature != 1


@pytest.mark.native
def test_embedding_in_c(tmp_path: Path) -> None:
    needs_tools()
    answer = load(BUNDLE, threads=1).generate(PROMPTS[0])
    printed = output("sh", SAMPLES / "3_embed.sh", tmp_path / "c")
    assert (
        f"{answer.text}\n-- {len(answer.result.token_ids)} tokens in {answer.result.forwards} forward passes\n"
        in printed
    )
    assert "-- 0.9: " in printed


@pytest.mark.long
def test_distilling_ones_own_data_and_exporting_what_came_of_it(tmp_path: Path) -> None:
    printed = output("sh", SAMPLES / "6_distill.sh", SAMPLES / "own.jsonl", SAMPLES / "teacher.pt", tmp_path, "4", "2")
    command = printed.splitlines()[-1].removeprefix("next: ").split()
    assert (tmp_path / "student.pt").exists() and command[0] == "sh"
    printed = output("sh", ROOT / command[1], *command[2:])
    assert (tmp_path / "student.bundle" / "manifest.json").exists()
    assert "#### " in printed.splitlines()[-1]


def test_nothing_next_to_a_sample_stands_in_for_a_library() -> None:
    """A script's own folder is the first place that is searched: torch took `samples/triton/` for Triton's compiler."""
    libraries = {
        "torch",
        "triton",
        "onnx",
        "onnxruntime",
        "numpy",
        "tensorrt",
        "transformers",
        "tokenizers",
        "peft",
        "ray",
    }
    folders = [SAMPLES, *(path for path in SAMPLES.iterdir() if path.is_dir())]
    assert [path for folder in folders for path in folder.iterdir() if path.stem in libraries] == []
