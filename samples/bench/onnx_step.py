"""Runs this project's step: an exported graph in ONNX Runtime, with the runtime's numpy backend around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.backend import Forward, Ints, Proposal
from runtime.contract import Contract
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.perf.latency import make_canvas_step

from .contender import Cell, make_tokens


class OnnxStep:
    """Runs a step that gives token, confidence and entropy of every row, reduced in the graph."""

    def __init__(self, model: str, contract: Contract, threads: int) -> None:
        self.backend, self.contract = OrtBackend(Path(model), contract, threads), contract
        self.forward: Forward
        self.proposal: Proposal

    def place(self, cell: Cell) -> None:
        made = make_canvas_step(replace(self.contract, block=cell.width), cell.past)
        self.forward = replace(made, input_ids=make_tokens(cell.width)[None])
        self.backend.capacity = 0  # otherwise a long KV cache from an earlier cell would stay
        self.backend.open(1, cell.capacity or cell.past + cell.width)

    def step(self) -> None:
        self.proposal = self.backend.forward(self.forward)

    def predict_top1(self) -> Ints:
        return self.proposal.token[0]

    def describe(self) -> dict[str, Any]:
        return {"onnxruntime": ort.__version__}
