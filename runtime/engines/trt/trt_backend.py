"""Runs TensorRT engines of a bundle on one GPU, each request on the smallest engine that holds it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backend import PADDED, Floats, Forward, Proposal, check_candidates
from ...bundle.manifest import Build, Bundle, Engine
from ...contract import Contract
from ...decoding.block_layout import compute_committed_ends
from ...errors import UserError
from ..registry import DEFAULT
from .admission import explain_refusal, list_siblings, read_content
from .chunked_prefill import check_bounds, split_forward
from .cuda import Cuda, Gpu, load_cuda
from .engine import TrtEngine, load_library

LIBRARY_NAMES = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
LibraryLoader = Callable[[str], Any]


class TrtBackend:
    """Implements the backend protocol for engines that differ only in capacity; see `runtime.backend`.

    engines: in order of capacity; the first is loaded at once, a larger one when a request needs it, and all stay
    loaded. If a request's batch is smaller than the engine's, the engine's other rows are not used. Only one thread at
    a time may use the backend. Raises UserError if an engine is not trusted, is damaged or is not the contract's graph,
    DeviceError if a call of CUDA or TensorRT fails. `close` frees the GPU's memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Sequence[Engine],
        cuda: Cuda,
        library: Any,
        gpu: Gpu,
        *,
        trust: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        self.engines = tuple(engines)
        self._bundle, self._cuda, self._library, self._gpu = bundle, cuda, library, gpu
        self._trust, self._cuda_graphs = trust, cuda_graphs
        self._loaded_engines: dict[str, TrtEngine] = {}
        self._slots = np.arange(0)  # for each sequence, its row in the engine's batch
        flavor = get_build(self.engines[0]).flavor
        self._name = f"{LIBRARY_NAMES[flavor]} {library.__version__} on {gpu.name} (sm{gpu.capability})"
        self.contract = self._limit_contract()
        self._engine = self._load(self.engines[0])

    @property
    def name(self) -> str:
        return self._name + ("" if self._engine.uses_cuda_graphs else ", without CUDA graphs")

    @property
    def cache(self) -> Floats:
        """Returns a copy of the KV cache, for comparisons. float32 [2 * layers, batch, kv_heads, capacity, head_dim]"""
        return self._engine.read_cache()[:, self._slots]

    def read_cache(self) -> Floats:
        """Returns the same as `cache`."""
        return self.cache

    def open(self, batch: int, capacity: int) -> None:
        if batch > self.contract.batch:
            raise UserError(
                f"{batch} sequences were given at once; this engine runs {self.contract.batch}, decode them in turn"
            )
        if not 1 <= capacity <= self.contract.capacity:
            raise ValueError(f"capacity {capacity} is outside [1, {self.contract.capacity}] of the contract")
        needed = capacity + count_slack(self.contract)
        large_enough = (e for e in self.engines if compute_max_positions(get_build(e), self.contract) >= needed)
        self._engine = self._load(next(large_enough))
        self._engine.reset()
        self._slots = np.arange(batch)

    def forward(self, forward: Forward) -> Proposal:
        engine = self._engine
        check_bounds(forward, self.contract, len(self._slots), engine.contract.capacity)
        check_candidates(forward, self.contract)
        max_rows, n = min(profile.max_rows for profile in engine.profiles), forward.rows.shape[1]
        if n > max_rows:  # such as for a form on a `full` model
            return join_proposals(
                [self.forward(take_rows(forward, start, start + max_rows)) for start in range(0, n, max_rows)]
            )
        arrays: dict[str, NDArray[Any]] = {}  # by field name of Proposal
        for chunk in split_forward(forward, engine.max_width):
            out = engine.forward(self._fill_batch(chunk.forward))
            for name in Proposal.__slots__:
                if (new := getattr(out, name)) is not None:
                    array = arrays.setdefault(name, np.zeros((len(self._slots), *new.shape[1:]), new.dtype))
                    array[chunk.has_row] = new[self._slots][chunk.has_row]
        return Proposal(**arrays)

    def keep(self, rows: NDArray[Any]) -> None:
        is_repeat = np.ones(len(rows), np.bool_)
        is_repeat[np.unique(rows, return_index=True)[1]] = False
        slots = self._slots[rows]
        free_slots = np.setdiff1d(np.arange(self.contract.batch), slots)
        slots[is_repeat] = free_slots[: np.count_nonzero(is_repeat)]
        self._slots = slots

    def close(self) -> None:
        """Frees the GPU's memory; the backend cannot be used any more."""
        while self._loaded_engines:
            self._loaded_engines.popitem()[1].close()

    def _load(self, engine: Engine) -> TrtEngine:
        if engine.name not in self._loaded_engines:
            contract = derive_engine_contract(self._bundle.contract, engine)
            content, kernels_key = read_content(self._bundle.path, engine, self._trust), self._make_kernels_key(engine)
            loaded = TrtEngine(content, contract, self._cuda, self._library, self._cuda_graphs, kernels_key)
            self._loaded_engines[engine.name] = loaded
            if tuple((p.min_width, p.max_width) for p in loaded.profiles) != get_build(engine).profiles:
                self.close()
                raise UserError(f"{engine.name} has other profiles than its manifest lists; build it again")
        return self._loaded_engines[engine.name]

    def _make_kernels_key(self, engine: Engine) -> str:
        """Returns the key of the kernels that TensorRT for RTX compiles for an engine and this GPU."""
        parts = (engine.files[engine.model], self._library.__version__, self._gpu.name, str(self._gpu.capability))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _limit_contract(self) -> Contract:
        """Returns the contract that requests are checked by: the largest engine's, limited to what its profiles run."""
        contract, build = derive_engine_contract(self._bundle.contract, self.engines[-1]), get_build(self.engines[-1])
        if not contract.has_cache:
            return replace(contract, capacity=compute_max_positions(build, contract))
        capacity, max_width = contract.capacity - count_slack(contract), get_max_width(build)
        # If a prompt's first token sees more tokens than the widest pass has, the prompt cannot be split.
        is_limited = compute_committed_ends(contract, max(1, capacity))[0] > max_width
        return replace(contract, capacity=capacity, max_prompt=max_width if is_limited else None)

    def _fill_batch(self, forward: Forward) -> Forward:
        """Returns the forward pass for the engine's whole batch.

        The rows without a sequence get padding tokens, which see one position and whose results are not read.
        """
        batch, slots = self.contract.batch, self._slots
        if batch == 1:
            return forward
        ids = np.full((batch, forward.input_ids.shape[1]), self.contract.pad_id, np.int64)
        past, visible = np.zeros(batch, np.int64), np.ones_like(ids)
        rows = np.zeros((batch, forward.rows.shape[1]), np.int64)
        ids[slots], past[slots], visible[slots] = forward.input_ids, forward.past_length, forward.visible
        rows[slots] = forward.rows
        if forward.candidates is None:
            return Forward(ids, past, visible, rows, forward.top)
        candidates = np.full((batch, *forward.candidates.shape[1:]), self.contract.eos_ids[0])
        candidates[slots] = forward.candidates
        return Forward(ids, past, visible, rows, forward.top, candidates)


