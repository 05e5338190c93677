"""Muon: makes every update of a matrix orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

torch.optim.Muon orthogonalizes in bf16, one matrix after the other. On a CPU without bf16 products that takes seconds,
several times longer than the forward and the backward pass. Here matrices of the same shape are batched, in a precision
that the machine has. Apart from rounding it computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, by its authors
ITERATIONS = 5
SCALE = 0.2  # an update's root mean square, as in AdamW, so that its learning rates fit (Liu et al. 2025, 2502.16982)


class Muon(torch.optim.Optimizer):
    """Updates matrices by their orthogonalized momentum. bf16: multiply in bf16, otherwise in the weights' precision.

    Weight decay is AdamW's, of the learning rate; the momentum is Nesterov's.
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
            alike = dict[torch.Size, list[nn.Parameter]]()
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in alike.items():
                moved = torch.stack([self._momentum(matrix, group["momentum"]) for matrix in matrices])
                updates = orthogonalize(moved.bfloat16() if self.bf16 else moved).to(moved.dtype)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, updates.unbind(), alpha=-group["lr"] * SCALE * max(shape) ** 0.5)

    def _momentum(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        """Updates the average of a matrix's gradients; returns it as it would be after one more such step."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        average: Tensor = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Moves singular values of matrices [count, rows, columns] to about 1 (0.7 to 1.2), and keeps their vectors."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT).mT
    a, b, c = COEFFICIENTS
    found = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found
