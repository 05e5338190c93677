"""Trains a student with a KV cache on the states of a teacher's trajectories: CDLM (arXiv 2511.19269).

With q(.|y) the student's prediction from a state y, and y* a later state, the loss has three terms: KL(teacher ||
q(.|y)) at tokens unmasked between the two, KL(stopgrad q(.|y*) || q(.|y)) at positions masked in both, and the
cross-entropy on masked ground truth. The paper does not specify y and y*: here y is early in a block more often than
late, and y* is a sampled state or the completed block. Our own choices are also how ground truth is masked
(`all_blocks.sample_noise`, with a lower weight for filler after an answer's end), and that its term has the weight 1.
The authors' weights are 0.01 and 0.1; LOG.md has a small student's results with 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from runtime.errors import UserError
from train import distributed, losses
from train.cli_options import parse_numbers
from train.data.batches import count_tokens
from train.data.trajectories import Trajectory
from train.device import select, send
from train.masking import all_blocks, noise, predictions, trajectory_states
from train.trainer.training_loop import TOKENS, Loss

from .setup import Lesson

GATE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.9}


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the loss terms. The authors': 1, 0.5, 0.01 for Dream; 1, 0.5, 0.1 for LLaDA."""

    distillation: float
    consistency: float
    denoising: float


def parse_weights(text: str) -> LossWeights:
    """Parses the three numbers of --weights. Raises UserError for anything else."""
    shares = parse_numbers(text, "--weights")
    if len(shares) != len(fields(LossWeights)):
        raise UserError(f"--weights is {text}; expected three numbers, as in 1,0.5,1")
    return LossWeights(*shares)


def make_loss(lesson: Lesson, weights: LossWeights, target: str) -> Loss:
    """Returns the loss of the three terms on `stream.batch` trajectories and as many new examples per step.

    target: which later state is y*, see `trajectory_states.draw_states`.
    """
    model, contract, teacher = lesson.model, lesson.contract, lesson.teacher().model
    rows_of = partial(noise.find_predicting_rows, shift=contract.shift)
    said = partial(predictions.log_probs, contract=contract)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = lesson.make_generator(step)
        chosen = torch.randint(len(lesson.found), (lesson.stream.batch,), generator=generator).tolist()
        found = [lesson.found[i] for i in chosen]
        drawn = trajectory_states.draw_states(found, contract, target, generator)
        with torch.no_grad():
            ahead = said(model, select(lesson.run(drawn.later, drawn.visible_later), rows_of(drawn.masked)))
            # This uses the teacher's head, which no adapter changes. If it is the student's too, the forward pass above
            # has gathered it.
            taught = said(teacher, send(drawn.hidden, ahead.device).float())
        torch.clear_autocast_cache()  # has weights cast without gradients, which older torch would reuse
        hidden = lesson.run(drawn.earlier, drawn.visible)
        distilled = losses.distillation(taught, said(model, select(hidden, rows_of(drawn.unmasked))))
        steady = losses.consistency(ahead, said(model, select(hidden, rows_of(drawn.masked))))
        denoised = all_blocks.denoising_loss(model, lesson.run, lesson.stream, step, contract, noise.EARLY, generator)
        total = weights.distillation * distilled + weights.consistency * steady + weights.denoising * denoised
        figures = {"distil": distilled.item(), "cons": steady.item(), "dlm": denoised.item()}
        seen = sum(map(Trajectory.count_tokens, distributed.take_own_rows(found)))
        return total, {
            **figures,
            TOKENS: seen + count_tokens(distributed.take_own_rows(lesson.stream.select_examples(step))),
        }

    return loss_of
