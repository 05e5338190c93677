"""Writes the step graph for ONNX Runtime, in every precision."""

from __future__ import annotations

from pathlib import Path

import torch

from export.quantization.ort_formats import ORT_FORMATS, formats_of, quantize_for_ort
from runtime.contract import Contract
from train.checkpoint import Checkpoint

from .graph_writer import EXTERNAL, write_graph
from .step_graph import trace

WEIGHT_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    **dict.fromkeys(ORT_FORMATS, torch.float32),
}  # unless quantized


def write_ort_graph(
    source: Checkpoint, contract: Contract, precision: str, logits: bool, folder: Path, external: int = EXTERNAL
) -> list[Path]:
    """Traces the graph and writes it into `folder`, see `store.write_graph`."""
    model = trace(source, contract.capacity, logits, dtype=WEIGHT_DTYPES[precision], top_k=contract.top_k)
    if (formats := formats_of("ort", precision)) is not None:
        quantize_for_ort(model, formats, contract.layers)
    return write_graph(model, folder, f"ort-{precision}", external)
