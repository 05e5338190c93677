"""Swaps the names of two folders in one step, if the system can, so that neither name is ever missing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2)


def swap(one: Path, other: Path) -> bool:
    """Swaps the names of two folders; returns False if the system or the file system cannot do it in one step.

    Raises OSError if it can, but fails.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # only Linux has it, with glibc 2.28 or newer
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # as NFS reports that it cannot
        return False
    raise OSError(code, os.strerror(code), str(other))
