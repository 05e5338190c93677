"""Loads a TensorRT engine, standard or for RTX, on a GPU, checks it, binds the memory that it needs, and runs it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import Any

import numpy as np

from ...backend import Floats, Forward, Ints, Proposal
from ...contract import CANDIDATE_INPUT, CANDIDATE_OUTPUT, TOP, Contract, name_cache_part
from ...errors import DeviceError, UserError, warn_once
from .bindings import call, shorten_to_line
from .cuda import CUDA_12_ADVICE, Cuda, Handle
from .kv_cache import DeviceCache
from .profile import OptimizationProfile, ProfileRunner, choose_profile
from .rtx_kernels import RtxKernels

LIBRARIES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}  # flavor to module
CUDA_13_NEEDS = "for CUDA 13 and NVIDIA's driver 580 or newer"
INSTALL_ADVICE = {
    "tensorrt": f"pip install 'blockstep[trt]', {CUDA_13_NEEDS}; {CUDA_12_ADVICE}",
    "rtx": f"pip install 'blockstep[rtx]', {CUDA_13_NEEDS}; {CUDA_12_ADVICE.replace('tensorrt', 'tensorrt-rtx')}",
}
NEEDS_NEWER_DRIVER = "driver version is insufficient"  # CUDA's message if TensorRT needs a newer driver
DATA_TYPES = {"int64": "INT64", "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}  # TensorRT's names
DYNAMIC = -1  # the size of a dimension that depends on the forward pass


def load_library(flavor: str) -> Any:
    """Returns the TensorRT module of a flavor. Raises UserError if it is not installed or cannot be loaded."""
    name = LIBRARIES[flavor]
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        raise UserError(f"{name} cannot be imported ({error}); {INSTALL_ADVICE[flavor]}") from None


class TrtEngine:
    """Runs an engine of fixed batch and capacity. A forward pass always runs the whole batch.

    content: the engine file's bytes, from a trusted source, since loading them runs native code. contract: with the
    engine's own capacity, batch, dtype and cache. cuda_graphs: whether to replay forward passes of fixed width as CUDA
    graphs. kernels_key: the key of the engine's compiled kernels in the user's cache folder, for TensorRT for RTX; see
    `RtxKernels`. Raises UserError if the engine cannot be loaded or is not the contract's graph, DeviceError if a call
    fails; in both cases all allocated memory is freed.
    """

    def __init__(
        self,
        content: bytes,
        contract: Contract,
        cuda: Cuda,
        library: Any,
        cuda_graphs: bool = True,
        kernels_key: str = "",
    ) -> None:
        self.contract, self._cuda = contract, cuda
        self._last_pass: tuple[Ints, int, int] | None = None  # its past_length [batch], width and padded width
        self._messages: list[str] = []
        self._runtime, self._engine = self._deserialize(content, library)
        call("looking at the engine", check_graph, self._engine, library, contract)
        self.profiles: list[OptimizationProfile] = call(
            "looking at its profiles", lambda: list(_read_profiles(self._engine))
        )
        with ExitStack() as stack:
            self._stream = cuda.create_stream()
            stack.callback(cuda.destroy_stream, self._stream)
            self.cache = DeviceCache(cuda, self._stream, contract, self.max_width, stack)
            self._kernels = None
            if library.__name__ == LIBRARIES["rtx"]:
                self._kernels = call("create_runtime_config", RtxKernels, self._engine, library, kernels_key)
                self._take_messages()  # drops messages about stored kernels that were refused, which users need not see
            self._runners = self._make_runners(library, stack)
            try:
                self._warm_up(cuda_graphs, stack)
            except BaseException:
                self._drain()
                raise
            self._stack = stack.pop_all()
        self._release = weakref.finalize(self, _release, cuda, self._stream, self._stack)  # if nobody calls `close`
        self._release.atexit = False  # CUDA itself may be gone by then

    @property
    def max_width(self) -> int:
        """Returns the width, in tokens, of the widest forward pass."""
        return max(profile.max_width for profile in self.profiles)

    @property
    def uses_cuda_graphs(self) -> bool:
        """Returns whether all forward passes of a fixed width replay CUDA graphs."""
        return all(runner.has_cuda_graph for runner in self._runners if runner.profile.has_fixed_width)

    def reset(self) -> None:
        """Zeroes the KV cache."""
        self._last_pass = None
        self.cache.zero()

    def forward(self, forward: Forward) -> Proposal:
        """Runs one forward pass of at most `max_width` tokens, whose bounds the caller has checked; stores its keys and
        values."""
        width, has_cache = forward.input_ids.shape[1], self.contract.has_cache
        room = self.contract.capacity - int(forward.past_length.max())
        profile, padded = choose_profile(self.profiles, width, room, allow_padding=has_cache)
        self._append_to_cache(forward.past_length)
        runner = self._runners[profile.index]
        if not profile.has_fixed_width:
            for name in ("input_ids", "visible") if has_cache else ("input_ids",):
                self._set_shape(runner.context, name, (self.contract.batch, padded))
        runner.feed(forward, padded, self.contract.pad_id)
        self._run(runner)
        self._last_pass = (forward.past_length.copy(), width, padded)
        count = 0 if forward.candidates is None else forward.candidates.shape[2]
        return runner.fetch(forward.rows.shape[1], forward.top, count)

    def read_cache(self) -> Floats:
        """Returns the KV cache as `DeviceCache.read` does, with all keys and values of the last forward pass."""
        if self._last_pass is not None:
            self._append_to_cache(self._last_pass[0] + self._last_pass[1])
        return self.cache.read()

    def close(self) -> None:
        """Frees everything; the engine cannot be used any more."""
        self._drain()
        self._release.detach()
        try:
            with self._stack:
                if self._kernels is not None:
                    self._kernels.store()
        finally:
            # Each points into the next, so they are dropped in this order.
            self._runners, self._kernels, self._engine, self._runtime = [], None, None, None

    def _drain(self) -> None:
        """Waits for work in progress, which uses the memory that is freed next."""
        with suppress(DeviceError):  # it was reported before, or the next call reports it
            self._cuda.synchronize(self._stream)

    def _append_to_cache(self, past: Ints) -> None:
        """Copies a `delta` engine's outputs of the last pass to the KV cache, for the positions before `past` [batch].

        A forward pass calls it with its committed positions: so a commit costs copies, and a step costs none.
        """
        if not self.cache.new_parts or self._last_pass is None:
            return
        last_past, width, padded = self._last_pass
        for index, (start, now) in enumerate(zip(last_past.tolist(), past.tolist(), strict=True)):
            if count := min(max(now - start, 0), width):
                self.cache.append(index, start, count, padded)

    def _deserialize(self, content: bytes, library: Any) -> tuple[Any, Any]:
        """Returns TensorRT's runtime, and the engine that it makes from a file's content."""
        try:
            runtime = call("Runtime", library.Runtime, _make_logger(library, self._messages))
            runtime.engine_host_code_allowed = True  # a version-compatible engine brings its own runtime
            engine = call("deserialize_cuda_engine", runtime.deserialize_cuda_engine, content)
            messages = self._take_messages()
        except DeviceError as error:
            engine, messages = None, f"{error}; {self._take_messages()}"
        if engine is None:
            flavor = next(flavor for flavor, name in LIBRARIES.items() if name == library.__name__)
            advice = "build it again here: blockstep export trt"
            if NEEDS_NEWER_DRIVER in messages:
                advice = INSTALL_ADVICE[flavor]
            raise UserError(f"{library.__name__} {library.__version__} cannot load the engine ({messages}); {advice}")
        return runtime, engine

    def _make_runners(self, library: Any, stack: ExitStack) -> list[ProfileRunner]:
        """Makes and binds a context per profile; contexts run one at a time, so they share scratch memory."""
        size = max(self._engine.device_memory_size_v2, 1)
        scratch = self._cuda.allocate(size)
        stack.callback(self._cuda.free, scratch)
        runners, strategy = [], library.ExecutionContextAllocationStrategy.USER_MANAGED
        for profile in self.profiles:
            create = self._engine.create_execution_context
            context = call("create_execution_context", create, self._kernels.config if self._kernels else strategy)
            if context is None:
                raise DeviceError(f"create_execution_context failed: {self._take_messages()}")
            call("set_device_memory", context.set_device_memory, scratch, size)
            runner = ProfileRunner(self._cuda, self._stream, context, profile, self.contract, stack)
            self._set("a profile", context.set_optimization_profile_async, profile.index, int(self._stream))
            self._bind(runner)
            runners.append(runner)
        self._cuda.synchronize(self._stream)
        return runners

    def _bind(self, runner: ProfileRunner) -> None:
        """Sets every tensor's address, once. With a KV cache in place, input and output have the same address."""
        context = runner.context
        addresses = {**runner.inputs.addresses, **runner.outputs.addresses}
        for i, part in enumerate(self.cache.parts):
            past, present = name_cache_part(i)
            addresses[past], addresses[present] = part, self.cache.new_parts[i] if self.cache.new_parts else part
        for name, (mode, _, shape) in list_tensors(self.contract).items():
            self._set(f"the address of {name}", context.set_tensor_address, name, addresses[name])
            if mode == "INPUT" and DYNAMIC in tuple(self._engine.get_tensor_shape(name)):
                size = runner.profile.max_width if name in ("input_ids", "visible") else runner.profile.max_rows
                self._set_shape(context, name, tuple(size if n == DYNAMIC else n for n in shape))

    def _set_shape(self, context: Any, name: str, shape: tuple[int, ...]) -> None:
        self._set(f"the shape {list(shape)} of {name}", context.set_input_shape, name, shape)

    def _warm_up(self, cuda_graphs: bool, stack: ExitStack) -> None:
        """Runs every profile once, so that libraries load and allocate what they need, and captures CUDA graphs."""
        failure = None
        for runner in self._runners:
            batch, width = self.contract.batch, runner.profile.max_width
            ids = np.full((batch, width), self.contract.pad_id, np.int64)
            zeros = np.zeros(batch, np.int64)
            runner.feed(Forward(ids, zeros, np.ones_like(ids), zeros[:, None]), width, self.contract.pad_id)
            self._run(runner)
            if cuda_graphs and runner.profile.has_fixed_width:
                failure = runner.capture(stack) or failure
                self._run(runner)
        if failure is not None:
            messages = f"{failure} (TensorRT reports: {self._take_messages()})"
            warn_once("graphs", f"the engine runs without CUDA graphs, so every step is slower: {messages}")
        if self._kernels is not None:
            self._kernels.store()

    def _run(self, runner: ProfileRunner) -> None:
        try:
            runner.run()
        except DeviceError as error:
            raise DeviceError(f"{error}; TensorRT reports: {self._take_messages()}") from None

    def _set(self, what: str, method: Callable[..., bool], *arguments: Any) -> None:
        """Calls a setter of TensorRT. Raises DeviceError, which names `what`, if it raises or returns False."""
        try:
            is_set, reason = call(method.__name__, method, *arguments), ""
        except DeviceError as error:
            is_set, reason = False, f"{error}; "
        if not is_set:
            raise DeviceError(f"TensorRT does not take {what}: {reason}{self._take_messages()}")

    def _take_messages(self) -> str:
        """Returns the library's error messages since the last call of this method, as one line."""
        messages, self._messages[:] = shorten_to_line(" ".join(self._messages)), []
        return messages or "it gave no reason"


