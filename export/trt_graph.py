"""The step graph for TensorRT in every precision: traced from a checkpoint, calibrated, proved under ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

from runtime.bundle import sha256
from runtime.contract import Contract
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.tasks import jsonl

from .graph import trace
from .onnx import prove
from .parity import Check
from .qdq import quantise_activations, quantise_weights
from .calibrate import measure, watch
from .store import store
from .verify import held_out

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # precisions that quantise nothing
Ranges = Mapping[str, float]
PROMPTS = 64  # of a --data file that int8 is calibrated with


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a graph is made of. batch: sequences of a forward; data: a JSON-lines file that int8-static is calibrated
    with, None for other precisions."""

    dialect: str
    precision: str
    batch: int
    data: Path | None

    @property
    def format(self) -> str | None:
        """How its weights are quantised."""
        return None if self.precision in DTYPES else self.precision.removesuffix("-static")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights that are not quantised, heads and cache."""
        return DTYPES.get(self.precision, torch.float16)

    def values(self, exporter: int) -> dict[str, object]:
        """Plain values that tell one graph of a checkpoint from another."""
        return {"exporter": exporter, "calibration": sha256(self.data) if self.data else None}


def write_graph(
    source: Checkpoint, contract: Contract, recipe: Recipe, folder: Path, ranges: Ranges | None = None
) -> list[Path]:
    """Traces and quantises the graph and writes it into `folder`, the .onnx file first.

    contract: with the capacity that the graph gets. ranges: what `calibrated` found, for int8-static.
    """
    model = trace(source, contract.capacity, dialect=recipe.dialect, dtype=recipe.dtype, batch=recipe.batch)
    if recipe.format is not None:
        quantise_weights(model, recipe.format)
        quantise_activations(model, ranges or {})
    return store(model, folder, f"{recipe.dialect}-{recipe.precision}-{contract.capacity}")


def write_twin(
    source: Checkpoint, contract: Contract, recipe: Recipe, folder: Path, ranges: Ranges | None
) -> list[Path]:
    """The same graph for one sequence and with its weights dequantised, which ONNX Runtime's CPU runs, and faster."""
    model = trace(source, contract.capacity, dialect=recipe.dialect, dtype=recipe.dtype)
    if recipe.format is not None:
        quantise_weights(model, recipe.format, dense=True)
        quantise_activations(model, ranges or {})
    return store(model, folder, "twin")


def calibrated(source: Checkpoint, contract: Contract, recipe: Recipe, folder: Path) -> Ranges | None:
    """The largest |x| of each product's input while the prompts of the recipe's data are answered, None without data.

    Raises UserError for a file that holds no prompts, or too long ones.
    """
    if recipe.data is None:
        return None
    try:
        problems = jsonl.read(recipe.data)[:PROMPTS]
    except ValueError as error:
        raise UserError(str(error)) from None
    watched = trace(source, contract.capacity, dialect=recipe.dialect, dtype=torch.float16)
    watch(watched)
    file = folder / "watched.onnx"
    ir.save(watched, file)
    try:
        return measure(file, contract, held_out(source, contract, [problem.prompt for problem in problems]))
    finally:
        file.unlink()


def prove_graph(
    source: Checkpoint, contract: Contract, recipe: Recipe, file: Path, folder: Path, ranges: Ranges | None = None
) -> Iterator[Check]:
    """The checks of `export.onnx.prove`, of the graph in `file` or its twin. bf16 is only checked to be valid ONNX."""
    if recipe.precision == "bf16":
        yield valid(file)
        yield Check("steps", True, "not run, ONNX Runtime's CPU has no bf16: parsed and built alone")
        return
    if recipe.format is None and recipe.batch == 1:
        yield from prove(source, contract, file, recipe.precision)
        return
    yield valid(file)
    twin = write_twin(source, contract, recipe, folder, ranges)
    for check in prove(source, contract, twin[0], recipe.precision):
        if check.name != "graph":
            yield replace(check, detail=f"of one sequence, weights dequantised: {check.detail}")
    for left in twin:
        left.unlink()


def valid(file: Path) -> Check:
    """Whether a graph is valid ONNX."""
    try:
        onnx.checker.check_model(file)
    except onnx.checker.ValidationError as error:
        return Check("graph", False, " ".join(str(error).split())[:200])
    return Check("graph", True, f"{file.stat().st_size / 1e6:.1f} MB, valid for onnx {onnx.__version__}")
