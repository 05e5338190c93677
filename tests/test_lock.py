"""Where things are written before they are kept: one folder beside each, one writer at a time, nothing that stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.lock import sweep, workplace
from train.checkpoint import check_file, replace_file, writing


def test_a_workplace_is_empty_and_gone_afterwards(tmp_path: Path) -> None:
    left = tmp_path / "new" / ".student.pt.part"
    (left / "folder").mkdir(parents=True)
    (left / "folder" / "file").write_bytes(b"what a killed run left")
    (left / "link").symlink_to(tmp_path)
    with workplace(tmp_path / "new" / "student.pt") as folder:
        assert folder == left and not list(folder.iterdir())
        (folder / "weights").write_bytes(b"half")
    assert not left.exists() and tmp_path.is_dir()


def test_one_writer_at_a_time_and_the_other_is_told(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    with writing(path) as mine:
        mine.write_bytes(b"half")
        for write in (lambda: replace_file(path, Path.touch), lambda: check_file(path)):
            with pytest.raises(UserError, match=r"student\.pt is being written by another run; wait, or give"):
                write()
        sweep(path)
        assert mine.read_bytes() == b"half"
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_beside_a_whole_file_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(b"whole")
    sweep(path)
    (tmp_path / ".shard-00000.safetensors.part").mkdir()
    (tmp_path / ".shard-00000.safetensors.part" / ".tmpAbCdEf").write_bytes(b"half")
    sweep(path)
    assert [file.name for file in tmp_path.iterdir()] == ["shard-00000.safetensors"]


def test_what_a_writer_leaves_beside_its_file_goes_too(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        (temporary.parent / ".tmpAbCdEf").write_bytes(b"as safetensors does before it renames")
        temporary.write_bytes(b"whole")

    replace_file(tmp_path / "a.safetensors", write)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