def check_graph(engine: Any, library: Any, contract: Contract) -> None:
    """Raises UserError if an engine's inputs and outputs are not those of the contract."""
    expected = list_tensors(contract)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    wrong = sorted(expected.keys() ^ set(names))
    for name in sorted(expected.keys() & set(names)):
        mode, dtype, shape = expected[name]
        engine_shape = tuple(engine.get_tensor_shape(name))
        same_shape = len(engine_shape) == len(shape) and all(
            a in (DYNAMIC, b) or b == DYNAMIC for a, b in zip(engine_shape, shape, strict=True)
        )
        same_mode = engine.get_tensor_mode(name) == getattr(library.TensorIOMode, mode)
        same_dtype = engine.get_tensor_dtype(name) == getattr(library.DataType, DATA_TYPES[dtype])
        if not (same_shape and same_mode and same_dtype):
            wrong.append(name)
        elif engine.get_tensor_location(name) != library.TensorLocation.DEVICE:
            raise UserError(
                f"the engine reads {name} on the host, as a shape, but gets GPU memory alone; build it again: "
                "blockstep export trt"
            )
    get_alias = getattr(engine, "get_aliased_input_tensor", None)  # from TensorRT 10.15 on
    if contract.cache == "in_place" and not wrong and get_alias is not None:
        wrong += [
            present for past, present in map(name_cache_part, range(2 * contract.layers)) if get_alias(present) != past
        ]
    if wrong:
        raise UserError(
            f"the engine is not that of its manifest: {wrong[0]} differs; build it again: blockstep export trt"
        )


