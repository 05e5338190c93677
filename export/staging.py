"""Makes the staging directory of an export, next to the bundle, and checks the free disk space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from runtime import files
from runtime.errors import UserError

SPARE = 64 << 20  # bytes needed besides the weights: for graph, tokenizer, and parts of the graph while it is proved


@contextmanager
def report_write_errors(out: Path) -> Iterator[None]:
    """Raises UserError if the body of the `with` cannot write the bundle at `out`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give --out another path") from None


@contextmanager
def make_working_folder(out: Path) -> Iterator[Path]:
    """Yields a staging directory on the bundle's disk, so that files are moved into the bundle and not copied.

    See `runtime.files.stage`. Raises UserError if nothing can be written next to `out`, or if another export to `out`
    is running.
    """
    with ExitStack() as held:
        with report_write_errors(out):
            try:
                folder = held.enter_context(files.stage(files.resolve_path(out)))
            except BlockingIOError:
                raise UserError(f"another export to {out} is running; wait, or give --out another path") from None
        yield folder


def check_disk_space(folder: Path, size: int) -> None:
    """Raises UserError if the disk of `folder` has no room for `size` bytes of weights and SPARE more."""
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise UserError(
            f"{folder.parent} has {free / 1e9:.1f} GB free and the export takes {(size + SPARE) / 1e9:.1f} GB; free "
            "some, or give --out on another disk"
        )
