"""Two folders change names in one step, where the system can: no moment at which one of the names is missing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2)


def swap(one: Path, other: Path) -> bool:
    """Whether the two have changed names; False where this system or the folders' file system knows no such step.

    Raises OSError where it does and refuses.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # Linux has it, with glibc from 2.28 on
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # as NFS says it
        return False
    raise OSError(code, os.strerror(code), str(other))
