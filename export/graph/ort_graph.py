"""Writes the step graph for ONNX Runtime, in both of its dialects and every precision."""

from __future__ import annotations

from pathlib import Path

import torch

from export.precisions import PRECISIONS
from export.quantization.ort_formats import ORT_FORMATS, formats_of, quantize_for_ort
from export.quantization.standard_nbits import BITS, quantize_for_nbits
from export.quantization.stored_weights import with_stored_weights
from runtime.contract import Contract
from train.checkpoint import Checkpoint

from .graph_writer import EXTERNAL, write_graph
from .step_graph import trace

PRECISIONS_OF = {"ort": ("fp32", "fp16", *ORT_FORMATS), "standard": ("fp32", "fp16", "bf16", *BITS)}
ORT_PRECISIONS = PRECISIONS_OF["ort"]


def write_ort_graph(
    source: Checkpoint, contract: Contract, precision: str, folder: Path, external: int = EXTERNAL, dialect: str = "ort"
) -> list[Path]:
    """Traces the graph and writes it into `folder`, see `graph_writer.write_graph`."""
    formats, row = formats_of(dialect, precision), PRECISIONS[precision]
    dtype = torch.float32 if formats else getattr(torch, row.dtype)
    batch = None if dialect == "standard" else 1
    model = trace(source, contract.capacity, dialect, dtype, batch, contract.top_k)
    if formats is not None:
        quantize_for_ort(model, formats, contract.layers)
    elif row.weights is not None:
        quantize_for_nbits(model, row.weights)
    return write_graph(model, folder, f"{dialect}-{precision}", external)


def computed_with(source: Checkpoint, dialect: str, precision: str) -> tuple[Checkpoint, str]:
    """Returns the checkpoint with the numbers that a graph multiplies with, and the precision that it is one of then.

    Stored weights that stand for other numbers are these, in products of fp16. Weights whose rounding goes together
    with that of activations (`formats_of`) stay as they are.
    """
    row = PRECISIONS[precision]
    if formats_of(dialect, precision) is not None or row.weights is None:
        return source, precision
    return with_stored_weights(source, row.weights), "fp16"
