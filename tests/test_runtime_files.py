"""Where things are written before they are kept: one folder beside each, one writer at a time, nothing that stays."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path

import pytest
import tiny

from runtime import errors, files
from runtime.bundle import store
from runtime.errors import UserError
from runtime.files import stage, sweep
from train.huggingface.directory_writer import replace_folder
from train.storage.output_files import check_file, replace_file, stage_file
from train.trainer.resume import make_path

GRAPH = store.make_content_name("ort-fp32", ".onnx", hashlib.sha256(b"graph").hexdigest())
ENGINE = store.Engine("ort-fp32", "ort", "fp32", "cpu", None, GRAPH, {}, {})


def graph(folder: Path) -> Path:
    (folder / GRAPH).write_bytes(b"graph")
    return folder / GRAPH


def test_a_staging_folder_is_empty_and_gone_afterwards(tmp_path: Path) -> None:
    left = tmp_path / "new" / ".student.pt.part"
    (left / "folder").mkdir(parents=True)
    (left / "folder" / "file").write_bytes(b"what a killed run left")
    (left / "link").symlink_to(tmp_path)
    with stage(tmp_path / "new" / "student.pt") as folder:
        assert folder == left and not list(folder.iterdir())
        (folder / "weights").write_bytes(b"half")
    assert not left.exists() and tmp_path.is_dir()


def test_one_writer_at_a_time_and_the_other_is_told(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    with stage_file(path) as mine:
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


def refusing(monkeypatch: pytest.MonkeyPatch, call: str, code: int, folders_only: bool = False) -> None:
    """Makes a system call answer as a file system does that does not know it."""
    plain = {"flock": fcntl.flock, "fsync": os.fsync}[call]

    def refuse(handle: int, *more: int) -> None:
        if folders_only and not stat.S_ISDIR(os.fstat(handle).st_mode):
            return plain(handle, *more)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr({"flock": "fcntl.flock", "fsync": "os.fsync"}[call], refuse)
    monkeypatch.setattr(errors, "_warned", set())


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL])
def test_without_locks_the_work_goes_on_and_one_warning_says_so(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing(monkeypatch, "flock", code)
    for name in ("a.pt", "b.pt"):
        check_file(tmp_path / name)
        replace_file(tmp_path / name, lambda temporary: temporary.write_bytes(b"whole"))
    made = store.write(tmp_path / "c.bundle", tiny.contract(), ENGINE, [graph(tmp_path)], "{}", None, {})
    assert store.read(made.path) == made
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt", "b.pt", "c.bundle"]
    told = capsys.readouterr().err
    assert told.startswith("warning: ") and told.count("\n") == 1 and os.strerror(code) in told


def test_without_locks_two_runs_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "flock", errno.ENOSYS)
    (tmp_path / ".a.pt.part").mkdir()
    (tmp_path / ".a.pt.part" / "weights").write_bytes(b"of a run on another machine")
    with stage(tmp_path / "a.pt") as one, stage(tmp_path / "a.pt") as other:
        assert len({one, other, tmp_path / ".a.pt.part"}) == 3 and not [*one.iterdir(), *other.iterdir()]
    sweep(tmp_path / "a.pt")
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == [".a.pt.part", ".a.pt.part/weights"]


@pytest.mark.parametrize("folders_only", [True, False])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EBADF])
def test_what_cannot_be_flushed_is_written_all_the_same(
    code: int, folders_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing(monkeypatch, "fsync", code, folders_only)
    replace_file(tmp_path / "a.pt", lambda temporary: temporary.write_bytes(b"whole"))
    replace_folder(tmp_path / "model", lambda folder: (folder / "blockstep.json").touch())
    made = store.write(tmp_path / "c.bundle", tiny.contract(), ENGINE, [graph(tmp_path)], "{}", None, {})
    assert store.read(made.path) == made and (tmp_path / "a.pt").read_bytes() == b"whole"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt", "c.bundle", "model"]
    told = capsys.readouterr().err
    assert told.startswith("warning: ") and told.count("\n") == 1 and os.strerror(code) in told


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_fails_to_be_flushed_is_an_error(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(b"older")
    refusing(monkeypatch, "fsync", code)
    with pytest.raises(UserError, match=os.strerror(code)):
        replace_file(tmp_path / "a.pt", lambda temporary: temporary.write_bytes(b"newer"))
    assert (tmp_path / "a.pt").read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1


def test_a_path_without_a_name_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    for path in (".", "..", "../sub/.."):
        with pytest.raises(UserError, match="cannot be written"):
            check_file(Path(path))
    assert make_path(Path(".")) == tmp_path / "sub.resume"
    assert not list((tmp_path / "sub").iterdir()) and len(list(tmp_path.iterdir())) == 1


def test_a_link_that_leads_to_itself_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "itself").symlink_to("itself")
    with pytest.raises(UserError, match="cannot be written"):
        replace_folder(tmp_path / "itself", lambda folder: (folder / "file").touch())
    assert [file.name for file in tmp_path.iterdir()] == ["itself"]


def test_a_model_has_its_repositorys_name_in_a_hugging_face_cache() -> None:
    assert files.name_of(Path("/hub/models--org--student-2.5.bundle/snapshots/0a1b")) == "student-2.5.bundle"
    assert files.name_of(Path("a/snapshots/0a1b")) == "0a1b"


@pytest.mark.parametrize("name", ["pipe", "device"])
def test_a_device_or_a_pipe_is_never_replaced(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(os.devnull)
    before = os.lstat(tmp_path / name)
    for write in (
        lambda: files.write_whole(tmp_path / name, lambda temporary: temporary.write_bytes(b"")),
        lambda: files.stage(tmp_path / name).__enter__(),
    ):
        with pytest.raises(OSError, match="a device or a pipe"):
            write()
    assert os.lstat(tmp_path / name).st_ino == before.st_ino
