"""Binds a step graph's inputs and outputs to arrays in place: to one KV cache, and to small arrays of each size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contract import CANDIDATE_INPUT, CANDIDATE_OUTPUT, REDUCED, TOP, Contract, name_cache_part
from .no_telemetry import ort

OPEN = -1  # a dimension that depends on the forward pass


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Describes a small array. by: the size of a forward pass that fills the shape's OPEN dimension, `width` or `n`."""

    by: str
    dtype: str
    shape: tuple[int, ...]


Group = list[tuple[str, NDArray[Any], ort.OrtValue]]  # arrays of one size: name, array, and its OrtValue


class Binding:
    """Holds all that a graph reads and writes: `resize` returns the arrays for a forward pass, `run` runs the pass.

    cache: the KV cache's parts in the order of `name_cache_part`, read and written in place. specs: the small arrays.
    kept: arrays up to this width or `n` are kept, so that decoding allocates each size once; longer prompts' arrays
    are freed. device: where the graph runs; inputs are copied there for each run.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: Sequence[ort.OrtValue],
        specs: Mapping[str, ArraySpec],
        kept: int,
        device: str,
    ) -> None:
        self._session, self._cache, self._here = session, cache, device == "cpu"
        self.arrays: dict[str, NDArray[Any]] = {}
        self._specs, self._kept = specs, kept
        self._groups: dict[tuple[str, int], Group] = {}
        self._bound: dict[tuple[int, int], tuple[Any, dict[str, NDArray[Any]]]] = {}
        self._io: Any = None
        inputs = {entry.name for entry in session.get_inputs()}
        self._inputs = [name for name in specs if name in inputs]
        self._outputs = [entry.name for entry in session.get_outputs() if entry.name in specs]

    def resize(self, width: int, n: int) -> dict[str, NDArray[Any]]:
        """Binds and returns, by name, the small arrays for a forward pass of `width` tokens and `n` logits rows."""
        known = self._bound.get((width, n))
        if known is None:
            known = self._bind(width, n)
            if max(width, n) <= self._kept:
                self._bound[width, n] = known
        self._io, self.arrays = known
        return self.arrays

    def _bind(self, width: int, n: int) -> tuple[Any, dict[str, NDArray[Any]]]:
        io, arrays = self._session.io_binding(), {}
        for i, value in enumerate(self._cache):
            past, present = name_cache_part(i)
            io.bind_ortvalue_input(past, value)
            if present not in self._specs:
                io.bind_ortvalue_output(present, value)
        for name, array, value in (*self._group("width", width), *self._group("n", n)):
            arrays[name] = array
            if name in self._outputs:
                io.bind_ortvalue_output(name, value)
            elif self._here:
                io.bind_ortvalue_input(name, value)
        return io, arrays

    def run(self) -> None:
        if not self._here:
            for name in self._inputs:
                self._io.bind_cpu_input(name, self.arrays[name])  # copies the current content
        self._session.run_with_iobinding(self._io)

    def _group(self, by: str, size: int) -> Group:
        group = self._groups.get((by, size))
        if group is None:
            group = []
            for name in (*self._inputs, *self._outputs):
                spec = self._specs[name]
                if spec.by == by:
                    array = np.zeros([size if d == OPEN else d for d in spec.shape], spec.dtype)
                    group.append((name, array, ort.OrtValue.ortvalue_from_numpy(array)))
            if size <= self._kept:
                self._groups[by, size] = group
        return group


def list_specs(
    contract: Contract, batch: int, delta: str | None, top_k: int, candidates: int = 0
) -> dict[str, ArraySpec]:
    """Returns the specs of a graph's small arrays, by name.

    batch: sequences per forward pass; delta: the KV cache's type if the graph returns only the new positions, else
    None; top_k: top tokens read per row; candidates: candidates given per row.
    """
    c = contract
    table = {name: ArraySpec("width", "int64", (batch, OPEN)) for name in ("input_ids", "visible")}
    table["past_length"] = ArraySpec("width", "int64", (batch,))
    table["rows"] = ArraySpec("n", "int64", (batch, OPEN))
    table["top_k"] = ArraySpec("width", "int64", (1,))  # in dialects whose host sets the number
    table |= {name: ArraySpec("n", "int64" if name == "token" else "float32", (batch, OPEN)) for name in REDUCED}
    if top_k:
        table |= {
            name: ArraySpec("n", kind, (batch, OPEN, top_k))
            for name, kind in zip(TOP, ("int64", "float32"), strict=True)
        }
    table[CANDIDATE_INPUT] = ArraySpec("n", "int64", (batch, OPEN, candidates))
    table[CANDIDATE_OUTPUT] = ArraySpec("n", "float32", (batch, OPEN, candidates))
    table["logits"] = ArraySpec("n", "float32", (batch, OPEN, c.vocab))  # of an instrumented graph
    if delta is not None:
        new = ArraySpec("width", delta, (batch, c.kv_heads, OPEN, c.head_dim))
        table |= {name_cache_part(i)[1]: new for i in range(2 * c.layers)}
    return table
