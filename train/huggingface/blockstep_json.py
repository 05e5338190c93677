"""Reads and writes `blockstep.json` of train.distill's directories: how the model is decoded, and the list of files.

A family's config.json has how the teacher is decoded, but no keys for a student's attention, block and gate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.text.chat_template import check_arguments
from train.checkpoint import Decoding
from train.storage.file_fields import check_fields

from .tokenizer_files import read_json

FILE, FORMAT = "blockstep.json", 1


@dataclass(frozen=True, slots=True)
class StudentFile:
    """The content of blockstep.json.

    family: the one whose config keys and tensor names the directory has. files: the names of all files.
    template_args: arguments of the chat template, as in training.
    """

    family: str
    decoding: Decoding
    files: tuple[str, ...]
    template_args: dict[str, Any]


def read(folder: Path) -> StudentFile | None:
    """Reads a directory's blockstep.json; None if it has none. Raises UserError if it is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {values.get('format')!r}; this version reads formats up to {FORMAT}; install the "
            "version that wrote it, or train it again: blockstep train distill"
        )
    family, decoding, files = (values.get(name) for name in ("family", "decoding", "files"))
    if not isinstance(family, str) or not isinstance(decoding, dict) or not isinstance(files, list):
        raise UserError(f"{path} lacks a family, a decoding or the files; write it again with blockstep train distill")
    arguments = check_arguments(values.get("template_args", {}))
    return StudentFile(family, Decoding(**check_fields(path, decoding, Decoding)), tuple(map(str, files)), arguments)


def write(folder: Path, family: str, decoding: Decoding, template_args: Mapping[str, Any]) -> None:
    """Writes a directory's blockstep.json; call it last, as it lists all files of the directory."""
    files = sorted([FILE, *(file.name for file in folder.iterdir())])
    values = {"format": FORMAT, "family": family, "decoding": decoding.as_dict(), "files": files}
    if template_args:
        values["template_args"] = dict(template_args)
    (folder / FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")
