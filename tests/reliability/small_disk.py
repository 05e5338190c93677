"""A real disk that is nearly full: a tmpfs of its own for one process, where it may mount one."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000
FILLER = ".filler"


def mount(folder: Path, size: int) -> None:
    """Gives `folder` a file system of so many bytes, seen by this process and its children alone; PermissionError."""
    libc = ctypes.CDLL(None, use_errno=True)
    steps: tuple[Callable[[], int], ...] = (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=%d" % size),
    )
    for step in steps:
        if step() != 0:
            raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def with_room(folder: Path, before: Path, free: int, main: Callable[[], int]) -> int:
    """Runs `main` where `folder` holds a copy of `before` and has `free` bytes left, in whole pages of 4,096.

    Afterwards all of its 96 MiB are free: an export asks for 64.
    """
    mount(folder, 96 << 20)
    shutil.copytree(before, folder, dirs_exist_ok=True)
    filler = folder / FILLER
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - free)
    try:
        return main()
    finally:
        filler.unlink()


def possible(folder: Path) -> bool:
    """Whether this process may mount one."""
    process = os.fork()
    if process == 0:
        try:
            mount(folder, 4096)
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0
