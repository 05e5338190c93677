"""Implements Muon, an optimizer that makes every update of a matrix orthogonal.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Apart from rounding, updates are those of
torch.optim.Muon with adjust_lr_fn="match_rms_adamw". That one orthogonalizes one matrix after the other, in bf16. On a
CPU without bf16 instructions this takes seconds per update, several times as long as the forward and the backward pass.
Here matrices of one shape are orthogonalized as a batch, in the weights' precision or, if `bf16` is set, in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration, as its authors have them
ITERATIONS = 5
# Root mean square of an update at learning rate 1. It is about AdamW's, so that AdamW's learning rates fit (Liu et al.
# 2025, arXiv 2502.16982).
UPDATE_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Updates matrices by their orthogonalized Nesterov momentum.

    Args:
        params: the matrices.
        lr: learning rate.
        weight_decay: share of a matrix that is subtracted per update, times the learning rate (decoupled, as in AdamW).
        momentum: decay of the gradients' moving average.
        bf16: whether to orthogonalize in bf16 instead of the weights' precision.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95, bf16: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.bf16 = bf16

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient. Raises TypeError for a closure, which has no use."""
        if closure is not None:
            raise TypeError("Muon.step takes no closure")
        for group in self.param_groups:
            by_shape = dict[torch.Size, list[Tensor]]()
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                momenta = torch.stack([self._update_momentum(matrix, group["momentum"]) for matrix in matrices])
                updates = orthogonalize(momenta.bfloat16() if self.bf16 else momenta).to(momenta.dtype)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, updates.unbind(), alpha=-group["lr"] * UPDATE_RMS * max(shape) ** 0.5)

    def _update_momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        """Mixes a matrix's gradient into the average of its gradients; returns the Nesterov momentum.

        That is the average with the gradient mixed in once more.
        """
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        average: Tensor = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Moves the singular values of matrices [count, rows, columns] near 1 (0.7 to 1.2); keeps the singular vectors."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):  # x = a x + (b g + c g²) x, with g = x xᵀ
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
