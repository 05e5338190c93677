"""Runs an exported step graph in ONNX Runtime, on the CPU or a GPU, over a KV cache that stays in place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backend import PADDED, Floats, Forward, Proposal, check_candidates
from ...contract import CANDIDATE_INPUT, CANDIDATE_OUTPUT, FIELD_LIMITS, REDUCED, TOP, Contract, name_cache_part
from ...errors import DeviceError, NumericalError, UserError, describe_error
from .io_binding import Binding, list_specs
from .no_telemetry import ort
from .ort_session import load_session
from .ort_values import choose_numpy_type, copy_to_host, make_value

SMALLEST = 64  # positions of the shortest KV cache; longer ones double, up to the contract's capacity
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}
INTS, FLOATS = "tensor(int64)", "tensor(float)"


@dataclass(frozen=True, slots=True)
class CacheForm:
    """Describes how a graph keeps its KV cache.

    dtype: the type's name; capacity: the length, None if the host chooses it; delta: whether the graph returns only
    the new positions, which the host then writes after the past; batch: whether it takes any number of sequences, as
    the dialect `standard` does, whose attention reads the KV cache to its end.
    """

    dtype: str
    capacity: int | None
    delta: bool
    batch: bool = False


class OrtBackend:
    """Implements the backend protocol for a step graph of any dialect; see `runtime.backend`.

    A graph runs one sequence at a time; a graph of the dialect `standard` runs up to the contract's `batch`.

    model: the .onnx file, or the session of another backend (see `share`). threads: threads per forward pass; by
    default the physical cores. device: `cpu` or `cuda`; on `cuda` the KV cache stays in the GPU's memory, and only
    small arrays are copied. files, allow_spinning: see `load_session`. Raises UserError if the file cannot be loaded,
    is not the contract's graph, or lacks CUDA kernels (`ort_cuda`). Later, a kernel that fails raises DeviceError.
    """

    def __init__(
        self,
        model: Path | ort.InferenceSession,
        contract: Contract,
        threads: int | None = None,
        device: str = "cpu",
        files: Collection[str] = (),
        *,
        allow_spinning: bool = True,
    ) -> None:
        if not isinstance(model, ort.InferenceSession):
            model = load_session(model, threads, device, files, allow_spinning=allow_spinning)
        self.session = model
        self.contract, self.capacity, self.device = contract, 0, device
        self._parts: list[ort.OrtValue] = []  # the KV cache as OrtValues, one per layer's keys or values
        self.cache: NDArray[Any] = np.zeros(
            0
        )  # [2 * layers, batch, kv_heads, capacity, head_dim]; keys of layer 0, its values, keys of layer 1, ...
        self.last_logits: Floats = np.zeros(0, np.float32)  # [1, n, vocab], of an instrumented graph
        self._bindings: dict[tuple[int, int], Binding] = {}  # by counts of top tokens and of candidates
        self._batch = 0  # sequences per forward pass
        self._room = 0  # positions past a request's end, for padding
        self._reach = 0  # positions from here on are zero
        self.threads: int = self.session.get_session_options().intra_op_num_threads
        self._form = read_cache_form(self.session, device)
        if self._form.capacity is not None:  # an engine's capacity may be below its bundle's
            self.contract = replace(contract, capacity=min(contract.capacity, self._form.capacity))
        if self._form.batch:
            self.contract = replace(self.contract, batch=FIELD_LIMITS["batch"])
        if self._form.delta and device != "cpu":
            raise UserError("a graph of the dialect plain keeps its KV cache on the host; run it without --device cuda")
        self._check_graph()

    @property
    def name(self) -> str:
        return "onnxruntime" if self.device == "cpu" else f"onnxruntime on {self.device}"

    def share(self) -> OrtBackend:
        """Returns another backend for another thread, with the same session and its own KV cache."""
        return OrtBackend(self.session, self.contract, device=self.device)

    def open(self, batch: int, capacity: int) -> None:
        if batch > self.contract.batch:
            raise UserError(
                f"{batch} sequences were given at once; this engine runs {self.contract.batch}, decode them in turn"
            )
        if not 1 <= capacity <= self.contract.capacity:
            raise ValueError(f"capacity {capacity} is outside [1, {self.contract.capacity}] of the contract")
        self._room = PADDED * self.contract.block if batch > 1 else 0
        wanted = self._choose_length(capacity)
        # Attention over the whole KV cache slows down with the cache's length, so a cache that is too long is replaced.
        fits = wanted == self.capacity if self._form.batch else wanted <= self.capacity
        if fits and batch == self._batch:
            self._zero()
        else:
            self._allocate(batch, wanted)

    def grow(self, capacity: int) -> None:
        if self._form.capacity is not None or (wanted := self._choose_length(capacity)) <= self.capacity:
            return
        held = self._export_cache()
        cache = self._make_zeros(self._batch, wanted)
        cache[..., : self.capacity, :] = held
        self._bindings.clear()
        self._parts = []  # on a GPU, frees the shorter one before the longer one is allocated
        try:
            self._bind(cache)
        except UserError:
            self._bind(held)  # other requests may be using it
            raise
        self.capacity = wanted

    def _choose_length(self, capacity: int) -> int:
        """Returns the length of a KV cache for requests of `capacity` positions."""
        return choose_bucket(capacity + self._room, self.contract.capacity + self._room)

    def forward(self, forward: Forward) -> Proposal:
        self._check(forward)
        width, n, past = forward.input_ids.shape[1], forward.rows.shape[1], int(forward.past_length.max())
        top_k = self.contract.top_k if forward.top else 0
        count = 0 if forward.candidates is None else forward.candidates.shape[2]
        binding = self._get_binding(top_k, count)
        arrays = binding.resize(width, n)
        arrays["input_ids"][:] = forward.input_ids
        arrays["rows"][:] = forward.rows
        if self._parts:
            arrays["past_length"][:] = forward.past_length
            arrays["visible"][:] = forward.visible
        self._reach = max(self._reach, past + width)
        if "top_k" in arrays:  # 0 saves a greedy step the search; leaving the outputs unbound would not
            arrays["top_k"][:] = top_k
        if forward.candidates is not None:
            arrays[CANDIDATE_INPUT][:] = forward.candidates
        self._run(binding)
        if self._form.delta:
            for i, part in enumerate(self.cache):  # [1, kv_heads, positions, head_dim]
                part[:, :, past : past + width] = arrays[name_cache_part(i)[1]]
        self.last_logits = arrays.get("logits", self.last_logits)
        out = Proposal(*(arrays[name].copy() for name in (*REDUCED, *(TOP if top_k else ()))))
        for token in (out.token, out.top_token):
            if token is not None and not self._may_be(token.ravel().tolist()):
                raise NumericalError("the graph proposes the mask token or an id outside the vocabulary; it is damaged")
        if forward.candidates is None:
            return out
        return replace(out, candidate_logprob=arrays[CANDIDATE_OUTPUT].copy())

    def _may_be(self, ids: list[int]) -> bool:
        """Returns whether a model of this contract may propose these token ids."""
        return min(ids) >= 0 and max(ids) < self.contract.vocab and self.contract.mask_id not in ids

    def read_cache(self) -> NDArray[Any]:
        """Returns the KV cache (from a GPU, a copy), bf16 as fp32. [2 * layers, batch, kv_heads, capacity, head_dim]"""
        held = self._export_cache()
        return held if self._form.dtype != "bfloat16" else (held.astype(np.uint32) << 16).view(np.float32)

    def _export_cache(self) -> NDArray[Any]:
        """Returns the KV cache as `_bind` takes it: on the CPU the array itself, from a GPU a copy."""
        if self.device == "cpu":
            return self.cache
        return np.stack([copy_to_host(part, self._form.dtype) for part in self._parts])

    @property
    def most_copies(self) -> int:
        """See `backend.Forkable`. Returns 1 on a GPU, whose KV cache would be copied through the host."""
        return self.contract.batch if self._form.batch and self.device == "cpu" else 1

    def fork(self, count: int) -> None:
        """See `backend.Forkable`."""
        self.keep(np.zeros(count, np.int64))

    def keep(self, rows: NDArray[Any]) -> None:
        if not len(rows) or min(rows) < 0 or max(rows) >= self._batch:
            raise ValueError(f"rows {rows.tolist()} of a batch of {self._batch}")
        if rows.tolist() == list(range(self._batch)):
            return
        try:
            kept = np.take(self._export_cache(), rows, axis=1)
        except MemoryError:
            raise UserError(self._format_no_memory(len(rows), self.capacity)) from None
        if self._parts:
            self._bind(kept)
        self._batch = len(rows)
        self._bindings.clear()

    def _zero(self) -> None:
        """Zeroes the positions that were written; on a GPU only if attention would read them.

        An earlier request's NaN, times a masked position's weight of 0, would be NaN. GroupQueryAttention reads only
        positions that this request has written, so for it a GPU's memory needs no zeros. With a fixed capacity or a
        batch, attention reads the whole KV cache, which is then zeroed.
        """
        self.cache[..., : self._reach, :] = 0
        if self.device != "cpu" and (self._form.batch or self._form.capacity is not None):
            for part in self._parts:
                part.update_inplace(np.zeros(part.shape(), choose_numpy_type(self._form.dtype)))
        self._reach = 0

    def _run(self, binding: Binding) -> None:
        try:
            binding.run()
        except Exception as error:  # ONNX Runtime's errors have no common class
            reason = describe_error(error, 300)
            raise DeviceError(f"onnxruntime failed on the {self.device}: {reason}") from None

    def _allocate(self, batch: int, capacity: int) -> None:
        capacity = self._form.capacity or capacity
        self._bind(self._make_zeros(batch, capacity))
        self._batch, self.capacity, self._reach = batch, capacity, 0
        self._bindings.clear()

    def _make_zeros(self, batch: int, capacity: int) -> NDArray[Any]:
        """Returns an empty KV cache on the host. [2 * layers, batch, kv_heads, capacity, head_dim]"""
        c = self.contract
        shape = (2 * c.layers if c.has_cache else 0, batch, c.kv_heads, capacity, c.head_dim)
        try:
            return np.zeros(shape, choose_numpy_type(self._form.dtype))
        except (MemoryError, ValueError):
            raise UserError(self._format_no_memory(batch, capacity)) from None

    def _format_no_memory(self, batch: int, capacity: int) -> str:
        each = f"{batch} times {capacity}" if batch > 1 else f"{capacity}"
        place = "memory" if self.device == "cpu" else f"the memory of {self.device}"
        return f"a KV cache of {each} positions does not fit into {place}; shorten the request"

    def _bind(self, cache: NDArray[Any]) -> None:
        """Makes an array the KV cache; on a GPU, a copy of the array.

        Raises UserError if the device has no memory for it; the KV cache is then what it was.
        """
        try:
            parts = [make_value(part, self._form.dtype, self.device) for part in cache]
        except Exception as error:  # ONNX Runtime's errors have no common class
            reason = describe_error(error, 200)
            raise UserError(f"{self._format_no_memory(*cache.shape[1:4:2])} ({reason})") from None
        self._parts = parts
        self.cache = cache if self.device == "cpu" else cache[:0]

    def _get_binding(self, top_k: int, candidates: int) -> Binding:
        """Returns the binding of this KV cache for these counts of top tokens and candidates; makes it if needed.

        Only the latest binding with candidates is kept.
        """
        key = (top_k, candidates)
        if key not in self._bindings:
            self._bindings = {known: held for known, held in self._bindings.items() if not known[1]}
            delta = self._form.dtype if self._form.delta else None
            small = list_specs(self.contract, self._batch, delta, top_k, candidates)
            self._bindings[key] = Binding(self.session, self._parts, small, 2 * self.contract.block, self.device)
        return self._bindings[key]

    def _check(self, forward: Forward) -> None:
        """Raises ValueError for reads or writes out of bounds, which the operators do not notice.

        Users cannot cause them: they would be a bug of blockstep.
        """
        width, pasts = forward.input_ids.shape[1], forward.past_length.tolist()
        if len(pasts) != self._batch or min(pasts) < 0 or max(pasts) + width > self.capacity:
            raise ValueError(
                f"{forward.input_ids.shape} tokens after {pasts} in a KV cache of {self.capacity} positions"
            )
        least = 1 if self.contract.has_cache else width
        # For so few numbers Python is faster than numpy.
        for past, visible, rows in zip(pasts, forward.visible.tolist(), forward.rows.tolist(), strict=True):
            if min(visible) < least or max(visible) > past + width:
                raise ValueError(f"visible is outside [{least}, {past + width}]")
            if min(rows) < 0 or max(rows) >= width:
                raise ValueError(f"rows are outside [0, {width})")
        check_candidates(forward, self.contract)

    def _check_graph(self) -> None:
        """Raises UserError if inputs or outputs are not the contract's: the graph would write past the bound arrays."""
        c, parts = self.contract, range(2 * self.contract.layers if self.contract.has_cache else 0)
        kind = next((numpys for numpys, name in TYPES.items() if name == self._form.dtype), FLOATS)
        plain = ("input_ids", "rows", *(("past_length", "visible") if parts else ()))
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {name: (INTS, ()) for name in plain}
        wanted |= {name_cache_part(i)[0]: (kind, (c.kv_heads, c.head_dim)) for i in parts}
        made = {"token": INTS, "confidence": FLOATS, "entropy": FLOATS, **{name_cache_part(i)[1]: kind for i in parts}}
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        got = {e.name: (e.type, tuple(e.shape[1::2]) if len(e.shape) == 4 else ()) for e in inputs}
        given = {e.name: e.type for e in outputs if e.name != "logits" or e.type != FLOATS}
        if c.top_k:
            if open_k := got.get("top_k") == (INTS, ()):  # a dialect whose host sets the number
                wanted["top_k"] = got["top_k"]
            made |= dict(zip(TOP, (INTS, FLOATS), strict=True))
            given |= {e.name: "" for e in outputs if e.name in TOP and e.shape[2] != c.top_k and not open_k}
        if c.candidates:
            wanted[CANDIDATE_INPUT], made[CANDIDATE_OUTPUT] = (INTS, ()), FLOATS
        wrong = [name for name in sorted(got.keys() | wanted.keys()) if got.get(name) != wanted.get(name)]
        wrong += [name for name in sorted(given.keys() | made.keys()) if given.get(name) != made.get(name)]
        if wrong:
            raise UserError(f"the model file is not the graph of its manifest: {wrong[0]} differs; export it again")


