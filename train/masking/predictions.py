"""Predicts positions of answers with the attention mask with which the model is decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.contract import Contract
from train import losses
from train.device import select
from train.transformer.network import Transformer

from . import all_blocks, noise
from .noise import AnswerBlocks


def compute_hidden(
    run: torch.nn.Module, canvas: AnswerBlocks, masked: Tensor, positions: Tensor, contract: Contract
) -> Tensor:
    """Returns the hidden states [n, hidden] that predict `positions`, in row-major order.

    masked, positions bool [batch, width]: which positions of the canvases are masked, and which are to be predicted. A
    `full` model sees the whole noisy answer. In a model with a KV cache each block sees the clean answer before it, as
    in decoding, and one forward pass predicts all blocks.
    """
    if not contract.has_cache:
        ids = canvas.ids.masked_fill(masked, contract.mask_id)
        hidden: Tensor = run(ids, canvas.length[:, None].expand_as(ids))  # [batch, width, hidden]
        return select(hidden, noise.find_predicting_rows(positions, contract.shift))
    both = all_blocks.make_copies(canvas, contract, select_in_blocks(canvas, masked, contract))
    return select(all_blocks.run_predicting(run, both), select_in_blocks(canvas, positions, contract))


def select_in_blocks(canvas: AnswerBlocks, flags: Tensor, contract: Contract) -> Tensor:
    """Selects, from flags of whole rows, bool [batch, width], those of the answers' blocks, bool [batch, noisy]."""
    positions = canvas.list_block_positions(contract)
    found = flags.gather(1, positions.clamp_max(flags.shape[1] - 1))
    return found & (positions < canvas.length[:, None])


def compute_scores(model: Transformer, hidden: Tensor, contract: Contract) -> Tensor:
    """Returns fp32 scores [n, vocab] of hidden states [n, hidden], the mask token barred, padding ids cut off."""
    return losses.bar_mask_token(model.logits(hidden)[..., : contract.vocab], contract.mask_id)


def log_probs(model: Transformer, hidden: Tensor, contract: Contract) -> Tensor:
    """Returns fp32 log-probabilities [n, vocab] of hidden states [n, hidden], from `compute_scores`."""
    return torch.log_softmax(compute_scores(model, hidden, contract), dim=-1)
