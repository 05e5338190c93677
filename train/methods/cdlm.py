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

from .setup import MethodInputs

GATE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.9}


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Holds the weights of the loss terms. The authors' are 1, 0.5, 0.01 for Dream and 1, 0.5, 0.1 for LLaDA."""

    distillation: float
    consistency: float
    denoising: float


def parse_weights(text: str) -> LossWeights:
    """Parses the three numbers of --weights. Raises UserError for anything else."""
    numbers = parse_numbers(text, "--weights")
    if len(numbers) != len(fields(LossWeights)):
        raise UserError(f"--weights is {text}; expected three numbers, as in 1,0.5,1")
    return LossWeights(*numbers)


def make_loss(inputs: MethodInputs, weights: LossWeights, target: str) -> Loss:
    """Returns the loss of the three terms on `stream.batch` trajectories and as many new examples per step.

    target: which later state is y*, see `trajectory_states.sample_states`.
    """
    model, contract, teacher = inputs.model, inputs.contract, inputs.teacher().model
    rows_of = partial(noise.find_predicting_rows, shift=contract.shift)
    log_probs = partial(predictions.log_probs, contract=contract)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = inputs.make_generator(step)
        indices = torch.randint(len(inputs.trajectories), (inputs.stream.batch,), generator=generator).tolist()
        batch = [inputs.trajectories[i] for i in indices]
        states = trajectory_states.sample_states(batch, contract, target, generator)
        with torch.no_grad():
            hidden = select(inputs.run(states.later, states.visible_later), rows_of(states.masked))
            later_log_probs = log_probs(model, hidden)
            # This uses the teacher's head, which no adapter changes. If it is the student's too, the forward pass above
            # has gathered it.
            teacher_log_probs = log_probs(teacher, send(states.hidden, later_log_probs.device).float())
        torch.clear_autocast_cache()  # it holds weights cast without gradients, which older torch would reuse
        hidden = inputs.run(states.earlier, states.visible)
        unmasked_log_probs, masked_log_probs = (
            log_probs(model, select(hidden, rows_of(positions))) for positions in (states.unmasked, states.masked)
        )
        distillation = losses.distillation(teacher_log_probs, unmasked_log_probs)
        consistency = losses.consistency(later_log_probs, masked_log_probs)
        denoising = all_blocks.denoising_loss(model, inputs.run, inputs.stream, step, contract, noise.EARLY, generator)
        total = weights.distillation * distillation
        total = total + weights.consistency * consistency + weights.denoising * denoising
        figures = {"distil": distillation.item(), "cons": consistency.item(), "dlm": denoising.item()}
        trajectory_tokens = sum(map(Trajectory.count_tokens, distributed.take_own_rows(batch)))
        example_tokens = count_tokens(distributed.take_own_rows(inputs.stream.select_examples(step)))
        return total, {**figures, TOKENS: trajectory_tokens + example_tokens}

    return loss_of
