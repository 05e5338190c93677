"""Trains by certainty-forcing distillation on the teacher's own answers: dParallel (arXiv 2509.26488).

L = CE + CE' + w (H + H'). Half of a block is masked, and all blocks after it; for the primed terms, the block's other
half is masked instead. H is the mean entropy of softmax(logits / 0.5) at positions whose top-1 token is right. This
follows the authors' code (czg1225/dParallel) with one difference: in some answers blocks are masked from a sampled
place to their end, and there is no other half. Nearly all masks in decoding are such, and a small model that is trained
only on scattered halves forgets them (LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.contract import Contract
from train import distributed, losses
from train.data.batches import Example, count_tokens
from train.data.trajectories import Trajectory
from train.masking import noise, predictions
from train.masking.all_blocks import FILLER
from train.masking.noise import AnswerBlocks
from train.trainer.training_loop import TOKENS, Loss

from .setup import MethodInputs

GATE = {"rule": "threshold", "metric": "entropy", "comparator": "<=", "threshold": 0.5}


def take_answers(trajectories: Sequence[Trajectory], contract: Contract) -> list[Example]:
    """Returns the teacher's answers, each up to its end token, or as long as the canvas if it has none."""
    examples = []
    for trajectory in trajectories:
        ids = trajectory.tokens[: contract.canvas].tolist()
        end = next((i + 1 for i, token in enumerate(ids) if token in contract.eos_ids), len(ids))
        examples.append(Example(trajectory.prompt, tuple(ids[:end])))
    return examples


def sample_halves(
    canvas: AnswerBlocks, contract: Contract, ordered: float, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Samples two complementary halves of a block per canvas, and the positions masked after it; bool [batch, width].

    ordered: the share of rows whose first half is the blocks' ends, see `noise.sample_ends`, and whose second half is
    empty. For a model without a KV cache one of the answer's blocks is sampled. For one with a KV cache all blocks are
    halved at once, and nothing is masked after them, because no block sees what follows it.
    """
    inside, blocks = canvas.find_inside(), noise.find_blocks(canvas, contract, canvas.list_positions())
    coin = torch.rand(canvas.ids.shape, generator=generator) < 0.5
    is_ordered = noise.spread(len(canvas.ids), ordered)[:, None]
    ends = noise.sample_ends(canvas, blocks, 1, generator)[1]
    first, second = torch.where(is_ordered, ends, coin) & inside, ~coin & ~is_ordered & inside
    if contract.has_cache:
        return (first, second), torch.zeros_like(inside)
    current = noise.sample_block(canvas, blocks, generator)
    in_block = blocks.number == current
    return (first & in_block, second & in_block), inside & (blocks.number > current)


def make_loss(inputs: MethodInputs, certainty: float, ordered: float) -> Loss:
    """Returns the loss of both terms, on both halves, of `stream.batch` trajectories per step.

    certainty: the weight w of the entropies. ordered: see `sample_halves`. Filler after an answer's end has the weight
    FILLER.
    """
    contract, answers = inputs.contract, take_answers(inputs.trajectories, inputs.contract)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = inputs.make_generator(step)
        indices = torch.randint(len(answers), (inputs.stream.batch,), generator=generator).tolist()
        examples = [answers[i] for i in indices]
        canvas = noise.lay_out(examples, contract, inputs.compute_least_length(), generator)
        halves, later = sample_halves(canvas, contract, ordered, generator)
        canvas, later = canvas.take_own_rows(), distributed.take_own_rows(later)
        cross_entropy, entropy = torch.zeros(()), torch.zeros(())
        for half in map(distributed.take_own_rows, halves):
            has_masks = half.any(dim=1)
            has_masks[0] |= not has_masks.any()  # every process runs the same number of forward passes
            rows, half, later_rows = canvas.select_rows(has_masks), half[has_masks], later[has_masks]
            hidden = predictions.compute_hidden(inputs.run, rows, half | later_rows, half, contract)
            scores, target = predictions.compute_scores(inputs.model, hidden, contract), rows.ids[half]
            weight = noise.make_weights(rows, half, FILLER)[half]
            cross_entropy = cross_entropy + losses.denoising(torch.log_softmax(scores, dim=-1), target, weight)
            entropy = entropy + losses.uncertainty(scores, target, weight)
        figures: dict[str, float] = {"wrong": cross_entropy.item(), "doubt": entropy.item()}
        figures[TOKENS] = count_tokens(distributed.take_own_rows(examples))
        return cross_entropy + certainty * entropy, figures

    return loss_of
