"""Opens checkpoints, a student.pt or a Hugging Face directory, without running code from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime.bundle.store import hash_file
from runtime.errors import UserError
from runtime.text.chat_template import add_arguments

from .checkpoint import Checkpoint
from .huggingface import reader
from .huggingface.families import Overrides
from .storage import student_pt


def load(path: Path, overrides: Overrides | None = None) -> Checkpoint:
    """Reads a checkpoint: a file of train.*, or a Hugging Face directory, whose values `overrides` may replace.

    Raises UserError for anything else.
    """
    if path.is_dir():
        saved = reader.load_directory(path, overrides or Overrides())
    else:
        if path.is_file():  # a missing path is reported as missing
            _refuse(overrides, path)
        saved = student_pt.read(path)
    if overrides is None or not overrides.template_args:
        return saved
    return replace(saved, chat_template=add_arguments(saved.chat_template, overrides.template_args))


def _refuse(overrides: Overrides | None, path: Path) -> None:
    """Raises UserError for overrides of values that a student.pt stores."""
    names = (name for name in Overrides.__slots__ if name != "template_args")
    if given := [name for name in names if getattr(overrides, name, None) is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(
            f"{option} was given with {path}, which defines that itself; it is for a Hugging Face directory"
        )


def compute_fingerprint(path: Path, overrides: Overrides | None = None) -> str:
    """Returns a checkpoint's fingerprint: a file's sha256, or a sha256 over all files that are read in a directory."""
    if path.is_dir():
        return reader.compute_fingerprint(path, overrides.adapter if overrides else None)
    return hash_file(path)
