"""Writes commands' output files, whole or not at all; an obstacle is reported in one line, for the user to remove."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from runtime import files
from runtime.errors import UserError


def check_file(path: Path) -> None:
    """Raises UserError if `replace_file` could not write there; call it before the hours of work that make the file."""
    with writing(path) as temporary:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary.touch()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file next to `path` and moves it there in one rename, so that `path` is never half-written.

    Raises UserError if that fails, or if another process is writing there.
    """
    with writing(path) as temporary:
        write(temporary)
        files.move(temporary, path)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a path of that name in an empty folder next to `path`, see `runtime.files.stage`.

    Raises UserError if nothing can be written there, also for an error in the block.
    """
    try:
        with files.stage(path) as folder:
            yield folder / path.name
    except BlockingIOError:
        raise UserError(f"{path} is being written by another run; wait, or give --out another path") from None
    except (OSError, SafetensorError) as error:  # the latter is how that library reports a full disk
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path} cannot be written ({reason}); correct that and run the command again") from None