def list_tensors(contract: Contract) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Returns mode, type and shape of every input and output of a contract's engine, by name."""
    c = contract
    table: dict[str, tuple[str, str, tuple[int, ...]]] = {
        "input_ids": ("INPUT", "int64", (c.batch, DYNAMIC)),
        "rows": ("INPUT", "int64", (c.batch, DYNAMIC)),
        "token": ("OUTPUT", "int64", (c.batch, DYNAMIC)),
        "confidence": ("OUTPUT", "float32", (c.batch, DYNAMIC)),
        "entropy": ("OUTPUT", "float32", (c.batch, DYNAMIC)),
    }
    for name, dtype in zip(TOP, ("int64", "float32"), strict=True) if c.top_k else ():
        table[name] = ("OUTPUT", dtype, (c.batch, DYNAMIC, c.top_k))
    if c.candidates:
        table[CANDIDATE_INPUT] = ("INPUT", "int64", (c.batch, DYNAMIC, c.candidates))
        table[CANDIDATE_OUTPUT] = ("OUTPUT", "float32", (c.batch, DYNAMIC, c.candidates))
    if not c.has_cache:
        return table
    table["past_length"] = ("INPUT", "int64", (c.batch,))
    table["visible"] = ("INPUT", "int64", (c.batch, DYNAMIC))
    length = DYNAMIC if c.cache == "delta" else c.capacity
    for past, present in map(name_cache_part, range(2 * c.layers)):
        table[past] = ("INPUT", c.dtype, (c.batch, c.kv_heads, c.capacity, c.head_dim))
        table[present] = ("OUTPUT", c.dtype, (c.batch, c.kv_heads, length, c.head_dim))
    return table


def _read_profiles(engine: Any) -> Iterator[OptimizationProfile]:
    for index in range(engine.num_optimization_profiles):
        min_width, _, max_width = (tuple(shape)[1] for shape in engine.get_tensor_profile_shape("input_ids", index))
        max_rows = tuple(engine.get_tensor_profile_shape("rows", index)[2])[1]
        yield OptimizationProfile(index, min_width, max_width, max_rows)


def _make_logger(library: Any, messages: list[str]) -> Any:
    """Makes a logger that keeps the library's error messages for one-line errors; the default logger prints them."""
    severities = (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR)

    def log(self: Any, severity: Any, message: str) -> None:
        if severity in severities:
            messages.append(message)

    methods = {"log": log, "__init__": lambda self: library.ILogger.__init__(self)}
    return type("Listener", (library.ILogger,), methods)()


def _release(cuda: Cuda, stream: Handle, stack: ExitStack) -> None:
    """Frees what an engine holds on the GPU, once its work is done."""
    with suppress(DeviceError):
        cuda.synchronize(stream)
    stack.close()
