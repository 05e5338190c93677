"""How much a model's predictions depend on how much of an answer is masked: CD4LM's trajectory invariance.

Source: arXiv 2601.02236, which asks a student to say of a position what it would say later, with more around it known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.contract import Contract

from . import losses, masking, views
from .data import Example
from .model import Model

RATIOS = (0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def divergences(
    model: Model, contract: Contract, examples: Sequence[Example], seed: int, ratios: Sequence[float] = RATIOS
) -> list[float]:
    """Mean KL(prediction at the first ratio || prediction at each ratio) in nats, the first 0, a number a ratio.

    Over the positions of known answers that are masked at the first ratio and so, masks being nested, at all of them.
    A `block_causal` model sees earlier blocks clean at every ratio.
    """
    generator = torch.Generator().manual_seed(seed)
    laid = masking.lay_out(examples, contract.block, 0, contract.pad_id, generator)
    place = torch.arange(laid.ids.shape[1])
    answers = laid.inside() & (place < laid.answer_end[:, None])  # what lies behind an end is guessed at any ratio
    drawn = torch.rand(laid.ids.shape, generator=generator)  # below a ratio: masked at it; [batch, width]
    asked = answers & (drawn < ratios[0])
    said = []
    for ratio in ratios:
        hidden = views.hidden_at(model, laid, laid.inside() & (drawn < ratio), asked, contract)
        said.append(views.log_probs(model, hidden, contract))
    return [losses.forward_kl(said[0], each).mean().item() if len(each) else 0.0 for each in said]
