"""Measures the ranges of activations, the inputs of the layers' products, on real prompts, to calibrate static int8."""

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

SUFFIX = ".largest"  # ends the name of a range output, which begins with the name of the product's output


def add_range_outputs(model: ir.Model) -> None:
    """Adds to a traced graph, in place, an output fp32 [] per product of a layer: the largest |x| of its input.

    Its name is that of the product's output and SUFFIX.
    """
    for node in [*find_products(model)]:
        magnitude = ir.node("Abs", [node.inputs[0]])
        maximum = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0})
        cast = ir.node("Cast", [maximum.outputs[0]], {"to": ir.DataType.FLOAT.value})
        for new in (magnitude, maximum, cast):
            model.graph.insert_before(node, new)
        largest = cast.outputs[0]
        largest.name = f"{node.outputs[0].name}{SUFFIX}"
        largest.shape, largest.type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(largest)


class RangeRecorder:
    """Runs a graph with range outputs as a backend, for one sequence, and keeps the largest |x| over all passes.

    ranges: the largest |x| of each product's input so far, by the name of the product's output.
    """

    name = "range recorder"

    def __init__(self, model: Path, contract: Contract) -> None:
        self.contract, self.ranges = contract, dict[str, float]()
        self._session = load_session(model)
        self._cache: dict[str, NDArray[Any]] = {}

    def open(self, batch: int, capacity: int) -> None:
        form = read_cache_form(self._session)
        cache_inputs = [entry for entry in self._session.get_inputs() if len(entry.shape) == 4]
        self._cache = {entry.name: np.zeros(entry.shape, form.dtype) for entry in cache_inputs}

    def keep(self, rows: NDArray[Any]) -> None:
        """Does nothing: there is only one sequence."""

    def forward(self, forward: Forward) -> Proposal:
        names = [entry.name for entry in self._session.get_inputs()]
        feeds = {name: getattr(forward, name) for name in names if name not in self._cache} | self._cache
        if CANDIDATE_INPUT in names:  # ordinary decoding has no candidates, and the graph needs some
            feeds[CANDIDATE_INPUT] = np.zeros((*forward.rows.shape, 1), np.int64)
        values = self._session.run(None, feeds)
        out = dict(zip((entry.name for entry in self._session.get_outputs()), values, strict=True))
        first, width = int(forward.past_length[0]), forward.input_ids.shape[1]
        for past, present in (name_cache_part(part) for part in range(len(self._cache))):
            new = out[present]  # [1, kv_heads, width, head_dim], or the whole KV cache
            self._cache[past][:, :, first : first + width] = (
                new if new.shape[2] == width else new[:, :, first : first + width]
            )
        for name, value in out.items():
            if name.endswith(SUFFIX):
                product = name.removesuffix(SUFFIX)
                self.ranges[product] = max(self.ranges.get(product, 0.0), float(value))
        return Proposal(out["token"], out["confidence"], out["entropy"])


def measure_ranges(model: Path, contract: Contract, requests: Sequence[Request]) -> dict[str, float]:
    """Generates answers to requests with a graph that has range outputs.

    Returns the largest |x| of each product's input, by the name of the product's output.
    """
    backend = RangeRecorder(model, contract)
    for request in requests:
        generate(backend, request)
    return backend.ranges
