"""A scripted stand-in for TensorRT, whose engine is a tiny PyTorch model over the buffers that it was given.

It answers the calls of TensorRT's Python API that the runtime makes, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fake_cuda import FakeCuda
from numpy.typing import NDArray

from runtime.contract import Contract, name_cache_part
from train.torch_backend import TorchBackend
from train.transformer.network import Transformer

NUMPY = {"int64": np.int64, "float32": np.float32, "float16": np.float16}


@dataclass(frozen=True, slots=True)
class Plan:
    """What an engine file of the fake holds: a model, its contract, its profiles [(least, most)], rows of each."""

    model: Transformer
    contract: Contract
    profiles: tuple[tuple[int, int], ...]
    rows: int
    scratch: int = 1000


class FakeTensorRT:
    """A TensorRT module. plans: engines by their file's content. changes: what its engines say differently of a tensor.

    refuse: methods that answer False or None; raises: methods that raise. capturable: what contexts answer, None where
    there is no such question. on_host: tensors that are read on the host. rtx: be TensorRT for RTX, whose contexts
    compile a kernel for each shape that the cache of their configuration has none for; compiled: these, in order.
    """

    __version__ = "10.16.1.11"
    TensorIOMode = SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
    TensorLocation = SimpleNamespace(DEVICE="DEVICE", HOST="HOST")
    DataType = SimpleNamespace(INT64="INT64", FLOAT="FLOAT", HALF="HALF", BF16="BF16")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

        def __init__(self) -> None:
            pass

    def __init__(self, cuda: FakeCuda, plans: dict[bytes, Plan], rtx: bool = False) -> None:
        self.cuda, self.plans, self.rtx = cuda, plans, rtx
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="LAZY", EAGER="EAGER", NONE="NONE")
        self.changes: dict[str, tuple[str, str, tuple[int, ...]] | None] = {}
        self.aliases: dict[str, str] = {}
        self.refuse: set[str] = set()
        self.raises: dict[str, Exception] = {}
        self.on_host: set[str] = set()
        self.compiled: list[str] = []
        self.environment = "driver 580"  # a runtime cache of another one is refused
        self.capturable: bool | None = None
        self.contexts: list[FakeContext] = []

    def Runtime(self, logger: Any) -> SimpleNamespace:
        self.logger = logger
        self.raise_for("Runtime")

        def deserialize_cuda_engine(content: bytes) -> FakeEngine | None:
            self.raise_for("deserialize_cuda_engine")
            if content not in self.plans:
                logger.log(2, "a warning")
                logger.log(1, "magic tag\ndoes not match")
                return None
            return FakeEngine(self, self.plans[content])

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)

    def raise_for(self, name: str) -> None:
        if name in self.raises:
            self.logger.log(1, f"{name} was refused")
            raise self.raises[name]


class FakeEngine:
    """What TensorRT reports of an engine, from the tables of a plan."""

    def __init__(self, library: FakeTensorRT, plan: Plan) -> None:
        self.library, self.plan = library, plan
        self.tensors = {
            name: value for name, value in (list_fake_tensors(plan) | library.changes).items() if value is not None
        }
        self.device_memory_size_v2 = plan.scratch
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(plan.profiles)
        if library.rtx:
            self.create_runtime_config = lambda: FakeRuntimeConfig(library)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][2]

    def get_tensor_location(self, name: str) -> str:
        return "HOST" if name in self.library.on_host else "DEVICE"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, int]]:
        self.library.raise_for("get_tensor_profile_shape")
        if name == "candidates":
            sizes = [1, self.plan.contract.candidates, self.plan.contract.candidates]
            return [(self.plan.contract.batch, self.plan.rows, size) for size in sizes]  # type: ignore[return-value]
        least, most = self.plan.profiles[index] if name == "input_ids" else (1, self.plan.rows)
        return [(self.plan.contract.batch, size) for size in (least, most, most)]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        in_place = self.plan.contract.cache == "in_place" and name.startswith("present.")
        return self.library.aliases.get(name, name.replace("present", "past_key_values") if in_place else None)

    def create_execution_context(self, how: Any) -> FakeContext | None:
        self.library.raise_for("create_execution_context")
        config = how if self.library.rtx else None
        assert (config.allocation if config else how) == "USER_MANAGED"
        if "create_execution_context" in self.library.refuse:
            return None
        self.library.contexts.append(FakeContext(self, config))
        return self.library.contexts[-1]


class FakeRuntimeConfig:
    """TensorRT for RTX's IRuntimeConfig, with its runtime cache."""

    def __init__(self, library: FakeTensorRT) -> None:
        self.library, self.cache, self.allocation = library, None, "STATIC"
        self.dynamic_shapes_kernel_specialization_strategy = "LAZY"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        self.library.raise_for("create_runtime_cache")
        return FakeRuntimeCache(self.library)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeRuntimeCache:
    """IRuntimeCache: kernels by their shapes; what another environment serialized is refused."""

    def __init__(self, library: FakeTensorRT) -> None:
        self.library = library
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return "\n".join([self.library.environment, *sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        self.library.raise_for("deserialize")
        environment, *kernels = blob.decode().split("\n")
        if environment != self.library.environment:
            self.library.logger.log(1, "the cache is of another environment")
            return False
        self.kernels = set(kernels)
        return True


class FakeContext:
    """One context; its model runs on the buffers whose addresses it has when the work is done."""

    def __init__(self, engine: FakeEngine, config: FakeRuntimeConfig | None) -> None:
        self.config = config
        self.engine, self.library, self.cuda = engine, engine.library, engine.library.cuda
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profile: int | None = None
        self.scratch: tuple[int, int] | None = None
        self.log: list[str] = []
        if self.library.capturable is not None:
            self.is_stream_capturable = lambda stream: self.library.capturable

    def _answer(self, name: str) -> bool:
        self.log.append(name)
        self.library.raise_for(name)
        if name in self.library.refuse:
            self.library.logger.log(1, f"{name} was refused")
        return name not in self.library.refuse

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0 and size >= self.engine.plan.scratch
        self.cuda.at(address, size)
        self.scratch = (address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.cuda.streams
        self.profile = index
        return self._answer("set_optimization_profile_async")

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self.engine.tensors and address % 256 == 0
        self.addresses[name] = address
        return self._answer("set_tensor_address")

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self.profile is not None, "the profile comes first"
        own = name if name in ("rows", "candidates") else "input_ids"
        least, _, most = self.engine.get_tensor_profile_shape(own, self.profile)
        assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)), (
            f"{name} {shape} is not in the profile"
        )
        self.shapes[name] = tuple(shape)
        return self._answer("set_input_shape")

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch is not None and self.addresses.keys() == self.engine.tensors.keys()
        for name, (mode, _, shape) in self.engine.tensors.items():
            assert mode == "OUTPUT" or -1 not in shape or name in self.shapes, f"{name} has no shape"
        shapes = dict(self.shapes)
        if self.config is not None and (kernel := str(sorted(shapes.items()))) not in self.config.cache.kernels:
            assert self.cuda.recording is None, "compiling breaks a capture"
            self.library.compiled.append(kernel)
            self.config.cache.kernels.add(kernel)
        self.cuda.enqueue(lambda: self._compute(shapes), stream)
        return self._answer("execute_async_v3")

    def _array(self, name: str, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        kind = np.dtype(NUMPY[dtype])
        return self.cuda.at(self.addresses[name], int(np.prod(shape)) * kind.itemsize).view(kind).reshape(shape)

    @torch.no_grad()
    def _compute(self, shapes: dict[str, tuple[int, ...]]) -> None:
        plan, c = self.engine.plan, self.engine.plan.contract
        ids = torch.from_numpy(self._array("input_ids", shapes["input_ids"], "int64").copy())
        rows = torch.from_numpy(self._array("rows", shapes["rows"], "int64").copy())
        if c.attention == "full":
            hidden = plan.model(ids, torch.full_like(ids, ids.shape[1]), None, None, ids.shape[1])
        else:
            past = torch.from_numpy(self._array("past_length", (c.batch,), "int64").copy())
            visible = torch.from_numpy(self._array("visible", shapes["visible"], "int64").copy())
            store = Store(self, past, ids.shape[1])
            positions = past[:, None] + torch.arange(ids.shape[1])
            hidden = plan.model(ids, visible, positions, store, store.length)
        hidden = hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = plan.model.logits(hidden).float()[..., : c.vocab]
        candidates = self._array("candidates", shapes["candidates"], "int64").copy() if c.candidates else None
        # Requested or not, as an engine does.
        proposal = TorchBackend(plan.model, c).propose(logits, c.top_k > 0, candidates)
        self._array("token", rows.shape, "int64")[:] = proposal.token
        self._array("confidence", rows.shape, "float32")[:] = proposal.confidence
        self._array("entropy", rows.shape, "float32")[:] = proposal.entropy
        if c.top_k:
            self._array("top_token", (*rows.shape, c.top_k), "int64")[:] = proposal.top_token
            self._array("top_logprob", (*rows.shape, c.top_k), "float32")[:] = proposal.top_logprob
        if c.candidates:
            self._array("candidate_logprob", shapes["candidates"], "float32")[:] = proposal.candidate_logprob


class Store:
    """The buffers of a context as the model's cache: in place, or the new keys and values after what is there."""

    def __init__(self, context: FakeContext, past: torch.Tensor, width: int) -> None:
        c = context.engine.plan.contract
        self.context, self.contract, self.past = context, c, past
        self.length = c.capacity if c.cache == "in_place" else c.capacity + width

    def update(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (self._write(2 * layer + part, new) for part, new in enumerate((key, value)))
        return keys, values

    def _write(self, part: int, new: torch.Tensor) -> torch.Tensor:
        """All keys or values that queries may see, position by position; `new` [batch, kv_heads, width, head_dim]."""
        c, context, (past_name, present_name) = self.contract, self.context, name_cache_part(part)
        cache = context._array(past_name, (c.batch, c.kv_heads, c.capacity, c.head_dim), c.dtype)
        if c.cache == "in_place":
            assert context.addresses[past_name] == context.addresses[present_name]
        else:
            context._array(present_name, new.shape, c.dtype)[:] = new.numpy()
            cache = np.concatenate((cache, np.zeros(new.shape, cache.dtype)), axis=2)
        for row, start in enumerate(self.past.tolist()):
            end = min(start + new.shape[2], cache.shape[2])  # what is beyond the capacity is dropped silently
            cache[row, :, start:end] = new[row, :, : end - start].numpy()
        return torch.from_numpy(cache.astype(np.float32))


def list_fake_tensors(plan: Plan) -> dict[str, tuple[str, str, tuple[int, ...]] | None]:
    """Mode, type and shape of an engine's tensors, written out once more and not taken from the code under test."""
    c, kind = plan.contract, {"float32": "FLOAT", "float16": "HALF"}[plan.contract.dtype]
    wide, asked = (c.batch, -1), (c.batch, -1)
    table: dict[str, tuple[str, str, tuple[int, ...]] | None] = {"input_ids": ("INPUT", "INT64", wide)}
    if c.attention != "full":
        table |= {"past_length": ("INPUT", "INT64", (c.batch,)), "visible": ("INPUT", "INT64", wide)}
    table["rows"] = ("INPUT", "INT64", asked)
    for name, dtype in (("token", "INT64"), ("confidence", "FLOAT"), ("entropy", "FLOAT")):
        table[name] = ("OUTPUT", dtype, asked)
    for name, dtype in (("top_token", "INT64"), ("top_logprob", "FLOAT")) if c.top_k else ():
        table[name] = ("OUTPUT", dtype, (*asked, c.top_k))
    if c.candidates:
        table["candidates"] = ("INPUT", "INT64", (*asked, -1))
        table["candidate_logprob"] = ("OUTPUT", "FLOAT", (*asked, -1))
    if c.attention == "full":
        return table
    for layer in range(c.layers):
        for kv in ("key", "value"):
            length = c.capacity if c.cache == "in_place" else -1
            table[f"past_key_values.{layer}.{kv}"] = ("INPUT", kind, (c.batch, c.kv_heads, c.capacity, c.head_dim))
            table[f"present.{layer}.{kv}"] = ("OUTPUT", kind, (c.batch, c.kv_heads, length, c.head_dim))
    return table
