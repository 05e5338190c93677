"""A disk that is full, or an output that takes no more: one line, the older file whole, nothing left behind."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from pupils import make_teacher

from runtime.bundle import store
from runtime.contract import GateSpec
from runtime.errors import UserError
from train.huggingface import directory_writer
from train.huggingface.families import Overrides
from train.open_checkpoint import load
from train.storage.student_pt import save

ROOT = Path(__file__).parent.parent


@contextmanager
def room(size: int) -> Iterator[None]:
    """Bytes that a file may have, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_checkpoint_wherever_the_disk_fills_up(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    save(tiny.checkpoint(), path)
    before = path.read_bytes()
    for size in range(0, len(before), len(before) // 40):  # torch tells it in another way in its last bytes
        with pytest.raises(UserError, match=r"student.pt cannot be written \(File too large\)"), room(size):
            save(tiny.checkpoint(2), path)  # of the same shape
        assert path.read_bytes() == before and names(tmp_path) == ["student.pt"]


def test_a_students_directory_wherever_the_disk_fills_up(tmp_path: Path) -> None:
    out, student = tmp_path / "student", make_teacher(16, 0)

    def write(folder: Path) -> None:
        directory_writer.write_directory(folder, student, tmp_path / "teacher.pt", Overrides(), torch.float32)

    directory_writer.replace_folder(out, write)
    before = load(out).weights["norm.weight"]
    largest = max(file.stat().st_size for file in out.iterdir())
    for size in range(0, largest, largest // 4):
        told = (
            r"^[^\n]*student cannot be written \([^\n]*File too large[^\n]*\); correct that and run the command again$"
        )
        with pytest.raises(UserError, match=told), room(size):
            directory_writer.replace_folder(out, write)
        assert names(tmp_path) == ["student"]
    assert (load(out).weights["norm.weight"] == before).all()


def test_a_gate_that_cannot_be_written_leaves_the_manifest(tmp_path: Path) -> None:
    file = tmp_path / store.make_content_name("ort-fp32", ".onnx", hashlib.sha256(b"graph").hexdigest())
    file.write_bytes(b"graph")
    engine = store.Engine("ort-fp32", "ort", "fp32", "cpu", None, file.name, {}, {})
    made = store.write(tmp_path / "a.bundle", tiny.contract(), engine, [file], "{}", None, {})
    before = names(made.path)
    with pytest.raises(OSError, match="File too large"), room(100):
        store.set_gate(made.path, "ort-fp32", GateSpec(threshold=0.7))
    assert names(made.path) == before and store.read(made.path) == made


COMMAND = """
import sys
from runtime.cli import run
def command():
    {does}
    return 0
sys.exit(run(command))
"""


@pytest.mark.parametrize(
    ("does", "streams", "told"),
    [
        ("print('answer')", ("full", "pipe"), "error: the output cannot be read or written (No space left on device)"),
        ("print('answer')", ("full", "full"), ""),
        ("print('naïve')", ("pipe", "pipe"), "error: the output's encoding ascii has no '\\xef'; set PYTHONIOENCODING"),
        ("open('/dev/null/x')", ("pipe", "pipe"), "error: /dev/null/x cannot be read or written (Not a directory)"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_the_system_refuses_is_told_in_one_line(
    unbuffered: str, does: str, streams: tuple[str, str], told: str
) -> None:
    with open("/dev/full", "w") as full:
        out, err = (full if stream == "full" else subprocess.PIPE for stream in streams)
        line = [sys.executable, "-c", COMMAND.format(does=does)]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(line, cwd=ROOT, stdout=out, stderr=err, env=environment, text=True, check=False)
    assert done.returncode == 2
    assert (done.stderr or "").startswith(told) and (done.stderr or "").count("\n") == bool(told)
