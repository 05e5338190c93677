"""Where an export is built before it is kept: a folder beside the bundle, and the room that its disk has."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import UserError

SPARE = 64 << 20  # bytes beside the weights: the graph, the tokenizer, parts of the graph while it is proved


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises UserError where what is done in it cannot write the bundle at `out`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give --out another path") from None


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """A folder on the bundle's own disk, so that what is built there is moved into the bundle and not copied.

    It is gone afterwards; what a killed export left in it is removed first. Raises UserError where nothing can be
    written beside `out`, or another export to it is running.
    """
    whole = out.resolve()
    folder = whole.with_name(f".{whole.name}.part")
    with writing(out):
        handle = _taken(out, folder)
    try:
        with writing(out):
            for left in folder.iterdir():
                left.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _taken(out: Path, folder: Path) -> int:
    """A handle of the folder, which is made where there is none, with its lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists() and os.fstat(handle).st_ino == folder.stat().st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            raise UserError(f"another export to {out} is running; wait for it, or give --out another path") from None
        os.close(handle)  # the export before ended and took its folder away


def check_room(folder: Path, size: int) -> None:
    """Raises UserError where the disk of `folder` has no room for that many bytes of weights."""
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise UserError(
            f"{folder.parent} has {free / 1e9:.1f} GB free and the export takes {(size + SPARE) / 1e9:.1f} GB; free "
            "some, or give --out on another disk"
        )
