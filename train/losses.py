"""Computes the terms of the distillation methods from log-probabilities or scores.

Sources: `distillation`, `consistency`, `denoising` are CDLM's (arXiv 2511.19269), with q(.|y) the student's prediction
from a state y of a trajectory; `tempered_distillation` is CD4LM's (arXiv 2601.02236), `uncertainty` dParallel's (arXiv
2509.26488); TAD (arXiv 2605.09536) takes `denoising` and, at temperature 1, `tempered_distillation`. Scores are fp32
logits with the mask token barred, see `bar_mask_token`. With several processes, each gets its part of a mean over the
positions of all processes (`distributed.take_part`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import distributed
from .device import send


def forward_kl(target: Tensor, student: Tensor) -> Tensor:
    """Returns KL(target || student) of log-probabilities [n, vocab], in nats, [n]. Gradients flow into both."""
    return F.kl_div(student, target, reduction="none", log_target=True).sum(-1)


def distillation(teacher: Tensor, student: Tensor) -> Tensor:
    """Returns mean KL(teacher || student) over the positions newly unmasked between y and y*; 0 if there are none.

    teacher [n, vocab]: log-probabilities when each token was unmasked, without gradient; student [n, vocab]: at y.
    """
    return _mean(forward_kl(teacher.detach(), student))


def consistency(later: Tensor, earlier: Tensor) -> Tensor:
    """Returns mean KL(stopgrad q(.|y*) || q(.|y)), each [n, vocab], over positions masked in both; 0 without any."""
    return _mean(forward_kl(later.detach(), earlier))


def denoising(student: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted mean cross-entropy on masked ground truth.

    student [n, vocab]: log-probabilities; target int64 [n]; weight [n].
    """
    return _weigh(F.nll_loss(student, send(target, student.device), reduction="none"), weight)


def tempered_distillation(teacher: Tensor, student: Tensor, temperature: float, weight: Tensor) -> Tensor:
    """Returns T² times the weighted mean of KL(softmax(teacher / T) || softmax(student / T)), T the temperature.

    teacher, student [n, vocab]: scores, the teacher's without gradient; weight. T² keeps the gradient's size (Hinton et
    al. 2015, arXiv 1503.02531).
    """
    target = torch.log_softmax(teacher.detach() / temperature, dim=-1)
    apart = forward_kl(target, torch.log_softmax(student / temperature, dim=-1))
    return temperature**2 * _weigh(apart, weight)


def uncertainty(student: Tensor, target: Tensor, weight: Tensor, temperature: float = 0.5) -> Tensor:
    """Returns the weighted mean entropy of softmax(student / T), in nats, of positions whose top-1 token is right.

    student [n, vocab]: scores; target int64 [n]; weight [n]. Returns 0 if no position is right. Wrong ones are left out
    so that confidence in them does not grow.
    """
    right = student.argmax(-1) == send(target, student.device)
    log_probs = torch.log_softmax(student[right] / temperature, dim=-1)
    return _weigh(-(log_probs.exp() * log_probs).sum(-1), send(weight, student.device)[right])


def _mean(losses: Tensor) -> Tensor:
    return distributed.take_part(losses.mean() if len(losses) else losses.sum(), len(losses))


def _weigh(losses: Tensor, weight: Tensor) -> Tensor:
    weight = send(weight, losses.device)
    return distributed.take_part((losses * weight).sum() / weight.sum().clamp_min(1e-6), weight.sum())


def bar_mask_token(logits: Tensor, mask_id: int) -> Tensor:
    """Returns fp32 scores [n, vocab], with the mask token's at -1e9: like the runtime, training never predicts it."""
    # Not -inf, which times a probability of 0 is NaN in a KL divergence or an entropy.
    bar = torch.zeros(logits.shape[-1]).index_fill(0, torch.tensor(mask_id), -1e9)
    return logits.float() + send(bar, logits.device)


def log_probs(logits: Tensor, mask_id: int) -> Tensor:
    """Returns the fp32 log-softmax [n, vocab] of the scores that `bar_mask_token` gives."""
    return torch.log_softmax(bar_mask_token(logits, mask_id), dim=-1)
