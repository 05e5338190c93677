"""Writes `train.distill --out`: a student.pt, a Hugging Face directory, or with --lora-rank an adapter's directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from runtime import files
from runtime.errors import UserError

from .checkpoint import Checkpoint
from .huggingface import blockstep_json, directory_writer, peft_merge
from .huggingface.families import Overrides
from .huggingface.peft_train import LowRank, collect_pairs
from .huggingface.reader import read_settings, read_template_args
from .huggingface.weights import map_stored_names
from .storage import student_pt

LARGEST = 10**9  # maximum bytes of weights in a student.pt
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Output:
    """Where a student is written, and the checkpoint that it started from.

    teacher: path of that checkpoint, which may be --student, read with `overrides`. low_rank: the adapter that was
    trained; None if all weights were.
    """

    path: Path
    teacher: Path
    overrides: Overrides
    low_rank: LowRank | None
    dtype: torch.dtype

    def check(self, student: Checkpoint) -> None:
        """Raises UserError if the student cannot be written, before it is trained."""
        if files.resolve_path(self.path) == files.resolve_path(self.teacher):
            raise UserError(f"--out {self.path} is the teacher; give the student a path of its own")
        if self.path.suffix == ".pt":
            return self._check_file(student)
        directory_writer.check_directory_place(self.path)
        if self.low_rank is None:
            if not self.teacher.is_dir():
                directory_writer.choose_plain_family(student)
        elif not self.teacher.is_dir() or self.overrides.adapter is not None:
            what = "a .pt file" if not self.teacher.is_dir() else "a base with an adapter of its own"
            raise UserError(
                f"the teacher is {what}, which takes no further --adapter when it is read; give --out a path that ends "
                "in .pt for the merged student, or leave --lora-rank out"
            )

    def _check_file(self, student: Checkpoint) -> None:
        if self.path.is_dir():
            raise UserError(f"{self.path} is a directory; give --out the path of a file, or one without .pt")
        size = sum(tensor.numel() for tensor in student.weights.values()) * self.dtype.itemsize
        if size > LARGEST:
            raise UserError(
                f"{self.path} would hold {size / 1e9:.1f} GB; above {LARGEST / 1e9:g} GB a student is a Hugging Face "
                "directory: give --out a path without .pt"
            )

    def write(self, student: Checkpoint, trained: dict[str, Tensor]) -> None:
        """Writes the student with its `trained` weights: all of them, or the parameters of its adapter.

        The path's old content is replaced once the new one is complete. Raises UserError if it cannot be written.
        """
        if self.path.suffix != ".pt" and self.low_rank is not None:
            return directory_writer.replace_folder(
                self.path, lambda folder: self._write_adapter(folder, student, trained)
            )
        if self.low_rank is not None:
            trained = peft_merge.merge_pairs(student.weights, collect_pairs(trained), self.low_rank.scale)
        made = replace(student, weights=trained)
        if self.path.suffix == ".pt":
            return student_pt.save(made, self.path, self.dtype)
        directory_writer.replace_folder(
            self.path,
            lambda folder: directory_writer.write_directory(folder, made, self.teacher, self.overrides, self.dtype),
        )

    def _write_adapter(self, folder: Path, student: Checkpoint, trained: dict[str, Tensor]) -> None:
        assert self.low_rank is not None  # guaranteed by the caller
        family = read_settings(self.teacher, self.overrides).family
        names = map_stored_names(self.teacher, family.renames)
        peft_merge.write(folder, collect_pairs(trained), self.low_rank.alpha, names, self.teacher)
        arguments = read_template_args(self.teacher, self.overrides)
        blockstep_json.write(folder, family.name, student.decoding, arguments)
