"""Faults planted into an engine: in its graph's numbers, or between the engine and whoever runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runtime.backend import Forward, Proposal
from runtime.engines.ort.ort_backend import OrtBackend

Numbers = NDArray[Any]
Change = Callable[[Numbers], Numbers]
SCALED = 1.02


def change_graph(content: bytes, changes: dict[str, Change]) -> bytes:
    """Returns a graph in which these initializers have other numbers."""
    model = onnx.load_from_string(content)
    found = {each.name: each for each in model.graph.initializer}
    for name, change in changes.items():
        numbers = change(numpy_helper.to_array(found[name]).copy())
        found[name].CopyFrom(numpy_helper.from_array(numbers, name))
    return bytes(model.SerializeToString())


def scale(columns: slice = slice(None)) -> Change:
    """Multiplies columns of a matrix."""

    def change(numbers: Numbers) -> Numbers:
        numbers[..., columns] = numbers[..., columns] * np.asarray(SCALED, numbers.dtype)
        return numbers

    return change


def round_products(content: bytes) -> bytes:
    """Returns a graph whose products take activations of 10 bits of mantissa, as those in TF32 do."""
    model = onnx.load_from_string(content)
    nodes = []
    for number, node in enumerate(model.graph.node):
        if node.op_type in ("MatMul", "Gemm"):
            half, back = f"half.{number}", f"back.{number}"
            nodes.append(helper.make_node("Cast", [node.input[0]], [half], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [half], [back], to=TensorProto.FLOAT))
            node.input[0] = back
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return bytes(model.SerializeToString())


def other_base(function: Callable[[Numbers], Numbers]) -> Change:
    """Makes a RoPE table [positions, head_dim / 2] of angles whose base is twice what it was."""

    def change(numbers: Numbers) -> Numbers:
        count = numbers.shape[1]
        inverse = np.arccos if function is np.cos else np.arcsin
        step = inverse(numbers[1].astype(np.float64)) * 2 ** (-np.arange(count) / count)  # of one position, below pi/2
        made: Numbers = function(np.arange(len(numbers))[:, None] * step).astype(numbers.dtype)
        return made

    return change


def put_graph(bundle: Path, content: bytes, name: str | None = None) -> None:
    """Puts another graph into a bundle under its hash, in the first engine's place, or as an engine before it."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    file = f"planted-{digest[:8]}.onnx"
    (bundle / file).write_bytes(content)
    changed = {**manifest["engines"][0], "model": file, "files": {file: digest}}
    if name is not None:
        changed |= {"name": name, "precision": "int8"}
    manifest["engines"][: 1 if name is None else 0] = [changed]
    (bundle / "manifest.json").write_text(json.dumps(manifest))


class Stale:
    """An engine whose forward passes read the KV cache as it was before the one before them."""

    name = "stale"

    def __init__(self, inner: OrtBackend) -> None:
        self.inner, self.contract = inner, inner.contract
        self._before: Numbers | None = None

    def open(self, batch: int, capacity: int) -> None:
        self.inner.open(batch, capacity)
        self._before = None

    def forward(self, forward: Forward) -> Proposal:
        now = self.inner.cache.copy()
        if self._before is not None:
            self.inner.cache[:] = self._before
        self._before = now
        out = self.inner.forward(forward)
        first = int(forward.past_length[0])
        self.inner.cache[..., :first, :] = now[..., :first, :]
        return out

    def keep(self, rows: Numbers) -> None:
        self.inner.keep(rows)

    def read_cache(self) -> Numbers:
        return self.inner.read_cache()


class Shifted(Stale):
    """An engine that reads the KV cache of one layer, what was committed of it, one position further.

    The last position is lost, and zeros come first: to attention a cache is a set, so one that is rolled is the same.
    """

    name = "shifted"

    def __init__(self, inner: OrtBackend, layer: int) -> None:
        super().__init__(inner)
        self.layer = layer

    def forward(self, forward: Forward) -> Proposal:
        past = int(forward.past_length[0])
        part = self.inner.cache[2 * self.layer : 2 * self.layer + 2, ..., :past, :]
        kept = part.copy()
        part[..., 1:, :] = kept[..., :-1, :]
        part[..., :1, :] = 0
        out = self.inner.forward(forward)
        part[:] = kept
        return out


class Masked(Stale):
    """An engine whose queries see so many positions more."""

    name = "masked"

    def __init__(self, inner: OrtBackend, more: int) -> None:
        super().__init__(inner)
        self.more = more

    def forward(self, forward: Forward) -> Proposal:
        end = int(forward.past_length[0]) + forward.input_ids.shape[1]
        return self.inner.forward(replace(forward, visible=np.clip(forward.visible + self.more, 1, end)))
