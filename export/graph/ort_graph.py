"""Writes the step graph for ONNX Runtime, in both of its dialects and every precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from export.precisions import PRECISIONS
from export.quantization.ort_formats import ORT_FORMATS, choose_formats, quantize_for_ort
from export.quantization.own_codes import find_own_codes_in_fp16
from export.quantization.standard_nbits import BITS, quantize_for_nbits
from export.quantization.stored_weights import replace_by_stored_weights
from runtime.contract import Contract
from runtime.proof.judge import Check
from train.checkpoint import Checkpoint

from .graph_writer import EXTERNAL, write_graph
from .step_graph import trace

PRECISIONS_OF = {"ort": ("fp32", "fp16", *ORT_FORMATS), "standard": ("fp32", "fp16", "bf16", *BITS)}
ORT_PRECISIONS = PRECISIONS_OF["ort"]


def write_ort_graph(
    source: Checkpoint, contract: Contract, precision: str, folder: Path, external: int = EXTERNAL, dialect: str = "ort"
) -> list[Path]:
    """Traces the graph and writes it into `folder`, see `graph_writer.write_graph`."""
    formats, row = choose_formats(dialect, precision, source), PRECISIONS[precision]
    dtype = torch.float32 if formats else getattr(torch, row.dtype)
    batch = None if dialect == "standard" else 1
    model = trace(source, contract.capacity, dialect, dtype, batch, contract.top_k, contract.candidates > 0)
    if formats is not None:
        quantize_for_ort(model, formats, contract.layers)
    elif row.weights is not None:
        own = find_own_codes_in_fp16(source, dialect) if row.weights == "int4" else None
        quantize_for_nbits(model, row.weights, own)
    return write_graph(model, folder, f"{dialect}-{precision}", external)


@dataclass(frozen=True, slots=True)
class ComparedWith:
    """Holds what an engine is compared with in PyTorch.

    Args:
        source: the checkpoint, or the same with the engine's dequantized weights.
        precision: the one whose bounds apply.
        note: a prefix for the checks' details, "" for the checkpoint itself.
    """

    source: Checkpoint
    precision: str
    note: str = ""

    def add_note(self, check: Check) -> Check:
        """Returns a check of the comparison with the note before its detail."""
        return replace(check, detail=self.note + check.detail)


def choose_comparison(source: Checkpoint, dialect: str, precision: str) -> ComparedWith:
    """Returns what a graph is compared with, at its export and later.

    The dialect `standard` quantizes only weights and multiplies in fp16, so its graphs are compared with the model that
    has the dequantized weights, by the bounds of fp16. Graphs that quantize activations too (`choose_formats`), and
    TensorRT's, which round in their own way, are compared with the checkpoint.
    """
    row = PRECISIONS[precision]
    if dialect != "standard" or row.weights is None:
        return ComparedWith(source, precision)
    note = f"next to the {precision} numbers that it stores, by the bounds of fp16: "
    return ComparedWith(replace_by_stored_weights(source, row.weights), "fp16", note)
