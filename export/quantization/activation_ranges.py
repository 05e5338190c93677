"""Measures how large the inputs of the layers' products get on real prompts, to calibrate static int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from runtime.backend import Forward, Proposal
from runtime.contract import CANDIDATE_INPUT, Contract, name_cache_part
from runtime.decoding.loop import generate
from runtime.decoding.options import Request
from runtime.engines.ort.ort_backend import read_cache_form
from runtime.engines.ort.ort_session import load_session

from .trt_qdq import find_products

SUFFIX = ".largest"


def watch(model: ir.Model) -> None:
    """Adds to a traced graph, in place, one output [] per product of a layer: the largest |x| of its input."""
    for node in [*find_products(model)]:
        x = node.inputs[0]
        size = ir.node("Abs", [x])
        top = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0})
        wide = ir.node("Cast", [top.outputs[0]], {"to": ir.DataType.FLOAT.value})
        for added in (size, top, wide):
            model.graph.insert_before(node, added)
        largest = wide.outputs[0]
        largest.name = f"{node.outputs[0].name}{SUFFIX}"
        largest.shape, largest.type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(largest)


class RangeRecorder:
    """Runs a watched graph as a backend; `ranges` keeps the largest value of each output `NAME.largest`."""

    name = "watching"

    def __init__(self, model: Path, contract: Contract) -> None:
        self.contract, self.ranges = contract, dict[str, float]()
        self._session = load_session(model)
        self._cache: dict[str, NDArray[Any]] = {}

    def open(self, batch: int, capacity: int) -> None:
        form = read_cache_form(self._session)
        past = [entry for entry in self._session.get_inputs() if len(entry.shape) == 4]
        self._cache = {entry.name: np.zeros(entry.shape, form.dtype) for entry in past}

    def keep(self, rows: NDArray[Any]) -> None:
        """Does nothing: there is one sequence, and it stays."""

    def forward(self, forward: Forward) -> Proposal:
        names = [entry.name for entry in self._session.get_inputs()]
        feeds = {name: getattr(forward, name) for name in names if name not in self._cache} | self._cache
        if CANDIDATE_INPUT in names:  # ordinary decoding names none, and the graph needs some
            feeds[CANDIDATE_INPUT] = np.zeros((*forward.rows.shape, 1), np.int64)
        values = self._session.run(None, feeds)
        out = dict(zip((entry.name for entry in self._session.get_outputs()), values, strict=True))
        first, width = int(forward.past_length[0]), forward.input_ids.shape[1]
        for past, present in (name_cache_part(part) for part in range(len(self._cache))):
            new = out[present]  # [1, kv_heads, width, head_dim], or the whole KV cache
            written = new if new.shape[2] == width else new[:, :, first : first + width]
            self._cache[past][:, :, first : first + width] = written
        for name, value in out.items():
            if name.endswith(SUFFIX):
                product = name.removesuffix(SUFFIX)
                self.ranges[product] = max(self.ranges.get(product, 0.0), float(value))
        return Proposal(out["token"], out["confidence"], out["entropy"])


def measure(model: Path, contract: Contract, requests: Sequence[Request]) -> dict[str, float]:
    """Answers requests with a watched graph; returns the largest |x| of each product's input, by its output's name."""
    backend = RangeRecorder(model, contract)
    for request in requests:
        generate(backend, request)
    return backend.ranges
