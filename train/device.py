"""Moves tensors from the host to the model's device: those of a batch, and the indices of selected rows."""

from __future__ import annotations

import torch
from torch import Tensor


def send(value: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor on `device`, or itself if it is there already.

    A transfer to a GPU goes through pinned memory: from pageable memory it would block the host until the GPU has
    finished all queued work. The pinned copy is never changed, so the host need not wait for the transfer.
    """
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=device.type != "cpu")


def select(rows: Tensor, mask: Tensor) -> Tensor:
    """Returns `rows[mask]`, [n, ...]. The mask is on the host, because the host would have to wait for one on a GPU.

    rows [batch, width, ...]; mask bool [batch, width].
    """
    return rows[tuple(send(places, rows.device) for places in mask.nonzero(as_tuple=True))]
