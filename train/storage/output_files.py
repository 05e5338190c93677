"""Writes commands' output files, whole or not at all; reports in one line what prevents that."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from runtime import files
from runtime.errors import UserError, describe_error


def check_file(path: Path) -> None:
    """Raises UserError if `replace_file` could not write there; call it before the work that makes the file."""
    with stage_file(path) as temporary:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary.touch()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file next to `path` and renames it to `path`, so that `path` is never half-written.

    Raises UserError if that fails, or if another process is writing to `path`.
    """
    with stage_file(path) as temporary:
        write(temporary)
        files.move(temporary, path)


@contextmanager
def stage_file(path: Path) -> Iterator[Path]:
    """Yields a path with the name of `path`, in an empty folder next to it, see `runtime.files.stage`.

    Raises UserError if nothing can be written there, also if that is found in the `with` block.
    """
    try:
        with files.stage(path) as folder:
            yield folder / path.name
    except BlockingIOError:
        raise UserError(f"{path} is being written by another run; wait, or give --out another path") from None
    except (OSError, SafetensorError) as error:  # SafetensorError is how that library reports a full disk
        reason = getattr(error, "strerror", None) or describe_error(error)
        raise UserError(f"{path} cannot be written ({reason}); correct that and run the command again") from None
