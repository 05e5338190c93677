"""Folders with one lock, let go of with its process: bundles, and where things are written before they are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def workplace(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, locked, and gone afterwards with all that is still in it.

    It is always the same one, `.NAME.part`, so that nothing stays of what a killed run left there. Raises
    BlockingIOError where another run has it, OSError where it cannot be made.
    """
    folder = _beside(path)
    handle = taken(folder, wait=False)
    try:
        for left in folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep(path: Path) -> None:
    """Removes what a killed run left beside a `path` that is whole, unless another run is at it."""
    if _beside(path).exists():
        with suppress(OSError), workplace(path):
            pass


def taken(folder: Path, *, wait: bool) -> int:
    """A handle of `folder`, made where there is none, with its one lock; closing it lets go.

    Whoever has it may remove the folder: the next one makes it anew. Raises BlockingIOError where another handle has
    the lock and `wait` is not set, OSError where the folder cannot be made.
    """
    import fcntl  # not on every system, and only writers need it

    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(handle)
            raise
        if _stands(handle, folder):
            return handle
        os.close(handle)  # who had it before has taken it away


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _stands(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False
