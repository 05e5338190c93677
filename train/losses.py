"""The three terms of consistency distillation for block-causal students, as pure functions of log-probabilities.

Source: CDLM (arXiv 2511.19269). In all of them q(.|y) is the student on a state y of a trajectory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward_kl(target: Tensor, student: Tensor) -> Tensor:
    """KL(target || student) of log-probabilities [n, vocab], in nats, [n]. Gradients flow into both."""
    return F.kl_div(student, target, reduction="none", log_target=True).sum(-1)


def distillation(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL(teacher || student) over the positions newly unmasked between y and y*; 0 where there is none.

    teacher [n, vocab]: log-probabilities at the moment each token was finalised, a constant; student [n, vocab]: at y.
    """
    return _mean(forward_kl(teacher.detach(), student))


def consistency(later: Tensor, earlier: Tensor) -> Tensor:
    """Mean KL(stopgrad q(.|y*) || q(.|y)), each [n, vocab], over positions masked in both states; 0 without any."""
    return _mean(forward_kl(later.detach(), earlier))


def denoising(student: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean cross-entropy on masked ground truth.

    student [n, vocab]: log-probabilities; target int64 [n]; weight [n].
    """
    losses = F.nll_loss(student, target, reduction="none")
    return (losses * weight).sum() / weight.sum().clamp_min(1e-6)


def _mean(losses: Tensor) -> Tensor:
    return losses.mean() if len(losses) else losses.sum()


def log_probs(logits: Tensor, mask_id: int) -> Tensor:
    """fp32 log-softmax [n, vocab] without the mask token, which is never an answer (as the runtime decodes)."""
    blocked = torch.zeros(logits.shape[-1]).index_fill(0, torch.tensor(mask_id), -1e9)
    return torch.log_softmax(logits.float() + blocked, dim=-1)
