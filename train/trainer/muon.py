"""Implements Muon, which makes every update of a matrix orthogonal (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon).

torch.optim.Muon orthogonalizes in bf16, one matrix after the other. On a CPU without bf16 instructions that takes
seconds, several times longer than the forward and the backward pass. Here matrices of one shape are batched and
multiplied in the weights' precision, or in bf16 if `bf16` is set. Apart from rounding the
result is that of torch's with adjust_lr_fn="match_rms_adamw".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, by its authors
ITERATIONS = 5
# An update's root mean square, about AdamW's, so that AdamW's learning rates fit (Liu et al. 2025, arXiv 2502.16982).
SCALE = 0.2


class Muon(torch.optim.Optimizer):
    """Updates matrices by their orthogonalized momentum.

    Weight decay is decoupled and scaled by the learning rate, as in AdamW; the momentum is Nesterov's. bf16: whether to
    multiply in bf16 and not in the weights' precision.
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
            alike = dict[torch.Size, list[Tensor]]()
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in alike.items():
                moved = torch.stack([self._update_momentum(matrix, group["momentum"]) for matrix in matrices])
                updates = orthogonalize(moved.bfloat16() if self.bf16 else moved).to(moved.dtype)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, updates.unbind(), alpha=-group["lr"] * SCALE * max(shape) ** 0.5)

    def _update_momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        """Adds the gradient to a matrix's average; returns the average with the gradient added once more (Nesterov)."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        average: Tensor = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Brings the singular values of matrices [count, rows, columns] near 1 (0.7 to 1.2); singular vectors stay."""
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT).mT
    a, b, c = COEFFICIENTS
    found = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found
