"""Computes the next-token loss: the autoregressive baseline's, and a term of the losses of teachers and students."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from train import distributed
from train.data.batches import Stream, count_tokens, pad
from train.device import select, send
from train.trainer.training_loop import TOKENS, Loss
from train.transformer.network import Transformer


def make_next_token_loss(model: Transformer, run: torch.nn.Module, stream: Stream, pad_id: int) -> Loss:
    """Returns the loss: the cross-entropy of next tokens, on answers of `stream`, with the causal mask.

    Row i predicts token i + 1. run: the model's forward pass, which may be compiled.
    """

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        examples = distributed.take_own_rows(stream.select_examples(step))
        batch = pad(examples, pad_id)
        width = batch.ids.shape[1]
        hidden = run(batch.ids, (torch.arange(width) + 1).expand_as(batch.ids))
        rows = torch.arange(width - 1)
        predicts = (rows >= batch.start[:, None] - 1) & (rows < batch.length[:, None] - 1)  # [batch, width - 1]
        logits = model.logits(select(hidden[:, :-1], predicts)).float()
        target = send(batch.ids[:, 1:][predicts], logits.device)
        loss = distributed.take_part(F.cross_entropy(logits, target), len(target))
        return loss, {"next": distributed.take_mean_part(logits.argmax(-1) == target), TOKENS: count_tokens(examples)}

    return loss_of
