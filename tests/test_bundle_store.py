"""The bundle's folder: strict reading, writes that are whole or not at all, hashes that are remembered."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from runtime.bundle import store as bundle
from runtime.bundle.store import Bundle, Engine, hash_file, make_content_name, read, verify_files, write
from runtime.contract import GateSpec
from runtime.errors import UserError

ORT = Engine("ort-fp32", "ort", "fp32", "cpu", None, "", {}, {"steps": "fine"})
INT8 = replace(ORT, name="ort-int8", precision="int8", gate=GateSpec(threshold=0.85))
FROM = {"checkpoint_sha256": "one"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, where hashes are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blockstep" / "verified.json"


def store(path: Path, engine: Engine = ORT, content: bytes = b"graph", **changes: Any) -> Bundle:
    """Writes an engine of one file with that content."""
    source = path.parent / "source"
    source.mkdir(exist_ok=True)
    plain = source / f"plain-{engine.name}.onnx"
    plain.write_bytes(content)
    file = plain.rename(source / make_content_name(engine.name, ".onnx", hash_file(plain)))
    options = {"contract": tiny.contract(), "tokenizer": "{}", "chat_template": None, "provenance": FROM} | changes
    return write(path, engine=replace(engine, model=file.name), artifacts=[file], **options)


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = store(tmp_path / "a.bundle", INT8, chat_template="{{ messages }}")
    assert made == read(tmp_path / "a.bundle")
    engine = made.find_engine("ort-int8")
    assert engine.gate == GateSpec(threshold=0.85) and engine.parity == {"steps": "fine"}
    assert made.contract == tiny.contract() and made.chat_template == "{{ messages }}" and made.provenance == FROM
    assert (made.path / engine.model).read_bytes() == b"graph" and made.tokenizer.read_text() == "{}"
    assert len(names(made.path)) == 4
    for name in names(made.path):
        assert name == "manifest.json" or hash_file(made.path / name)[:8] in name


def test_an_engine_is_added_or_replaced_by_dialect_precision_and_target(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    store(path)
    store(path, INT8, b"int8")
    made = store(path, content=b"newer")
    assert [engine.name for engine in made.engines] == ["ort-int8", "ort-fp32"]
    assert made.find_engine().name == "ort-int8" and made.find_engine("ort-fp32").files.keys() == {
        made.find_engine("ort-fp32").model
    }
    assert len(names(path)) == 4 and (path / made.find_engine("ort-fp32").model).read_bytes() == b"newer"
    with pytest.raises(UserError, match="no engine 'trt-fp16'; it has ort-int8, ort-fp32"):
        made.find_engine("trt-fp16")


def test_engines_of_one_bundle_have_the_same_count_of_candidates(tmp_path: Path) -> None:
    """A contract without candidates does not name the field."""
    store(tmp_path / "a.bundle")
    assert "candidates" not in (tmp_path / "a.bundle" / "manifest.json").read_text()
    store(tmp_path / "b.bundle", contract=tiny.contract(candidates=8))
    with pytest.raises(UserError, match=r"holds ort-fp32 with candidates 0, but ort-int8 has 8; export with the same"):
        store(tmp_path / "a.bundle", INT8, b"int8", contract=tiny.contract(candidates=8))
    with pytest.raises(UserError, match=r"holds ort-fp32 with candidates 8, but ort-int8 has 0; export with the same"):
        store(tmp_path / "b.bundle", INT8, b"int8")


def test_engines_of_one_bundle_have_the_same_count_of_top_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    store(path)
    before = sorted(path.iterdir())
    with pytest.raises(UserError, match=r"holds ort-fp32 with top_k 0, but ort-int8 has 8; export with the same"):
        store(path, INT8, b"int8", contract=tiny.contract(top_k=8))
    assert sorted(path.iterdir()) == before
    assert store(path, content=b"other", contract=tiny.contract(top_k=8)).contract.top_k == 8  # the one it replaces


def test_engines_of_one_bundle_have_one_contract_and_one_checkpoint(tmp_path: Path) -> None:
    path, longer = tmp_path / "a.bundle", tiny.contract(capacity=32)
    store(path)
    before = {name: (path / name).read_bytes() for name in names(path)}
    with pytest.raises(UserError, match="holds ort-fp32 with capacity 64, but ort-int8 has 32"):
        store(path, INT8, b"int8", contract=longer)
    assert {name: (path / name).read_bytes() for name in names(path)} == before
    assert store(path, content=b"other", contract=longer).contract == longer  # nothing of the older contract stays
    store(path, INT8, b"int8", contract=longer)
    made = store(path, content=b"third", provenance={"checkpoint_sha256": "two"})
    assert [engine.name for engine in made.engines] == ["ort-fp32"] and len(names(path)) == 3


def test_a_file_that_stays_is_not_lost_when_its_content_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    assert store(path) == store(path)
    verify_files(read(path), read(path).find_engine(), "always")


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos"
    path.mkdir()
    (path / "cat.png").write_bytes(b"cat")
    with pytest.raises(UserError, match=r"folder of other files \(cat\.png\)"):
        store(path)
    assert names(path) == ["cat.png"]
    with pytest.raises(UserError, match="is a file; expected a bundle's folder"):
        store(path / "cat.png")


def test_notes_of_a_user_survive_an_export(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    store(path)
    (path / "NOTES.md").write_text("mine")
    store(path, content=b"newer")
    assert "NOTES.md" in names(path) and len(names(path)) == 4


def test_a_failed_write_leaves_the_older_bundle_or_nothing(tmp_path: Path) -> None:
    fresh, path = tmp_path / "fresh.bundle", tmp_path / "a.bundle"
    with pytest.raises(TypeError):
        store(fresh, provenance={"checkpoint_sha256": object()})
    assert not fresh.exists()
    store(path)
    before = {name: (path / name).read_bytes() for name in names(path)}
    with pytest.raises(TypeError):
        store(path, content=b"newer", provenance={"checkpoint_sha256": object()})
    assert {name: (path / name).read_bytes() for name in names(path)} == before
    misnamed = tmp_path / "ort-fp32-00000000.onnx"
    misnamed.write_bytes(b"graph")
    with pytest.raises(ValueError, match="does not carry its content's hash"):
        write(path, tiny.contract(), ORT, [misnamed], "{}", None, FROM)


WRITER = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import runtime.bundle as bundle
import test_bundle_store
left = int(sys.argv[2])
replace = os.replace
def replace_or_die(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    replace(source, target)
os.replace = replace_or_die
test_bundle_store.store(Path(sys.argv[1]), content=b"newer", tokenizer="[]")
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_killed_writer_leaves_the_older_bundle_and_the_next_one_its_rest(renames: int, tmp_path: Path) -> None:
    path, root = tmp_path / "a.bundle", Path(__file__).parent.parent
    store(path)
    before = {name: (path / name).read_bytes() for name in names(path)}
    script = WRITER.format(paths=[str(root / path) for path in (".", "tests", "tests/support")])
    done = subprocess.run([sys.executable, "-c", script, str(path), str(renames)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert before.items() <= {name: (path / name).read_bytes() for name in names(path)}.items()
    # What it had moved, and what it had written to move it next; the engine's file comes from outside as it is.
    assert len(names(path)) == len(before) + renames + (renames > 0)
    verify_files(read(path), read(path).find_engine(), "always")
    store(path, content=b"newest")
    assert len(names(path)) == 3


def test_what_another_command_staged_in_a_bundle_keeps_no_export_out(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    store(path)
    staged = path / ".report.json.part"  # of a killed `train evaluate --out a.bundle/report.json`
    staged.mkdir()
    (staged / "half").write_text("{")
    store(path, content=b"newer")
    assert not staged.exists() and len(names(path)) == 3


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    store(path)
    held = os.open(path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    writers = [
        threading.Thread(target=store, args=(path, replace(ORT, name=f"ort-{i}", precision=str(i)), b"%d" % i))
        for i in range(4)
    ]
    for writer in writers:
        writer.start()
    writers[0].join(0.3)
    assert all(writer.is_alive() for writer in writers) and len(read(path).engines) == 1
    os.close(held)
    for writer in writers:
        writer.join()
    assert sorted(engine.name for engine in read(path).engines) == ["ort-0", "ort-1", "ort-2", "ort-3", "ort-fp32"]


def _engine(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["engines"][0].update(changes)


SHA = "0" * 64
BOUNDS = {"log_prob": 1.0}
REFERENCE = {
    "file": "a.npz", "sha256": SHA, "bounds": BOUNDS, "first_load": 1, "first_load_bounds": BOUNDS
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(format=3), "has format 3; this version reads formats up to 2"),
        (lambda m: m.update(color="red"), "manifest has unknown keys color"),
        (lambda m: m.pop("format"), "manifest lacks format"),
        (lambda m: (m.update(format=1), _engine(reference=REFERENCE)(m)), "has format 1, which has no reference, but"),
        (lambda m: m.pop("tokenizer"), "manifest lacks tokenizer"),
        (lambda m: m.update(contract=[]), "contract is list"),
        (lambda m: m["contract"].update(block=0), "contract.block is 0"),
        (lambda m: m["contract"].update(top_k=24), "contract.top_k is 24, not below the vocabulary of 24"),
        (lambda m: m.update(engines=[]), "not a list of at least one engine"),
        (lambda m: m.update(engines={}), "not a list of at least one engine"),
        (lambda m: m["engines"].append(m["engines"][0]), "two engines of one name"),
        (lambda m: m.update(provenance=None), "manifest.provenance"),
        (lambda m: m.update(chat_template={}), "manifest.chat_template lacks file, sha256"),
        (lambda m: m.update(tokenizer={"file": "missing.json", "sha256": "0"}), "expected 64 hexadecimal digits"),
        (lambda m: m.update(chat_template={"file": "missing.jinja", "sha256": SHA}), "missing.jinja is missing"),
        (_engine(color="red"), "manifest.engines has unknown keys color"),
        (_engine(name=""), "name is ''"),
        (_engine(precision=16), "precision is 16"),
        (_engine(gate={"rule": "luck"}), "gate.rule is 'luck'"),
        (_engine(parity=1), "files and parity"),
        (_engine(model="other.onnx"), "model 'other.onnx' is not among its files"),
        (_engine(model="../a", files={"../a": SHA}), "'../a' is not a plain file name"),
        (_engine(model="/etc/passwd", files={"/etc/passwd": SHA}), "is not a plain file name"),
        (_engine(model="a/b", files={"a/b": SHA}), "'a/b' is not a plain file name"),
        (_engine(model="a\\b", files={"a\\b": SHA}), "is not a plain file name"),
        (_engine(model="..", files={"..": SHA}), "'..' is not a plain file name"),
        (_engine(model=".a", files={".a": SHA}), "'.a' is not a plain file name"),
        (_engine(model="a\n", files={"a\n": SHA}), "expected a text that can be printed"),
        (_engine(files={"a\n": SHA}), "'a\\n' is not a plain file name"),
        (_engine(model=["a"]), "model is ['a']"),
        (_engine(name="\x1b]0;mine\x07"), "expected a text that can be printed"),
        (_engine(model="a.ort", files={"a.ort": SHA}), "model 'a.ort' is not a .onnx file"),
        (_engine(gate={"threshold": 1.5}), "threshold 1.5 is outside [0, 1] of confidence"),
        (lambda m: m["contract"].update(layers=10**9), "contract.layers is 1000000000; expected a whole number from 1"),
        (lambda m: m["contract"].update(gate={"rule": "factor", "threshold": 10**400}), "gate.threshold is 1000"),
        (_engine(model="manifest.json", files={"manifest.json": SHA}), "is not a plain file name"),
    ],
)
def test_a_manifest_that_is_not_as_expected_is_refused(
    change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    path = store(tmp_path / "a.bundle").path
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError) as error:
        read(path)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("[]", "manifest is list"),
        ('{"format": 1, "format": 1}', "'format' occurs twice"),
        ('{"format": 1, "contract": {"block": 4, "block": 8}}', "'block' occurs twice"),
        ('{"format": NaN}', "NaN is not a finite number"),
        ("[" * 100_000, "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_manifest_that_is_not_json_as_written_here_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=told):
        read(tmp_path)


def test_no_bundle_is_told_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no bundle at .*blockstep export onnx"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("which", ["model", "tokenizer"])
def test_damage_is_found_and_named(which: str, tmp_path: Path) -> None:
    made = store(tmp_path / "a.bundle")
    file = made.path / made.find_engine().model if which == "model" else made.tokenizer
    verify_files(made, made.find_engine())
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    for policy in ("first", "always"):
        with pytest.raises(UserError, match=f"{file.name} is damaged"):
            verify_files(made, made.find_engine(), policy)
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name} is missing"):
        verify_files(made, made.find_engine())
    (tmp_path / "elsewhere").write_bytes(bytes(content))
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{file.name} is damaged"):
        verify_files(made, made.find_engine())


def test_hashes_are_remembered_by_size_time_and_inode(tmp_path: Path, cache: Path) -> None:
    made = store(tmp_path / "a.bundle")
    file = made.path / made.find_engine().model
    verify_files(made, made.find_engine())
    assert str(file.resolve()) in json.loads(cache.read_text())
    before = file.stat()
    file.write_bytes(b"grapH")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    verify_files(made, made.find_engine())  # known, so not read: what remembering means
    with pytest.raises(UserError, match="damaged"):
        verify_files(made, made.find_engine(), "always")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(UserError, match="damaged"):
        verify_files(made, made.find_engine())
    with pytest.raises(UserError, match="verify is 'never'"):
        verify_files(made, made.find_engine(), "never")


@pytest.mark.parametrize("memory", ["", "[]", "{", '{"x": 1}'])
def test_a_memory_that_cannot_be_read_or_written_costs_only_time(memory: str, tmp_path: Path, cache: Path) -> None:
    made = store(tmp_path / "a.bundle")
    cache.write_text(memory)
    verify_files(made, made.find_engine())
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file where the folder should be")
    verify_files(made, made.find_engine())
    (made.path / made.find_engine().model).write_bytes(b"grapH")
    with pytest.raises(UserError, match="damaged"):
        verify_files(made, made.find_engine())


def test_names_carry_the_content() -> None:
    assert bundle.make_content_name("ort-fp32", ".onnx", "0123456789") == "ort-fp32-01234567.onnx"