def read_cache_form(session: ort.InferenceSession, device: str = "cpu") -> CacheForm:
    """Returns how a step graph keeps its KV cache. Raises UserError for a type that the device cannot compute with."""
    past, present = name_cache_part(0)
    entry = next((entry for entry in session.get_inputs() if entry.name == past), None)
    if entry is None:
        return CacheForm("float32", None, False)
    batch = len(entry.shape) == 4 and not isinstance(entry.shape[0], int)
    if entry.type not in TYPES:
        raise UserError(f"the model file's KV cache is {entry.type}; this engine runs {', '.join(TYPES)}, export one")
    if TYPES[entry.type] == "bfloat16" and device == "cpu":
        raise UserError(
            "the model file's KV cache is bfloat16, which ONNX Runtime's CPU does not compute; use --device cuda"
        )
    written, length = (
        next((e.shape[2] for e in entries if e.name == name and len(e.shape) == 4), None)
        for name, entries in ((present, session.get_outputs()), (past, session.get_inputs()))
    )
    return CacheForm(TYPES[entry.type], length if isinstance(length, int) else None, written != length, batch)


def choose_bucket(capacity: int, most: int) -> int:
    """Returns the smallest power of two, at least SMALLEST, that holds `capacity` positions; at most `most`."""
    return min(most, max(SMALLEST, 1 << (capacity - 1).bit_length()))
