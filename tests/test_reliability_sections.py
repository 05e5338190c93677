"""The sections of the reliability report in small: nothing in them is wrong, and what ends a process is an outcome."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import attacks
import cells
import checkpoints
import directories
import graphs
import manifests
import mutants
import mutation
import pytest
import report
import tally
import texts

from runtime import load_check

ROOT = Path(__file__).parent.parent
TAKEN = (0, 1, 2, 3, 6, 7, 9, 10, 11)  # attacks of all kinds but two that other tests have


@pytest.mark.parametrize(
    ("module", "numbers"),
    [
        (manifests, range(16)), (graphs, range(16)), (texts, range(16)), (checkpoints, range(12)),
        (directories, range(11)), (attacks, TAKEN),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)  # fmt: skip
def test_damaged_files_end_in_an_answer_or_one_line(
    module: ModuleType, numbers: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        load_check, "SECONDS", load_check.SECONDS
    )  # an attempt, in a process of its own otherwise, shortens it
    endings = {}
    for number in numbers:
        (tmp_path / str(number)).mkdir()
        endings[number] = cells.ended(module, number, tmp_path / str(number))
    assert not {number: told for number, told in endings.items() if told[0] in cells.WRONG}
    assert "refused" in {ending for ending, _ in endings.values()}


def test_mutation_testing_names_modules_and_tests_that_are_there() -> None:
    named = [ROOT / "runtime" / f"{name}.py" for name in mutation.MODULES]
    named += [ROOT / path for tests in mutation.MODULES.values() for path in mutation.paths(tests)]
    assert [path.name for path in named if not path.is_file()] == []


def test_json_is_damaged_whatever_its_keys_are() -> None:
    """A vocabulary has brackets and quotes for keys."""
    made = [mutants.of_json(random.Random(seed), {"{": 1, '"': {"a": [2]}, "[,": "x"}) for seed in range(400)]
    assert not any(mutants.TWIN in text for text in made)
    assert any(has_a_key_twice(text) for text in made)


def has_a_key_twice(text: str) -> bool:
    found = []
    try:
        json.loads(text, object_pairs_hook=lambda pairs: found.append(len(pairs) > len(dict(pairs))))
    except ValueError:  # damaged in another way
        return False
    return any(found)


def test_a_report_counts_every_attempt_and_keeps_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text('{"older": {"title": "Older", "rows": [["a", 1, "fine"]], "scale": 1}}')
    line = [sys.executable, str(ROOT / "tests/reliability/report.py"), "manifests", "--scale", "0.002", "--json"]
    done = subprocess.run([*line, "--out", str(tmp_path / "all")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["wrong"] == [] and sum(row[1] for row in made["sections"]["manifests"]["rows"]) == 12
    assert json.loads((tmp_path / "all.json").read_text()).keys() == {"manifests", "older"}
    told = (tmp_path / "all.md").read_text(encoding="utf-8")
    assert "## Manifests (`manifests`)" in told and "| a | 1 | fine |" in told


PLANTED = """
import os, signal
from pathlib import Path
from runtime.errors import UserError
SWOLLEN = 64 << 20
def kind(number): return "planted"
def attempt(number, folder):
    if number == 1: raise UserError("got this; expected that")
    if number == 2: raise KeyError("x")
    if number == 3: os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4: os.kill(os.getpid(), signal.SIGPROF)
    if number == 5: os.urandom(1 << 10) * (80 << 10)
    if number == 6: os.system("true")
    if number == 7: assert False, "another answer"
    return "fine"
"""


def test_what_gives_a_user_the_bundle_of_an_attempt_runs() -> None:
    words = [sys.executable, "-c", tally.GENERATE, "--help"]
    done = subprocess.run(words, capture_output=True, cwd=ROOT, text=True, check=False)
    assert done.returncode == 0 and "BUNDLE" in done.stdout, done.stderr


def test_what_ends_a_process_is_told_and_the_next_attempt_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.setattr(cells, "PATHS", (*cells.PATHS, tmp_path))
    found = list(cells.outcomes("planted", 0, 9))
    endings = "fine refused traceback crashed|SIGSEGV hung swelled ran|code wrong fine".replace("|", "~").split()
    assert [each.ending.replace(" ", "~") for each in found] == endings
    told = tally.summary(found, "planted", by_trial=False)
    assert told.startswith("6 WRONG (2 traceback, 3 crashed SIGSEGV, 4 hung, 5 swelled, 6 ran code)")
    assert told.endswith("2 fine, 1 refused in one line")


def test_every_section_is_a_module_with_a_run() -> None:
    named = {file.stem for file in (ROOT / "tests" / "reliability").glob("*.py") if "\ndef run(" in file.read_text()}
    assert named == set(report.SECTIONS)
