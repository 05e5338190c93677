"""Writes the step graph for ONNX Runtime, in every precision."""

from __future__ import annotations

from pathlib import Path

import torch

from export.precisions import PRECISIONS
from export.quantization.ort_formats import ORT_FORMATS, formats_of, quantize_for_ort
from runtime.contract import Contract
from train.checkpoint import Checkpoint

from .graph_writer import EXTERNAL, write_graph
from .step_graph import trace

ORT_PRECISIONS = ("fp32", "fp16", *ORT_FORMATS)


def write_ort_graph(
    source: Checkpoint, contract: Contract, precision: str, folder: Path, external: int = EXTERNAL
) -> list[Path]:
    """Traces the graph and writes it into `folder`, see `store.write_graph`."""
    formats = formats_of("ort", precision)
    dtype = torch.float32 if formats else getattr(torch, PRECISIONS[precision].dtype)
    model = trace(source, contract.capacity, dtype=dtype, top_k=contract.top_k)
    if formats is not None:
        quantize_for_ort(model, formats, contract.layers)
    return write_graph(model, folder, f"ort-{precision}", external)
