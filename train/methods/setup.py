"""Defines the inputs of a method's loss: the student in training, its teacher, trajectories and examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from runtime.contract import Contract
from train.data.batches import Stream
from train.data.trajectories import Trajectory
from train.huggingface import peft_train
from train.transformer.network import Transformer


@dataclass(frozen=True, slots=True)
class Teacher:
    """Holds a frozen teacher.

    has_adapter: whether `model` is the student, which without its low-rank adapter is the teacher.
    """

    model: Transformer
    contract: Contract
    has_adapter: bool

    @contextmanager
    def activate(self) -> Iterator[Transformer]:
        """Disables gradients and the student's adapter for the duration of the block; yields the teacher."""
        with torch.no_grad():
            if not self.has_adapter:
                yield self.model
                return
            with peft_train.disable_adapters(self.model):
                yield self.model


@dataclass(frozen=True, slots=True)
class MethodInputs:
    """Holds the method inputs of a distillation.

    Attributes:
        model: the student.
        run: the student's forward pass, which may be compiled.
        contract: the student's.
        teacher: builds the teacher, so that it is in memory only if the method needs it.
        trajectories: the teacher's, empty if the method needs none.
        stream: examples of ground truth.
        steps: the number of updates.
    """

    model: Transformer
    run: torch.nn.Module
    contract: Contract
    teacher: Callable[[], Teacher]
    trajectories: Sequence[Trajectory]
    stream: Stream
    steps: int

    def make_generator(self, step: int) -> torch.Generator:
        """Returns the random generator of a step, the same on every call."""
        return torch.Generator().manual_seed(self.stream.seed * 1_000_003 + step)

    def compute_least_length(self) -> int:
        """Returns the length to which some batches are padded: the canvas of a `full` model, else 0."""
        return 0 if self.contract.has_cache else self.contract.canvas
