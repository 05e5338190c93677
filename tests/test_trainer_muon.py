"""Muon updates matrices as torch.optim.Muon does, in whatever precision the machine multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.trainer.muon import Muon, orthogonalize

SHAPES = ((24, 24), (24, 40), (40, 24), (24, 24), (1, 8))


def matrices(seed: int) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


@pytest.mark.parametrize(("bf16", "apart"), [(True, 2e-2), (False, 3e-2)])
def test_updates_are_those_of_torchs_own_up_to_its_bf16(bf16: bool, apart: float) -> None:
    ours, theirs, before = matrices(0), matrices(0), matrices(0)
    optimizers = (
        Muon(ours, lr=0.02, weight_decay=0.1, bf16=bf16),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        for own, other in zip(ours, theirs, strict=True):
            torch.manual_seed(step)
            own.grad = torch.randn(own.shape)
            other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other, first in zip(ours, theirs, before, strict=True):
        moved = (other - first).norm()
        assert moved > 0.01 and (own - other).norm() <= apart * moved


def test_singular_values_become_about_one_and_vectors_stay() -> None:
    torch.manual_seed(1)
    given = torch.randn(3, 32, 20)
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    found = left.mT @ orthogonalize(given) @ right.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.6 and values.max() < 1.25
    assert (found - torch.diag_embed(values)).abs().max() < 1e-3


def test_a_matrix_without_a_gradient_stays_and_a_gradient_of_zeros_only_decays() -> None:
    kept, decayed = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    decayed.grad = torch.zeros(4, 4)
    optimizer = Muon([kept, decayed], lr=0.5, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(kept, torch.ones(4, 4)) and torch.equal(decayed, torch.full((4, 4), 0.95))
    with pytest.raises(TypeError, match="closure"):
        optimizer.step(lambda: 0.0)
