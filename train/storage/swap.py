"""Swaps the names of two folders in one step, if the system can: at no moment is one of the names missing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2)


def swap(one: Path, other: Path) -> bool:
    """Swaps the two; returns False if this system or the folders' file system has no such step.

    Raises OSError if it has and refuses.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # Linux has it, with glibc from 2.28 on
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # NFS reports it so
        return False
    raise OSError(code, os.strerror(code), str(other))
