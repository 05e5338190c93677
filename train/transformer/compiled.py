"""Runs training's forward pass with torch.compile; first brings the inputs into few forms, so that graphs are few."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.device import send

from .network import Transformer, make_prefix_mask


class CompiledForward(nn.Module):
    """Runs a model's layers compiled; `forward` does what `Transformer.forward` does without a KV cache.

    Batches differ in width, so the width is dynamic from the first graph on. There are graphs for a prefix mask and for
    an explicit mask, with gradients and without; on a CPU inductor compiles each again at the first width on the other
    side of 128. The rotary tables are computed outside the graphs: fused into every layer's rotation and its gradient,
    their fp64 angles would take a third of an update.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model
        self._masked = torch.compile(model.run_layers)
        self._visible = torch.compile(self._run_visible)

    def forward(
        self,
        input_ids: Tensor,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states [batch, width, hidden]; see `Transformer.forward`."""
        device = self.model.embed_tokens.weight.device
        ids = send(input_ids, device).contiguous()
        cos, sin = self.model.compute_position_tables(ids, None if positions is None else send(positions, device))
        run = self._visible if mask is None else self._masked
        limits = visible if mask is None else mask
        if limits is None:
            raise ValueError("neither visible nor mask was given")
        limits = send(limits, device).contiguous()  # an expanded tensor has other strides, and would get another graph
        for tensor, places in ((ids, (1,)), (cos, (2,)), (sin, (2,)), (limits, (1,) if mask is None else (2, 3))):
            torch._dynamo.mark_dynamic(tensor, places)
        hidden: Tensor = run(ids, cos, sin, limits, kept=self.model.sample_dropout(ids))
        return hidden

    def _run_visible(self, ids: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, kept: Tensor | None) -> Tensor:
        return self.model.run_layers(ids, cos, sin, make_prefix_mask(visible, ids.shape[1]), kept=kept)