def take_rows(forward: Forward, start: int, end: int) -> Forward:
    """Returns the forward pass with only the logits rows from `start` to `end`."""
    candidates = None if forward.candidates is None else forward.candidates[:, start:end]
    return replace(forward, rows=forward.rows[:, start:end], candidates=candidates)


def join_proposals(parts: Sequence[Proposal]) -> Proposal:
    """Returns proposals for consecutive logits rows as one."""
    fields = {name: [getattr(part, name) for part in parts] for name in Proposal.__slots__}
    return Proposal(**{name: np.concatenate(each, axis=1) for name, each in fields.items() if each[0] is not None})


def count_slack(contract: Contract) -> int:
    """Returns how many padding positions may follow a sequence's end, if the batch has sequences of other lengths.

    They are as many as another sequence's committed block and canvas.
    """
    return PADDED * contract.block if contract.batch > 1 else 0


def compute_max_positions(build: Build, contract: Contract) -> int:
    """Returns the maximum number of positions of a request: the KV cache's, or without one the widest pass's."""
    return build.capacity if contract.has_cache else min(build.capacity, get_max_width(build))


def get_max_width(build: Build) -> int:
    """Returns the width, in tokens, of the widest forward pass."""
    return max(max_width for _, max_width in build.profiles)


def get_build(engine: Engine) -> Build:
    if engine.build is None:
        raise ValueError(f"{engine.name} is not a TensorRT engine")
    return engine.build


def derive_engine_contract(contract: Contract, engine: Engine) -> Contract:
    """Returns a bundle's contract with one engine's capacity, batch, dtype and cache."""
    build = get_build(engine)
    cache = engine.cache if contract.has_cache else "none"
    return replace(contract, capacity=build.capacity, batch=build.batch, dtype=build.dtype, cache=cache)


def open_engines(
    bundle: Bundle,
    engines: Sequence[Engine],
    *,
    trust: bool = False,
    cuda_graphs: bool = True,
    cuda: Cuda | None = None,
    library: LibraryLoader = load_library,
) -> TrtBackend:
    """Opens the first engine that runs on this machine's GPU, and those that differ from it only in capacity.

    trust: whether to load engines that were built elsewhere; cuda, library: replacements for the installed packages.
    Raises UserError, with what to do, if driver, GPU or library is missing, or if no engine was built for them.
    """
    cuda = cuda or load_cuda()
    gpu = cuda.find_gpu()
    if gpu is None:
        raise UserError(
            f"the engine is built; running it needs {cuda.explain_missing_gpu()}; {advise_without_gpu(bundle)}"
        )
    reasons = []
    for engine in engines:
        build = get_build(engine)
        try:
            module = library(build.flavor)
        except UserError as error:
            reasons.append(f"{engine.name} needs {LIBRARY_NAMES[build.flavor]} {build.version}: {error}")
            continue
        reason = explain_refusal(engine, build, gpu, module.__version__)
        if reason is None:
            siblings = list_siblings(engines, engine)
            return TrtBackend(bundle, siblings, cuda, module, gpu, trust=trust, cuda_graphs=cuda_graphs)
        reasons.append(f"{engine.name} {reason}")
    advice = f"build one here: blockstep export trt --bundle {bundle.path}"
    raise UserError(f"{reasons[0]}; {advice}, or {advise_without_gpu(bundle)}")


def advise_without_gpu(bundle: Bundle) -> str:
    """Returns advice, for an error message, on an engine that runs without a GPU."""
    if any(engine.is_called(DEFAULT) for engine in bundle.engines):
        return f"--engine {DEFAULT} runs here"
    return "blockstep export onnx makes an engine that runs here"
