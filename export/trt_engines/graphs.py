"""Traces a checkpoint's step graph for TensorRT, calibrates and quantizes it, and proves it under ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from export.graph.graph_writer import write_graph
from export.graph.step_graph import trace
from export.precisions import PRECISIONS, Precision
from export.proof.held_out import make_held_out_requests, make_recorded_requests
from export.proof.prove import check_onnx, prove, proves_whole, sample_requests
from export.proof.record import Recording, record_reference
from export.proof.record_streamed import record_streamed
from export.quantization.activation_ranges import add_range_outputs, measure_ranges
from export.quantization.own_codes import find_own_codes_in_fp16
from export.quantization.stored_weights import replace_by_stored_weights
from export.quantization.trt_qdq import quantize_activations, quantize_for_trt
from runtime.bundle.store import Engine, hash_file
from runtime.contract import Contract
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.trt.trt_backend import count_slack
from runtime.proof.judge import Check
from train.checkpoint import Checkpoint
from train.data.prompts import make_encoder
from train.tasks import jsonl

Ranges = Mapping[str, float]
PROMPTS = 64  # prompts of a --data file that calibrate int8-static


@dataclass(frozen=True, slots=True)
class GraphRecipe:
    """Holds the options that a graph is made with. batch: sequences per forward pass; data: a JSON-lines file that
    int8-static is calibrated with, None for other precisions."""

    dialect: str
    precision: str
    batch: int
    data: Path | None

    @property
    def row(self) -> Precision:
        """Returns the precision's row."""
        return PRECISIONS[self.precision]

    def describe(self, exporter: int) -> dict[str, object]:
        """Returns what else a checkpoint's graph depends on, as plain values: the exporter and the calibration data."""
        return {"exporter": exporter, "calibration": hash_file(self.data) if self.data else None}


class Graphs:
    """Makes the graphs of one recipe, traced once per batch size.

    contract: has the graphs' KV-cache capacity and counts of top tokens and candidates.
    """

    def __init__(self, source: Checkpoint, contract: Contract, recipe: GraphRecipe) -> None:
        self.source, self.contract, self.recipe = source, contract, recipe
        self._traced: dict[int, ir.Model] = {}  # by batch size

    def write(self, folder: Path, ranges: Ranges | None = None) -> list[Path]:
        """Writes the graph into `folder`; returns its files, the .onnx file first. ranges: from `calibrate`."""
        stem = f"{self.recipe.dialect}-{self.recipe.precision}-{self.contract.capacity}"
        return write_graph(self._quantize(self.recipe.batch, ranges, dense=False), folder, stem)

    def write_dense(self, folder: Path, ranges: Ranges | None = None) -> list[Path]:
        """Writes the dequantized graph for one sequence: ONNX Runtime's CPU has its operators and runs it faster."""
        return write_graph(self._quantize(1, ranges, dense=True), folder, "dense")

    def calibrate(self, folder: Path) -> Ranges | None:
        """Returns the largest |x| of each product's input while the recipe's prompts are answered; None without data.

        Raises UserError for a file without prompts that fit.
        """
        if self.recipe.data is None:
            return None
        problems = jsonl.read(self.recipe.data)[:PROMPTS]
        texts, lines = [problem.prompt for problem in problems], [problem.line for problem in problems]
        requests = make_held_out_requests(make_encoder(self.source, raw=False), self.contract, texts, lines)
        model = self._trace(1)
        add_range_outputs(model)
        files = write_graph(model, folder, "ranges")
        try:
            return measure_ranges(files[0], self.contract, requests)
        finally:
            for file in files:
                file.unlink()

    def prove(self, file: Path, folder: Path, ranges: Ranges | None = None) -> Iterator[Check]:
        """Yields the checks of `proof.prove.prove` for the graph in `file`, or for its dequantized graph.

        If ONNX Runtime's CPU can run neither, only checks that the graph is valid ONNX.
        """
        recipe, plain = self.recipe, self.recipe.row.weights is None
        if plain and not recipe.row.on_cpu:
            yield check_onnx(file)
            detail = f"not run, ONNX Runtime's CPU has no {recipe.precision}: parsed and built alone"
            yield Check("steps", True, detail)
            return
        if plain and recipe.batch == 1:
            yield from prove(self.source, self.contract, file, recipe.precision)
            return
        yield check_onnx(file)
        what = ["one sequence"] * (recipe.batch > 1) + ["weights dequantized"] * (not plain)
        dense = self.write_dense(folder, ranges)
        for check in prove(self.source, self.contract, dense[0], recipe.precision):
            if check.name != "graph":
                yield replace(check, detail=f"with {' and '.join(what)}: {check.detail}")
        for left in dense:
            left.unlink()

    def record(
        self, engine: Engine, file: Path, folder: Path, max_prompt: int | None, ranges: Ranges | None
    ) -> Recording | None:
        """Records a reference for an engine of the graph in `file`, into `folder`, see `proof.record`.

        Returns None for calibrated activations in a model that is proved layer by layer: nothing measures their loss.

        The reference is recorded from the model with dequantized weights. Its activations are not quantized, so the
        bounds include what quantizing them costs. Bounds are measured by running the graph, or its dequantized graph,
        with ONNX Runtime on the CPU, if it can. max_prompt: the longest prompt of the engine's profiles.
        """
        contract, recipe, row = self.contract, self.recipe, self.recipe.row
        whole = proves_whole(self.source, "auto")
        if row.calibrated and not whole:
            return None
        source = self.source if row.weights is None else replace_by_stored_weights(self.source, row.weights)
        room = replace(contract, capacity=contract.capacity - count_slack(replace(contract, batch=recipe.batch)))
        sources = make_recorded_requests(source, room, None, None), sample_requests(room)
        longest = max_prompt or contract.capacity
        chosen = next(filter(None, ([each for each in made if len(each.prompt) <= longest] for made in sources)))
        if not whole:
            return record_streamed(source, contract, engine, chosen[0], None, folder)
        if row.weights is None and not row.on_cpu:
            return record_reference(source, contract, engine, None, chosen, None, folder)
        plain = row.weights is None and recipe.batch == 1
        files = [file] if plain else self.write_dense(folder, ranges)
        made = record_reference(source, contract, engine, OrtBackend(files[0], contract), chosen, None, folder)
        for left in () if plain else files:
            left.unlink()
        return made

    def _quantize(self, batch: int, ranges: Ranges | None, dense: bool) -> ir.Model:
        model = self._trace(batch)
        if (weights := self.recipe.row.weights) is not None:
            own = find_own_codes_in_fp16(self.source, self.recipe.dialect) if weights == "int4" else None
            quantize_for_trt(model, weights, dense, own)
            quantize_activations(model, ranges or {})
        return model

    def _trace(self, batch: int) -> ir.Model:
        """Returns a copy of the traced graph, to be changed."""
        recipe, capacity = self.recipe, self.contract.capacity
        if batch not in self._traced:
            self._traced[batch] = trace(
                self.source,
                capacity,
                dialect=recipe.dialect,
                dtype=getattr(torch, recipe.row.dtype),
                batch=batch,
                top_k=self.contract.top_k,
                candidates=self.contract.candidates > 0,
            )
        return self._traced[batch].clone()
