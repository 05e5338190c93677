"""What a method's loss is made of: the student in training, its teacher, and what both are asked."""

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
    """A frozen teacher. adapted: `model` is the student, which without its low-rank adapter is the teacher."""

    model: Transformer
    contract: Contract
    adapted: bool

    @contextmanager
    def speaking(self) -> Iterator[Transformer]:
        """The teacher's own weights, without gradients."""
        with torch.no_grad():
            if not self.adapted:
                yield self.model
                return
            with peft_train.left_out(self.model):
                yield self.model


@dataclass(frozen=True, slots=True)
class Lesson:
    """One distillation.

    model, contract: the student's; run: its forward, which may be compiled; teacher: makes the teacher, which stays in
    memory only where a method asks for it; found: the teacher's trajectories, none where the method needs none; stream:
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
        """The chance of a step, the same whenever it is asked."""
        return torch.Generator().manual_seed(self.stream.seed * 1_000_003 + step)

    def least(self) -> int:
        """To how many tokens answers are filled up at times: a `full` model decodes over its whole canvas."""
        return 0 if self.contract.has_cache else self.contract.canvas
