"""The ONNX Runtime backend: runs an exported step graph over a cache that stays where it is, on the CPU or on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .backend import Floats, Forward, Proposal
from .contract import Contract, cache_names
from .cores import physical_cores
from .errors import DeviceError, NumericalError, UserError

SMALLEST = 64  # positions; from there caches double up to the contract's capacity
REDUCED = ("token", "confidence", "entropy")
CUDA = "CUDAExecutionProvider"
SHAPES = 8  # (width, rows) pairs whose bindings are kept: canvas, fused and the latest prefills
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}  # which numpy has too
INTS, FLOATS = "tensor(int64)", "tensor(float)"


@dataclass(frozen=True, slots=True)
class Binding:
    """Buffers of one (width, rows) by name, bound once: the graph reads and writes them where they lie."""

    io: Any
    buffers: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class CacheForm:
    """How a graph keeps its cache. dtype: numpy's name; capacity: its length, None where the host chooses it; delta:
    whether the graph returns the new positions alone, which the host then writes behind the past."""

    dtype: str
    capacity: int | None
    delta: bool


class OrtBackend:
    """A step graph of any dialect behind the backend protocol; see `runtime.backend`. One sequence at a time.

    model: the .onnx file, or the session of another backend (see `share`). threads: of one forward; the physical cores
    by default. device: `cpu` or `cuda`, where the cache is a GPU's memory and only the small arrays cross; what the
    GPU's kernels do not take is a DeviceError then. Raises UserError where the file cannot be loaded or is not the
    graph of that contract.
    """

    def __init__(
        self, model: Path | ort.InferenceSession, contract: Contract, threads: int | None = None, device: str = "cpu"
    ) -> None:
        self.session = model if isinstance(model, ort.InferenceSession) else load_session(model, threads, device)
        self._contract, self.capacity, self.device = contract, 0, device
        self._parts: list[ort.OrtValue] = []  # on a GPU, in place of `cache`
        self.cache: NDArray[Any] = np.zeros(0)  # [2 * layers, 1, kv_heads, capacity, head_dim]; keys, values by turns
        self.last_logits: Floats | None = None  # [1, n, vocab] of the last forward, where the graph has them
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._inputs = [entry.name for entry in self.session.get_inputs()]
        self._outputs = [output.name for output in self.session.get_outputs()]
        self._form = cache_form(self.session)
        if self._form.capacity is not None:  # an engine of a bundle may be shorter than its contract
            self._contract = replace(contract, capacity=min(contract.capacity, self._form.capacity))
        if self._form.delta and device != "cpu":
            raise UserError("a graph of the dialect plain keeps its cache on the host; run it without --device cuda")
        self._check_graph()

    @property
    def name(self) -> str:
        return "onnxruntime" if self.device == "cpu" else f"onnxruntime on {self.device}"

    @property
    def contract(self) -> Contract:
        return self._contract

    def share(self) -> OrtBackend:
        """Another backend with a cache of its own over the same session, for another thread."""
        return OrtBackend(self.session, self._contract, device=self.device)

    def open(self, batch: int, capacity: int) -> None:
        if batch != 1:
            raise UserError(f"{batch} sequences were given at once; this engine runs one, decode them in turn")
        if not 1 <= capacity <= self._contract.capacity:
            raise ValueError(f"capacity {capacity} is outside [1, {self._contract.capacity}] of the contract")
        if capacity > self.capacity:
            self._allocate(bucket(capacity, self._contract.capacity))
        else:
            self.cache.fill(0)
            for part in self._parts:
                part.update_inplace(np.zeros(part.shape(), self.cache.dtype))

    def forward(self, forward: Forward) -> Proposal:
        self._check(forward)
        width, n = forward.input_ids.shape[1], forward.rows.shape[1]
        bound = self._bindings.pop((width, n), None) or self._bind(width, n)
        self._bindings[width, n] = bound  # the latest used is the last, so that the first is the one to drop
        for name in ("input_ids", "past_length", "visible", "rows"):
            np.copyto(bound.buffers[name], getattr(forward, name))
        self._run(bound)
        if self._form.delta:
            self._append(bound, int(forward.past_length[0]), width)
        self.last_logits = bound.buffers.get("logits")
        token, confidence, entropy = (bound.buffers[name].copy() for name in REDUCED)
        if token.min() < 0 or token.max() >= self._contract.vocab or (token == self._contract.mask_id).any():
            raise NumericalError("the graph proposes the mask token or an id that there is not; it is damaged")
        return Proposal(token, confidence, entropy)

    def keep(self, rows: NDArray[Any]) -> None:
        if rows.tolist() != [0]:
            raise ValueError(f"rows {rows.tolist()} of a batch of one")

    def _append(self, bound: Binding, past: int, width: int) -> None:
        """Writes the new positions, each part [1, kv_heads, width, head_dim], behind the past."""
        for i, part in enumerate(self.cache):
            part[:, :, past : past + width] = bound.buffers[cache_names(i)[1]]

    def _run(self, bound: Binding) -> None:
        try:
            for name in self._inputs if self.device != "cpu" else ():
                if name in bound.buffers:
                    bound.io.bind_cpu_input(name, bound.buffers[name])  # copied as it is bound, so at every forward
            self.session.run_with_iobinding(bound.io)
        except Exception as error:  # its errors share no class of their own
            reason = " ".join(str(error).split())[:300]
            raise DeviceError(f"onnxruntime failed on the {self.device}: {reason}") from None

    def _allocate(self, capacity: int) -> None:
        c, cached = self._contract, self._contract.attention != "full"
        capacity = self._form.capacity or capacity
        shape = (2 * c.layers if cached else 0, 1, c.kv_heads, capacity, c.head_dim)
        self._bindings.clear()
        try:
            self.cache, self.capacity = np.zeros(shape, self._form.dtype), capacity
        except (MemoryError, ValueError):
            raise UserError(f"a cache of {capacity} positions does not fit into memory; shorten the request") from None
        if self.device != "cpu":
            self._parts = [ort.OrtValue.ortvalue_from_numpy(part, self.device, 0) for part in self.cache]
            self.cache = self.cache[:0]

    def _bind(self, width: int, n: int) -> Binding:
        while len(self._bindings) >= SHAPES:
            del self._bindings[next(iter(self._bindings))]
        shapes = {"input_ids": (1, width), "past_length": (1,), "visible": (1, width), "rows": (1, n)}
        buffers: dict[str, NDArray[Any]] = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        buffers |= {name: np.zeros((1, n), np.int64 if name == "token" else np.float32) for name in REDUCED}
        if "logits" in self._outputs:
            buffers["logits"] = np.zeros((1, n, self._contract.vocab), np.float32)
        for i, part in enumerate(self.cache):
            past, present = cache_names(i)  # one buffer on both sides is written in place
            new = np.zeros((*part.shape[:2], width, part.shape[3]), part.dtype) if self._form.delta else part
            buffers |= {past: part, present: new}
        io = self.session.io_binding()
        for i, value in enumerate(self._parts):
            io.bind_ortvalue_input(cache_names(i)[0], value)
            io.bind_ortvalue_output(cache_names(i)[1], value)
        for names, bind in ((self._inputs, io.bind_input), (self._outputs, io.bind_output)):
            for name in (name for name in names if name in buffers):
                array = buffers[name]
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return Binding(io, buffers)

    def _check(self, forward: Forward) -> None:
        """Refuses what would read or write out of bounds, which the operators do not notice. A bug of ours."""
        width, past = forward.input_ids.shape[1], int(forward.past_length[0])
        if forward.input_ids.shape[0] != 1 or past < 0 or past + width > self.capacity:
            raise ValueError(f"{forward.input_ids.shape} tokens behind {past} in a cache of {self.capacity} positions")
        least = width if self._contract.attention == "full" else 1
        if forward.visible.min() < least or forward.visible.max() > past + width:
            raise ValueError(f"visible is outside [{least}, {past + width}]")
        if forward.rows.min() < 0 or forward.rows.max() >= width:
            raise ValueError(f"rows are outside [0, {width})")

    def _check_graph(self) -> None:
        """Raises UserError for a graph with other inputs or outputs: bound as they are, it would write past them."""
        c, parts = self._contract, range(2 * self._contract.layers if self._contract.attention != "full" else 0)
        kind = next((numpys for numpys, name in TYPES.items() if name == self._form.dtype), FLOATS)
        wanted = {name: (INTS, ()) for name in ("input_ids", "rows", *(("past_length", "visible") if parts else ()))}
        wanted |= {cache_names(i)[0]: (kind, (c.kv_heads, c.head_dim)) for i in parts}
        made = {"token": INTS, "confidence": FLOATS, "entropy": FLOATS, **{cache_names(i)[1]: kind for i in parts}}
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        got = {e.name: (e.type, tuple(e.shape[1::2]) if len(e.shape) == 4 else ()) for e in inputs}
        given = {e.name: e.type for e in outputs if e.name != "logits" or e.type != FLOATS}
        wrong = [name for name in sorted(got.keys() | wanted.keys()) if got.get(name) != wanted.get(name)]
        wrong += [name for name in sorted(given.keys() | made.keys()) if given.get(name) != made.get(name)]
        if wrong:
            raise UserError(f"the model file is not the graph of its manifest: {wrong[0]} differs; export it again")


def cache_form(session: ort.InferenceSession) -> CacheForm:
    """What a step graph says of its cache. Raises UserError for a type that numpy has no numbers for."""
    past, present = cache_names(0)
    entry = next((entry for entry in session.get_inputs() if entry.name == past), None)
    if entry is None:
        return CacheForm("float32", None, False)
    if entry.type not in TYPES:
        raise UserError(f"the model file's cache is {entry.type}; this engine runs {', '.join(TYPES)}, export one")
    written, length = (
        next((e.shape[2] for e in entries if e.name == name and len(e.shape) == 4), None)
        for name, entries in ((present, session.get_outputs()), (past, session.get_inputs()))
    )
    return CacheForm(TYPES[entry.type], length if isinstance(length, int) else None, written != length)


def bucket(capacity: int, most: int) -> int:
    """The smallest power of two from SMALLEST on that holds `capacity` positions, but never above `most`."""
    return min(most, max(SMALLEST, 1 << (capacity - 1).bit_length()))


def load_session(model: Path, threads: int | None = None, device: str = "cpu") -> ort.InferenceSession:
    """A session, which several backends may share. Raises UserError where ONNX Runtime does not take file or device."""
    providers = ["CPUExecutionProvider"]
    if device != "cpu":
        if CUDA not in ort.get_available_providers():
            raise UserError(
                f"onnxruntime {ort.__version__} here runs on the CPU alone; for --device cuda, pip uninstall "
                "onnxruntime and pip install 'blockstep[gpu]'"
            )
        providers.insert(0, CUDA)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors
    try:
        session = ort.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # its errors share no class of their own
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"onnxruntime {ort.__version__} cannot load {model} ({reason}); expected an exported step graph and "
            "onnxruntime 1.30 or newer"
        ) from None
    if session.get_providers()[0] != providers[0]:  # it goes on with the CPU where CUDA cannot be loaded
        raise UserError("onnxruntime cannot use CUDA here; see that driver, CUDA and cuDNN fit it, or use --device cpu")
    return session
