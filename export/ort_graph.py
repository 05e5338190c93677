"""Writes the step graph for ONNX Runtime, in every precision."""

from __future__ import annotations

from pathlib import Path

import torch

from runtime.contract import Contract
from train.checkpoint import Checkpoint

from .graph import trace
from .quantise import FORMATS, formats_of, quantise_weights
from .store import EXTERNAL, store

TYPES = {"fp32": torch.float32, "fp16": torch.float16, **dict.fromkeys(FORMATS, torch.float32)}  # unless quantized


def write_model(
    source: Checkpoint, contract: Contract, precision: str, logits: bool, folder: Path, external: int = EXTERNAL
) -> list[Path]:
    """Traces the graph and writes it into `folder`, see `store.store`."""
    model = trace(source, contract.capacity, logits, dtype=TYPES[precision], top_k=contract.top_k)
    if (formats := formats_of("ort", precision)) is not None:
        quantise_weights(model, formats, contract.layers)
    return store(model, folder, f"ort-{precision}", external)
