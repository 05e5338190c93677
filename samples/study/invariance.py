"""Measures how much a model's predictions depend on how much of an answer is masked: CD4LM's trajectory invariance.

Source: arXiv 2601.02236, whose student predicts at a position what it would predict later, with more context unmasked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.contract import Contract
from train import losses
from train.data.batches import Example
from train.masking import noise, predictions
from train.transformer.network import Transformer

RATIOS = (0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def divergences(
    model: Transformer,
    contract: Contract,
    examples: Sequence[Example],
    seed: int,
    *,
    ratios: Sequence[float] = RATIOS,
    batch: int = 64,
) -> list[float]:
    """Returns mean KL(prediction at the first ratio || prediction at each ratio) in nats, one per ratio, the first 0.

    The mean is over the positions of known answers that are masked at the first ratio, and so at all ratios, since
    masks are nested. `batch` examples run at a time. A `block_causal` model sees earlier blocks without masks at every
    ratio, a `full` one sees masks in all blocks, so only models with the same attention can be compared.
    """
    generator = torch.Generator().manual_seed(seed)
    total, count = [0.0] * len(ratios), 0
    for first in range(0, len(examples), batch):
        apart = _apart(model, contract, examples[first : first + batch], generator, ratios)
        total = [so_far + each.sum().item() for so_far, each in zip(total, apart, strict=True)]
        count += len(apart[0])
    return [each / max(1, count) for each in total]


def _apart(
    model: Transformer,
    contract: Contract,
    examples: Sequence[Example],
    generator: torch.Generator,
    ratios: Sequence[float],
) -> list[Tensor]:
    """Returns the KL of `divergences` at each predicted position of these examples; [n] per ratio."""
    laid = noise.lay_out(examples, contract, 0, generator)
    place = torch.arange(laid.ids.shape[1])
    answers = laid.inside() & (place < laid.answer_end[:, None])  # after the end, tokens are easy to guess
    drawn = torch.rand(laid.ids.shape, generator=generator)  # masked at every ratio above; [batch, width]
    asked = answers & (drawn < ratios[0])
    said = []
    for ratio in ratios:
        hidden = predictions.hidden_at(model, laid, laid.inside() & (drawn < ratio), asked, contract)
        said.append(predictions.log_probs(model, hidden, contract))
    return [losses.forward_kl(said[0], each) for each in said]
