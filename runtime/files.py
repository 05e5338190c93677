"""Writes files wholly or not at all, by locked staging directories and flushed renames.

Some network and FUSE file systems lack locks or flushing: there the work goes on without them, after one warning.
Renames are required: a file that cannot be renamed is not written.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import warn_once

# Error codes of file systems that cannot fsync files or folders; any other code means that an fsync failed.
UNKNOWN = {
    errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EBADF, errno.EISDIR,
    errno.ENOTTY,
}  # fmt: skip
REPOSITORY = "models--"  # begins the name of a model's folder in a Hugging Face cache, models--OWNER--NAME


@contextmanager
def stage(path: Path) -> Iterator[Path]:
    """Yields an empty, locked folder next to `path`, and removes it afterwards with all that is still in it.

    The folder is always `.NAME.part`, so that the next run clears what a killed run left there. On a file system
    without locks it gets a unique name, since another run may be at work. Raises BlockingIOError if another run holds
    the lock, OSError if the folder cannot be made, or if `path` is a device or a pipe.
    """
    _refuse_special(path)
    folder = _name_staging(path)
    with hold_lock(folder, wait=False) as alone:
        if alone:
            _clear(folder)
        else:
            with suppress(OSError):  # a folder that is not empty stays: it may be another run's
                folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(path: Path) -> None:
    """Removes the staging directory that a killed run left next to `path`, unless another run is using it."""
    if _name_staging(path).exists():
        with suppress(OSError), stage(path):
            pass


@contextmanager
def hold_lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Holds an exclusive lock on `folder`, which is made if it is missing, while the context is open.

    Yields whether it is locked: False if the file system has no locks. The holder may remove the folder: the next
    holder makes it again. Raises BlockingIOError if another handle has the lock and `wait` is False, OSError if the
    folder cannot be made.
    """
    handle = None
    while handle is None:
        folder.mkdir(parents=True, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY)
        try:
            alone = _lock(opened, folder, wait)
            if not alone or _is_at(opened, folder):
                handle = opened
        finally:
            if handle is None:  # the lock was refused, or its earlier holder has removed the folder
                os.close(opened)
    try:
        yield alone
    finally:
        os.close(handle)


def move(source: Path, target: Path) -> None:
    """Flushes a file to the disk, renames it, and flushes its new name; replaces a link at `target`, not its file."""
    flush(source)
    os.replace(source, target)
    flush(target.parent)


def write_whole(target: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Writes a file next to `target` and moves it there, so that `target` is never half-written.

    Args:
        durable: whether to wait until the file is on the disk; False for what is made again at no cost.

    Raises:
        OSError: if the file cannot be written, or if `target` is a device or a pipe.
    """
    _refuse_special(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        write(temporary)
        if durable:
            move(temporary, target)
        else:
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk. Raises OSError if writing them has failed."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        warn_once(
            "flush", f"{path} cannot be flushed to the disk ({error.strerror}); a power cut may lose what was written"
        )


def flush_tree(folder: Path) -> None:
    """Flushes everything in a folder to the disk, the folder itself last."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(place, name))
        flush(Path(place))


def resolve_path(path: Path) -> Path:
    """Resolves links; one that leads to itself is returned as it is, and Path.resolve raises before Python 3.13."""
    return Path(os.path.realpath(path))


def resolve_name(path: Path) -> Path:
    """Returns the path, resolved if it does not end in a name, as `.` and `..` do not."""
    return resolve_path(path) if path.name in ("", "..") else path


def name_of(path: Path) -> str:
    """Returns the name of the model in a folder: the folder's name, or in a Hugging Face cache the repository's."""
    path = resolve_name(path).absolute()
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith(REPOSITORY):  # the folder's name is a commit's hash
        return repository.split("--")[-1]
    return path.name


def is_in_cache(path: Path) -> bool:
    """Returns whether a path is in a folder that users do not look into, such as the Hugging Face cache."""
    return any(part == ".cache" or part.startswith(REPOSITORY) for part in path.absolute().parts[:-1])


def _refuse_special(path: Path) -> None:
    """Raises OSError for a device or a pipe: a rename to /dev/null would replace that device for the whole machine."""
    inside = path.absolute().parent == Path("/dev")  # links there, such as stdout, may lead to a plain file
    if inside or (path.exists() and not path.is_file() and not path.is_dir()):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))


def _clear(folder: Path) -> None:
    for left in folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def _lock(handle: int, folder: Path, wait: bool) -> bool:
    try:
        import fcntl  # missing on some systems

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except (ImportError, OSError) as error:  # ENOSYS, ENOLCK, EOPNOTSUPP, and EBADF for a folder on NFS
        reason = getattr(error, "strerror", None) or "this system has none"
        warn_once("lock", f"{folder.parent} has no file locks ({reason}); let no two runs write to one place at a time")
        return False
    return True


def _name_staging(path: Path) -> Path:
    """Returns the path of the staging directory for `path`, in the same folder."""
    path = resolve_name(path)
    return path.with_name(f".{path.name}.part")


def _is_at(handle: int, folder: Path) -> bool:
    """Returns whether an open folder is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False
