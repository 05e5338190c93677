"""Makes a trained model deeper without changing what it computes (depth expansion), to start a larger model from it."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from runtime.errors import UserError
from train.checkpoint import Checkpoint

LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")
# Everything that a layer adds to the residual stream passes through one of these; if both are zero, it adds nothing.
OUTPUT_PROJECTIONS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def deepen(start: Checkpoint, layers: int) -> Checkpoint:
    """Returns a model with `layers` layers that computes the same as `start`: its own layers and copies that add 0.

    The copies are spread evenly, each after its original. This is depth expansion as in Net2Net (Chen et al. 2015,
    arXiv 1511.05641), for residual layers. Raises UserError if the model already has more layers.
    """
    start_layers = start.model.layers
    if layers < start_layers:
        raise UserError(
            f"{layers} layers were requested of a model that has {start_layers}; give --layers {start_layers} or more"
        )
    originals = [index * start_layers // layers for index in range(layers)]  # by new layer, the index of its original
    weights: dict[str, Tensor] = {}
    for name, tensor in start.weights.items():
        if (match := LAYER.fullmatch(name)) is None:
            weights[name] = tensor
            continue
        prefix, layer, suffix = match.groups()
        copies = [index for index, original in enumerate(originals) if original == int(layer)]
        for index in copies:
            silent = index != copies[0] and suffix.endswith(OUTPUT_PROJECTIONS)
            weights[f"{prefix}{index}{suffix}"] = torch.zeros_like(tensor) if silent else tensor
    return replace(start, model=replace(start.model, layers=layers), weights=weights)
