"""dParallel (arXiv 2509.26488): certainty-forcing distillation on the teacher's own answers.

L = CE + CE' + w (H + H'): a block is half masked, the blocks after it wholly; the primed terms are of the other half;
H is the mean entropy of softmax(logits / 0.5) where the top-1 token is already right. After the authors' code
(czg1225/dParallel). Ours is that the blocks of some answers are masked from a sampled place to their end, with no other
half: decoding meets little else, and a small model that is trained on scattered halves alone forgets it (LOG.md).
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

from .setup import Lesson

GATE = {"rule": "threshold", "metric": "entropy", "comparator": "<=", "threshold": 0.5}


def answers(found: Sequence[Trajectory], contract: Contract) -> list[Example]:
    """Returns the teacher's answers, each to its end token, or as long as a canvas if it has none."""
    examples = []
    for trajectory in found:
        ids = trajectory.tokens[: contract.canvas].tolist()
        end = next((i + 1 for i, token in enumerate(ids) if token in contract.eos_ids), len(ids))
        examples.append(Example(trajectory.prompt, tuple(ids[:end])))
    return examples


def halves(
    canvas: AnswerBlocks, contract: Contract, ordered: float, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Samples two complementary halves of a block per canvas, and what is masked after it; bool [batch, width] each.

    ordered: the share of rows with their blocks' ends, see `noise.ends`, in the first half and nothing in the second.
    Without a KV cache the block is sampled from those of the answer. With one it is all blocks at once, and nothing
    after them: such a model sees nothing after a block, so each of them is the same task.
    """
    inside, blocks = canvas.inside(), noise.blocks_at(canvas, contract, canvas.everywhere())
    coin = torch.rand(canvas.ids.shape, generator=generator) < 0.5
    chosen, end = noise.spread(len(canvas.ids), ordered)[:, None], noise.ends(canvas, blocks, 1, generator)[1]
    first, second = torch.where(chosen, end, coin) & inside, ~coin & ~chosen & inside
    if contract.has_cache:
        return (first, second), torch.zeros_like(inside)
    current = noise.sample_block(canvas, blocks, generator)
    here = blocks.number == current
    return (first & here, second & here), inside & (blocks.number > current)


def loss(lesson: Lesson, certainty: float, ordered: float) -> Loss:
    """Returns the loss of both terms and their complements on `stream.batch` trajectories per step.

    certainty: the w of the entropies; ordered: see `halves`. What is after an answer's end weighs FILLER.
    """
    contract, taught = lesson.contract, answers(lesson.found, lesson.contract)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = lesson.generator(step)
        chosen = torch.randint(len(taught), (lesson.stream.batch,), generator=generator).tolist()
        examples = [taught[i] for i in chosen]
        laid = noise.lay_out(examples, contract, lesson.least(), generator)
        both, behind = halves(laid, contract, ordered, generator)
        laid, behind = laid.mine(), distributed.mine(behind)
        wrong, doubt = torch.zeros(()), torch.zeros(())
        for half in map(distributed.mine, both):
            asked = half.any(dim=1)
            asked[0] |= not asked.any()  # every process runs the same number of forward passes
            rows, half, later = laid.rows(asked), half[asked], behind[asked]
            hidden = predictions.hidden_at(lesson.run, rows, half | later, half, contract)
            said, target = predictions.scores(lesson.model, hidden, contract), rows.ids[half]
            weight = noise.weights(rows, half, FILLER)[half]
            wrong = wrong + losses.denoising(torch.log_softmax(said, dim=-1), target, weight)
            doubt = doubt + losses.uncertainty(said, target, weight)
        figures = {"wrong": wrong.item(), "doubt": doubt.item()}
        return wrong + certainty * doubt, {**figures, TOKENS: count_tokens(distributed.mine(examples))}

    return loss_of
