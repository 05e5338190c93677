"""The inputs of a method's loss: the student in training, its teacher, and their predictions."""

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
    """A frozen teacher. adapted: `model` is the student; without its low-rank adapter it is the teacher."""

    model: Transformer
    contract: Contract
    adapted: bool

    @contextmanager
    def speaking(self) -> Iterator[Transformer]:
        """Yields the teacher's own weights, without gradients."""
        with torch.no_grad():
            if not self.adapted:
                yield self.model
                return
            with peft_train.left_out(self.model):
                yield self.model


@dataclass(frozen=True, slots=True)
class Lesson:
    """The method inputs of a distillation.

    model, contract: the student's; run: its forward pass, which may be compiled; teacher: makes the teacher, which is
    in memory only if a method calls this; found: the teacher's trajectories, none if the method needs none; stream:
    examples of ground truth; steps: updates in all.
    """

    model: Transformer
    run: torch.nn.Module
    contract: Contract
    teacher: Callable[[], Teacher]
    found: Sequence[Trajectory]
    stream: Stream
    steps: int

    def generator(self, step: int) -> torch.Generator:
        """Returns the random generator of a step, the same on every call."""
        return torch.Generator().manual_seed(self.stream.seed * 1_000_003 + step)

    def least(self) -> int:
        """Returns the least length that answers are sometimes filled up to: a `full` model decodes its whole canvas."""
        return 0 if self.contract.has_cache else self.contract.canvas
