"""Moves what the host prepares to the device of the model: a batch's tensors, and the places of the rows it selects."""

from __future__ import annotations

import torch
from torch import Tensor


def send(value: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor on that device, itself where it is there already.

    To a GPU it goes through pinned memory: from pageable memory the copy waits until the GPU has done all that is
    queued, and the host with it. The pinned copy stays untouched, so that nothing has to wait for it.
    """
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=device.type != "cpu")


def select(rows: Tensor, mask: Tensor) -> Tensor:
    """Returns `rows[mask]`, [n, ...], of a mask that lies on the host: a mask on a GPU would have to be waited for.

    rows [batch, width, ...]; mask bool [batch, width].
    """
    return rows[tuple(send(places, rows.device) for places in mask.nonzero(as_tuple=True))]
