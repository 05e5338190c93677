"""Where an export is built: beside its bundle, one at a time, with room on the disk, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from export.staging import check_disk_space, make_working_folder
from runtime.bundle import store
from runtime.errors import UserError


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    check_disk_space(tmp_path, 9 * 10**8)
    with pytest.raises(UserError, match=r"has 1\.0 GB free and the export takes 2\.1 GB"):
        check_disk_space(tmp_path, 2 * 10**9)


def test_an_export_works_beside_its_bundle_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "a.bundle"
    with make_working_folder(out) as folder:
        assert folder.parent == out.parent
        (folder / "weights.data").write_bytes(b"half")
        with pytest.raises(UserError, match=r"another export to .* is running"), make_working_folder(out):
            pass
        assert (folder / "weights.data").exists()
    assert not folder.exists()
    folder.mkdir()
    (folder / "weights.data").write_bytes(b"what a killed export left")
    with make_working_folder(out) as again:
        assert again == folder and not list(again.iterdir())


def test_a_folder_that_the_export_before_takes_away_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, locks = tmp_path / "a.bundle", list[int]()

    def late(handle: int, how: int) -> None:
        locks.append(handle)
        if len(locks) == 1:
            (tmp_path / ".a.bundle.part").rmdir()  # between this one's opening it and its lock

    monkeypatch.setattr("fcntl.flock", late)
    with make_working_folder(out) as folder:
        (folder / "weights.data").write_bytes(b"whole")
    assert len(locks) == 2 and not list(tmp_path.iterdir())


def test_files_are_moved_into_the_bundle_and_not_copied(tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(b"graph")
    file = plain.rename(tmp_path / store.make_content_name("ort-fp32", ".onnx", store.hash_file(plain)))
    before = file.stat().st_ino
    engine = store.Engine("ort-fp32", "ort", "fp32", "cpu", None, file.name, {}, {})
    made = store.write(tmp_path / "a.bundle", tiny.contract(), engine, [file], "{}", None, {})
    assert (made.path / file.name).stat().st_ino == before and not file.exists()
