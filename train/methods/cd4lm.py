"""Trains a student on noisy answers to agree with its teacher on less noisy ones: CD4LM's DSCD (arXiv 2601.02236).

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
HELD = 0.1  # share of the updates before the share of the KL begins to change
GATE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.95}


@dataclass(frozen=True, slots=True)
class Shares:
    """The KL term's share of the loss, at the start and at the end of training; the rest is the cross-entropy's."""

    first: float
    last: float

    def compute(self, step: int, steps: int) -> float:
        """Returns the share at an update: `first` for a tenth of the updates, then along a cosine to `last`."""
        gone = min(1.0, max(0.0, (step / max(1, steps) - HELD) / (1 - HELD)))
        return self.last + (self.first - self.last) * 0.5 * (1 + math.cos(math.pi * gone))


def parse_shares(text: str) -> Shares:
    """Parses the two numbers of --shares. Raises UserError for anything else."""
    found = parse_numbers(text, "--shares")
    if len(found) != 2 or max(found) > 1:
        raise UserError(f"--shares is {text}; expected two numbers from 0 to 1, as in 0.9,0.5")
    return Shares(*found)


def sample_masked_counts(size: int, chance: Sequence[float]) -> tuple[int, int]:
    """Returns how many of `size` positions are masked for the student and for the teacher.

    chance: two numbers, uniform on [0, 1). Small sizes have counts of their own, so that some positions stay unmasked.
    """
    if size <= 10:
        return min(size, 2), 1
    student = STUDENT[0] + (STUDENT[1] - STUDENT[0]) * chance[0]
    teacher = student * (TEACHER[0] + (TEACHER[1] - TEACHER[0]) * chance[1])
    teacher = min(MOST, max(LEAST, teacher))
    if size < 20:
        student = min(student, 0.5)
    masked = max(int(size * student), 2, math.ceil(0.1 * size))
    return masked, min(int(size * teacher), masked)


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
    place = keys.argsort(dim=1).argsort(dim=1)  # rank of each position in random order, canvases first; [batch, width]
    chosen, behind = noise.sample_ends(canvas, units, ordered, generator)
    student = torch.where(chosen, behind, place < counts[:, :1])
    return student, student & (place < counts[:, 1:])


def make_loss(inputs: MethodInputs, temperature: float, shares: Shares, ordered: float) -> Loss:
    """Returns the loss: both terms on `stream.batch` new examples per step; filler has the weight FILLER.

    ordered: see `sample_nested_masks`.
    """
    model, contract, teacher = inputs.model, inputs.contract, inputs.teacher()

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = inputs.make_generator(step)
        examples = inputs.stream.select_examples(step)
        laid = noise.lay_out(examples, contract, inputs.compute_least_length(), generator)
        units = choose_units(laid, contract)
        masked, less = sample_nested_masks(laid, units, ordered, generator)
        laid, masked, less = laid.take_own_rows(), distributed.take_own_rows(masked), distributed.take_own_rows(less)
        weight, target = noise.make_weights(laid, masked, FILLER)[masked], laid.ids[masked]
        with teacher.activate() as frozen:
            hidden = predictions.compute_hidden(frozen, laid, less, masked, teacher.contract)
            taught = predictions.compute_scores(frozen, hidden, contract)
        scores = predictions.compute_scores(
            model, predictions.compute_hidden(inputs.run, laid, masked, masked, contract), contract
        )
        agreed = losses.tempered_distillation(taught, scores, temperature, weight)
        rebuilt = losses.denoising(torch.log_softmax(scores, dim=-1), target, weight)
        share = shares.compute(step, inputs.steps)
        total = share * agreed + (1 - share) * rebuilt
        figures = {"agree": agreed.item(), "rebuild": rebuilt.item(), "share": share / distributed.count_processes()}
        return total, {**figures, TOKENS: count_tokens(distributed.take_own_rows(examples))}

    return loss_of
