"""The distillation losses on values worked out by hand, and where gradients go and where not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from train import losses

HALF = [0.5, 0.5]
QUARTER = [0.25, 0.75]
TO_QUARTER = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # KL(half || quarter), nats
FROM_QUARTER = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # KL(quarter || half)

Pair = Callable[[Tensor, Tensor], Tensor]


def log(*rows: list[float], grad: bool = False) -> Tensor:
    """Log-probabilities [n, vocab]."""
    return torch.tensor(rows).log().requires_grad_(grad)


def test_kl_is_that_of_the_definition_in_nats_and_is_not_symmetric() -> None:
    got = losses.forward_kl(log(HALF, QUARTER, HALF), log(QUARTER, HALF, HALF))
    assert got.tolist() == pytest.approx([TO_QUARTER, FROM_QUARTER, 0.0], abs=1e-6)
    assert abs(TO_QUARTER - FROM_QUARTER) > 0.01


def test_kl_lets_gradients_into_both_sides() -> None:
    target, student = log(HALF, grad=True), log(QUARTER, grad=True)
    losses.forward_kl(target, student).sum().backward()
    assert target.grad is not None and target.grad.abs().sum() > 0
    assert student.grad is not None and student.grad[0].tolist() == pytest.approx([-0.5, -0.5])  # d/dq of -p q


@pytest.mark.parametrize("loss", [losses.distillation, losses.consistency])
def test_the_target_of_both_terms_is_a_constant(loss: Pair) -> None:
    target, student = log(HALF, QUARTER, grad=True), log(QUARTER, HALF, grad=True)
    value = loss(target, student)
    value.backward()
    assert value.item() == pytest.approx((TO_QUARTER + FROM_QUARTER) / 2, abs=1e-6)
    assert target.grad is None
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([-0.25, -0.25, -0.125, -0.375])  # -p / n


@pytest.mark.parametrize("loss", [losses.distillation, losses.consistency])
def test_one_model_on_both_sides_learns_from_the_earlier_state_alone(loss: Pair) -> None:
    shared = torch.tensor([0.0, 1.0], requires_grad=True)
    later, earlier = torch.log_softmax(3 * shared, -1)[None], torch.log_softmax(shared, -1)[None]
    loss(later, earlier).backward()
    expected = torch.softmax(shared, -1) - torch.softmax(3 * shared, -1)  # cross-entropy with a constant target
    assert shared.grad is not None and torch.allclose(shared.grad, expected)


@pytest.mark.parametrize("loss", [losses.distillation, losses.consistency])
def test_without_a_position_the_loss_is_zero_and_so_is_its_gradient(loss: Pair) -> None:
    student = log(HALF, grad=True)
    value = loss(log(HALF)[:0], student[:0])
    value.backward()
    assert value.item() == 0.0 and student.grad is not None and student.grad.tolist() == [[0.0, 0.0]]


def test_denoising_is_the_weighted_mean_of_the_cross_entropy() -> None:
    student = log(HALF, QUARTER, QUARTER, grad=True)
    value = losses.denoising(student, torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.5, 0.0]))
    value.backward()
    assert value.item() == pytest.approx((math.log(2) + 0.5 * math.log(4)) / 1.5)
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx([-1 / 1.5, 0, -0.5 / 1.5, 0, 0, 0])


@pytest.mark.parametrize("chosen", [slice(0, 0), slice(0, 1)])
def test_denoising_without_positions_or_weight_is_zero_with_a_gradient_of_zero(chosen: slice) -> None:
    student = log(HALF, grad=True)
    value = losses.denoising(student[chosen], torch.tensor([1])[chosen], torch.zeros(1)[chosen])
    value.backward()
    assert value.item() == 0.0 and student.grad is not None and student.grad.tolist() == [[0.0, 0.0]]


def test_a_tempered_term_is_t_squared_times_the_kl_of_the_softened_sides() -> None:
    teacher, student = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 2.0 * math.log(3)], [2.0, 0.0]])
    student.requires_grad_(True), teacher.requires_grad_(True)
    # at T = 2 the first row is (1/2, 1/2) against (1/4, 3/4), the second is equal on both sides
    value = losses.tempered_distillation(teacher, student, 2.0, torch.tensor([1.0, 0.25]))
    value.backward()
    assert value.item() == pytest.approx(4 * TO_QUARTER / 1.25)
    assert teacher.grad is None and student.grad is not None
    # d KL / d score = (q - p) / T, and T² before it: twice (1/4 - 1/2), by the row's share of the weight
    assert student.grad.flatten().tolist() == pytest.approx([-0.5 / 1.25, 0.5 / 1.25, 0, 0], abs=1e-6)


def test_uncertainty_is_the_entropy_where_the_best_token_is_right_and_nothing_elsewhere() -> None:
    scores = torch.tensor([[0.5 * math.log(3), 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = losses.uncertainty(scores, torch.tensor([0, 1, 1]), torch.tensor([1.0, 1.0, 0.0]))
    value.backward()
    # at T = 1/2 the first row is (3/4, 1/4); the second is wrong, the third weighs nothing
    assert value.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    slope = 2 * 0.75 * 0.25 * math.log(3)  # dH / dx = -p (1 - p) ln(p / (1 - p)) of one logit, twice for T = 1/2
    assert scores.grad is not None
    assert scores.grad.flatten().tolist() == pytest.approx([-slope, slope, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("target", [[1], []])
def test_uncertainty_without_a_right_answer_is_zero_with_a_gradient_of_zero(target: list[int]) -> None:
    scores = torch.tensor([[1.0, 0.0]], requires_grad=True)
    n = len(target)
    value = losses.uncertainty(scores[:n], torch.tensor(target, dtype=torch.int64), torch.ones(n))
    value.backward()
    assert value.item() == 0.0 and scores.grad is not None and scores.grad.tolist() == [[0.0, 0.0]]


def test_the_barred_mask_token_makes_no_term_infinite() -> None:
    scores = losses.bar_mask_token(torch.tensor([[1.0, 9.0, 0.0]], requires_grad=True), 1)
    entropy = losses.uncertainty(scores, torch.tensor([0]), torch.ones(1))
    apart = losses.tempered_distillation(scores, scores.flip(-1), 2.0, torch.ones(1))
    (entropy + apart).backward()
    assert entropy.isfinite() and apart.isfinite() and scores.argmax().item() == 0


def test_log_probs_leave_the_mask_token_out_and_stay_finite() -> None:
    got = losses.log_probs(torch.tensor([[1.0, 9.0, 1.0], [2.0, -9.0, 2.0]]), 1)
    assert got.isfinite().all() and (got[:, 1] < -1e8).all()
    assert got[:, [0, 2]].exp().flatten().tolist() == pytest.approx([0.5] * 4)
    assert losses.forward_kl(got, got).tolist() == [0.0, 0.0]  # with -inf it would be NaN
    assert losses.log_probs(torch.zeros(1, 3, dtype=torch.bfloat16), 1).dtype == torch.float32
