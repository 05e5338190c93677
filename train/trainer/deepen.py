"""Makes a trained model deeper without changing what it computes (depth expansion), as the start of a larger one."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from runtime.errors import UserError
from train.checkpoint import Checkpoint

LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")
SILENT = (
    "self_attn.o_proj.weight",
    "mlp.down_proj.weight",
)  # everything that a layer adds to the residual stream passes through one of these


def deepen(start: Checkpoint, layers: int) -> Checkpoint:
    """Returns the model with `layers` layers: its own, and copies that add 0, evenly spread, each after its original.

    Depth expansion as in Net2Net (Chen et al. 2015, arXiv 1511.05641), for residual layers. Raises UserError if the
    model has more layers already.
    """
    had = start.model.layers
    if layers < had:
        raise UserError(f"{layers} layers were requested of a model that has {had}; give --layers {had} or more")
    originals = [place * had // layers for place in range(layers)]
    weights: dict[str, Tensor] = {}
    for name, tensor in start.weights.items():
        if (parts := LAYER.fullmatch(name)) is None:
            weights[name] = tensor
            continue
        places = [place for place, original in enumerate(originals) if original == int(parts[2])]
        for place in places:
            silent = place != places[0] and parts[3].endswith(SILENT)
            weights[f"{parts[1]}{place}{parts[3]}"] = torch.zeros_like(tensor) if silent else tensor
    return replace(start, model=replace(start.model, layers=layers), weights=weights)
