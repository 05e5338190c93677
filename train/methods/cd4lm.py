"""Trains a student on masked answers to agree with its teacher on answers with fewer masks: CD4LM (arXiv 2601.02236).

L = share · T² · KL(softmax(teacher(x_t') / T) || softmax(student(x_t) / T)) + (1 - share) · CE(student(x_t), x_0) over
the student's masked positions, of which the teacher's are a subset. Ratios, lower bounds and schedule are those of the
authors' code (yihao-liang/CDLM), with three differences. Their code clamps both terms at 5, which stops the gradient of
a large loss; here they are not clamped. Ratios are shares of the canvas, filler after a short answer's end included,
not of the answer alone. Some of the student's blocks (of a `full` student, some answers) are masked from a sampled
place to their end: nearly all masks in decoding are such, and a small model that is trained only on scattered masks
forgets them (LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.contract import Contract
from runtime.errors import UserError
from train import distributed, losses
from train.cli_options import parse_numbers
from train.data.batches import count_tokens
from train.masking import noise, predictions
from train.masking.all_blocks import FILLER
from train.masking.noise import AnswerBlocks, Units
from train.trainer.training_loop import TOKENS, Loss

from .setup import MethodInputs

STUDENT = (0.4, 0.9)  # least and greatest share of a canvas's positions that are masked for the student
TEACHER = (0.3, 0.7)  # least and greatest ratio of the teacher's share to the student's
LEAST, MOST = 0.1, 0.6  # bounds of the teacher's share
WARMUP = 0.1  # share of the updates before the KL term's share begins to change
GATE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.95}


@dataclass(frozen=True, slots=True)
class Shares:
    """Holds the KL term's share of the loss, at the start and at the end; the rest is the cross-entropy's share."""

    first: float
    last: float

    def compute(self, step: int, steps: int) -> float:
        """Returns the share at an update: `first` for WARMUP of the updates, then along a cosine to `last`."""
        fraction = min(1.0, max(0.0, (step / max(1, steps) - WARMUP) / (1 - WARMUP)))
        return self.last + (self.first - self.last) * 0.5 * (1 + math.cos(math.pi * fraction))


def parse_shares(text: str) -> Shares:
    """Parses the two numbers of --shares. Raises UserError for anything else."""
    numbers = parse_numbers(text, "--shares")
    if len(numbers) != 2 or max(numbers) > 1:
        raise UserError(f"--shares is {text}; expected two numbers from 0 to 1, as in 0.9,0.5")
    return Shares(*numbers)


def sample_masked_counts(size: int, chance: Sequence[float]) -> tuple[int, int]:
    """Returns how many of `size` positions are masked for the student and for the teacher.

    chance: two random numbers, uniform on [0, 1). Small sizes have counts of their own, so that some positions stay
    unmasked.
    """
    if size <= 10:
        return min(size, 2), 1
    student_share = STUDENT[0] + (STUDENT[1] - STUDENT[0]) * chance[0]
    teacher_share = student_share * (TEACHER[0] + (TEACHER[1] - TEACHER[0]) * chance[1])
    teacher_share = min(MOST, max(LEAST, teacher_share))
    if size < 20:
        student_share = min(student_share, 0.5)
    student_count = max(int(size * student_share), 2, math.ceil(0.1 * size))
    return student_count, min(int(size * teacher_share), student_count)


def choose_units(canvas: AnswerBlocks, contract: Contract) -> Units:
    """Returns the units whose ends may be masked: blocks if the model has a KV cache, else whole canvases."""
    if contract.has_cache:
        return noise.find_blocks(canvas, contract, canvas.list_positions())
    return noise.make_whole_canvases(canvas)


def sample_nested_masks(
    canvas: AnswerBlocks, units: Units, ordered: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples which positions are masked for the student, and which of these for the teacher; bool [batch, width] each.

    ordered: the share of units that are masked for the student from a sampled place to their end (`noise.sample_ends`).
    """
    sizes = (canvas.length - canvas.start).tolist()
    chances = torch.rand((len(sizes), 2), generator=generator).tolist()
    counts = torch.tensor([sample_masked_counts(size, chance) for size, chance in zip(sizes, chances, strict=True)])
    keys = torch.rand(canvas.ids.shape, generator=generator).masked_fill(~canvas.find_inside(), 2.0)
    rank = keys.argsort(dim=1).argsort(dim=1)  # of each position in random order, canvases first; [batch, width]
    is_ordered, ends = noise.sample_ends(canvas, units, ordered, generator)
    student = torch.where(is_ordered, ends, rank < counts[:, :1])
    return student, student & (rank < counts[:, 1:])


def make_loss(inputs: MethodInputs, temperature: float, shares: Shares, ordered: float) -> Loss:
    """Returns the loss: both terms on `stream.batch` new examples per step; filler has the weight FILLER.

    ordered: see `sample_nested_masks`.
    """
    model, contract, teacher = inputs.model, inputs.contract, inputs.teacher()

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = inputs.make_generator(step)
        examples = inputs.stream.select_examples(step)
        canvas = noise.lay_out(examples, contract, inputs.compute_least_length(), generator)
        masks = sample_nested_masks(canvas, choose_units(canvas, contract), ordered, generator)
        canvas, (student_mask, teacher_mask) = canvas.take_own_rows(), map(distributed.take_own_rows, masks)
        weight, target = noise.make_weights(canvas, student_mask, FILLER)[student_mask], canvas.ids[student_mask]
        with teacher.activate() as teacher_model:
            hidden = predictions.compute_hidden(teacher_model, canvas, teacher_mask, student_mask, teacher.contract)
            teacher_scores = predictions.compute_scores(teacher_model, hidden, contract)
        hidden = predictions.compute_hidden(inputs.run, canvas, student_mask, student_mask, contract)
        scores = predictions.compute_scores(model, hidden, contract)
        divergence = losses.tempered_distillation(teacher_scores, scores, temperature, weight)
        cross_entropy = losses.denoising(torch.log_softmax(scores, dim=-1), target, weight)
        share = shares.compute(step, inputs.steps)
        total = share * divergence + (1 - share) * cross_entropy
        figures = {"agree": divergence.item(), "rebuild": cross_entropy.item()}
        figures |= {"share": share / distributed.count_processes()}
        return total, {**figures, TOKENS: count_tokens(distributed.take_own_rows(examples))}

    return loss_of
