"""Moves what the host prepares to the model's device: a batch's tensors, and the indices of the rows it selects."""

from __future__ import annotations

import torch
from torch import Tensor


def send(value: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor on that device, or itself if it is there already.

    To a GPU it goes through pinned memory: a copy from pageable memory blocks the host until the GPU has finished all
    queued work. The pinned copy is never changed, so nothing has to wait for it.
    """
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=device.type != "cpu")


def select(rows: Tensor, mask: Tensor) -> Tensor:
    """Returns `rows[mask]`, [n, ...], for a mask on the host: a mask on a GPU would force a wait.

    rows [batch, width, ...]; mask bool [batch, width].
    """
    return rows[tuple(send(places, rows.device) for places in mask.nonzero(as_tuple=True))]
