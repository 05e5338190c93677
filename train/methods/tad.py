"""Trains on states of a teacher's trajectories, with hard labels for what it unmasks next and soft ones for the rest.

This is TAD, temporal-aware trajectory self-distillation (arXiv 2605.09536). In a state of a block, the positions that
the teacher unmasks in its next steps are near, the other masked ones are distant.

L = mean over near positions of CE(student, the teacher's token)
    + w · mean over distant positions of KL(teacher || student)

There are four differences from the authors' code (BHmingyang/TAD). Their teacher has the right answer in its prompt,
both in trajectories and for soft labels, which it predicts from the student's state. Here it has not: wrong
trajectories are dropped, and a soft label is the distribution from which the teacher unmasked the token, which
trajectories hold. States early in a block are sampled more often than late ones, because decoding in few steps meets
them more often. Only the block in progress is predicted, as in decoding; their students predict all later blocks too.
Filler after the end token, which the teacher never unmasks, has hard labels with a low weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runtime.contract import Contract
from train import distributed, losses
from train.data.batches import count_tokens
from train.data.trajectories import NEVER_ACCEPTED, Trajectory
from train.device import select, send
from train.masking import noise, predictions
from train.masking.all_blocks import FILLER
from train.masking.noise import AnswerBlocks
from train.trainer.training_loop import TOKENS, Loss

from .dparallel import take_answers
from .setup import MethodInputs

GATE = {"rule": "threshold", "metric": "entropy", "comparator": "<", "threshold": 0.5}


def compute_horizon(near: float, block: int) -> int:
    """Returns how many of the teacher's next steps are near: the share `near` of a block's positions, rounded up."""
    return math.ceil(round(near * block, 6))  # a product such as 0.1 × 30 is a little above 3


def add_steps(canvas: AnswerBlocks, trajectories: Sequence[Trajectory]) -> tuple[AnswerBlocks, Tensor]:
    """Returns the answers with all tokens that the teacher unmasked, and the step that unmasked each.

    canvas: the trajectories' answers with filler after the end token, some of which the teacher may have unmasked. The
    steps are int64 [batch, width], NEVER_ACCEPTED in prompts and for positions that it did not unmask.
    """
    ids, steps = canvas.ids.clone(), torch.full_like(canvas.ids, NEVER_ACCEPTED)
    for row, (trajectory, start, end) in enumerate(
        zip(trajectories, canvas.start.tolist(), canvas.length.tolist(), strict=True)
    ):
        order = trajectory.order[: end - start]
        answer = slice(start, start + len(order))
        steps[row, answer] = order
        ids[row, answer] = torch.where(order == NEVER_ACCEPTED, ids[row, answer], trajectory.tokens[: len(order)])
    return replace(canvas, ids=ids), steps


def sample_states(
    canvas: AnswerBlocks, steps: Tensor, contract: Contract, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples one state of decoding per block.

    steps: see `add_steps`. Returns which positions are masked and which of these are predicted, bool [batch, width],
    and how many steps of the teacher come before the one that unmasks each position, int64 [batch, width], negative for
    positions that are unmasked already or never. For a model without a KV cache one of the answer's blocks is sampled,
    and all after it are masked. For one with a KV cache all blocks are predicted at once, as no block sees what follows
    it.
    """
    blocks, inside = noise.find_blocks(canvas, contract, canvas.list_positions()), canvas.find_inside()
    has_step = steps != NEVER_ACCEPTED
    shape, never = (len(steps), int(blocks.number.max()) + 1), torch.iinfo(torch.int64).max
    count = torch.zeros(shape, dtype=torch.int64).scatter_add(1, blocks.number, has_step.long())
    first = torch.full(shape, never).scatter_reduce(1, blocks.number, steps.masked_fill(~has_step, never), "amin")
    # Steps before the sampled state; fewer than `count`, so one is left.
    passed = (torch.rand(shape, generator=generator) ** noise.EARLY * count).long()
    ahead = (steps - (first.masked_fill(count == 0, 0) + passed).gather(1, blocks.number)).masked_fill(~has_step, -1)
    masked = inside & ((ahead >= 0) | ~has_step)
    if contract.has_cache:
        return masked, masked, ahead
    current = noise.sample_block(canvas, blocks, generator)
    predicted = masked & (blocks.number == current)
    return predicted | (inside & (blocks.number > current)), predicted, ahead


def collect_unmasked_states(canvas: AnswerBlocks, trajectories: Sequence[Trajectory], positions: Tensor) -> Tensor:
    """Returns the teacher's hidden states when it unmasked these positions, fp32 [n, hidden], in row-major order.

    positions: bool [batch, width].
    """
    parts = []
    for row, (trajectory, start) in enumerate(zip(trajectories, canvas.start.tolist(), strict=True)):
        flags = positions[row, start : start + len(trajectory.hidden)]
        parts.append(trajectory.hidden[: len(flags)][flags].float())  # autocast on a CPU cannot join fp16
    return torch.cat(parts)


def make_loss(inputs: MethodInputs, near: float, distant: float) -> Loss:
    """Returns the loss of both terms on `stream.batch` trajectories per step.

    near: share of a block's positions, see `compute_horizon`. distant: weight of the KL term. Tokens after an answer's
    end have the weight FILLER.
    """
    contract, teacher = inputs.contract, inputs.teacher().model
    answers, horizon = take_answers(inputs.trajectories, contract), compute_horizon(near, contract.block)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = inputs.make_generator(step)
        indices = torch.randint(len(answers), (inputs.stream.batch,), generator=generator).tolist()
        examples = [answers[i] for i in indices]
        canvas = noise.lay_out(examples, contract, inputs.compute_least_length(), generator)
        canvas, steps = add_steps(canvas, [inputs.trajectories[i] for i in indices])
        masked, predicted, ahead = map(distributed.take_own_rows, sample_states(canvas, steps, contract, generator))
        canvas = canvas.take_own_rows()
        trajectories = [inputs.trajectories[i] for i in distributed.take_own_rows(indices)]
        is_distant = predicted & (ahead >= horizon)
        weight, soft = noise.make_weights(canvas, predicted, FILLER)[predicted], is_distant[predicted]
        hidden = predictions.compute_hidden(inputs.run, canvas, masked, predicted, contract)
        near_log_probs = predictions.log_probs(inputs.model, select(hidden, ~soft), contract)
        near_loss = losses.denoising(near_log_probs, canvas.ids[predicted & ~is_distant], weight[~soft])
        with torch.no_grad():  # after the student's forward pass, which gathers the head if both have the same one
            states = send(collect_unmasked_states(canvas, trajectories, is_distant), hidden.device)
            teacher_scores = predictions.compute_scores(teacher, states, contract)
        distant_scores = predictions.compute_scores(inputs.model, select(hidden, soft), contract)
        distant_loss = losses.tempered_distillation(teacher_scores, distant_scores, 1.0, weight[soft])
        figures: dict[str, float] = {"near": near_loss.item(), "distant": distant_loss.item()}
        figures[TOKENS] = count_tokens(distributed.take_own_rows(examples))
        return near_loss + distant * distant_loss, figures

    return loss_of
