"""The TensorRT backend when calls of CUDA and TensorRT fail, and when an engine is not the contract's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fake_tensorrt import FakeContext, FakeTensorRT
from trt_bundle import PROFILES, make_fake_backend

from runtime import errors
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import DeviceError, UserError
from train.torch_backend import TorchBackend

FAULTS = [
    ("cudaGetDeviceProperties", 0), ("cudaStreamCreateWithFlags", 0), ("cudaHostAlloc", 0), ("cudaHostAlloc", 3),
    *(("cudaMalloc", n) for n in range(8)), ("cudaMemcpyAsync", 0), ("cudaMemcpyAsync", 3),
    ("cudaStreamSynchronize", 0), ("cudaStreamSynchronize", 1), ("cudaGraphLaunch", 0), ("cudaMemsetAsync", 0),
    ("cudaGraphLaunch", 4),
]  # fmt: skip


@pytest.mark.parametrize(("name", "before"), FAULTS)
def test_a_call_that_fails_is_named_in_one_line_and_nothing_leaks(name: str, before: int, tmp_path: Path) -> None:
    made: list[FakeTensorRT] = []

    def faulty(fake: FakeTensorRT) -> None:
        made.append(fake)
        fake.cuda.fail[name] = (700, before)

    backend = None
    with pytest.raises(DeviceError) as error:
        backend, _, _ = make_fake_backend(tmp_path, tiny.model(11), tiny.contract(), library=faulty)
        generate(backend, Request(np.arange(3, 12), DecodeOptions(16)))
    assert f"{name} failed: scripted fault (CUDA error 700)" in str(error.value) and "\n" not in str(error.value)
    cuda = made[0].cuda
    cuda.fail.clear()
    cuda.queue.clear()
    if backend is not None:
        backend.close()
    assert cuda.leaks() == {}


CAPTURE = ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]


@pytest.mark.parametrize("name", [*CAPTURE, "is_stream_capturable", "execute_async_v3"])
def test_a_capture_that_fails_is_said_once_and_kernels_are_launched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(errors, "_warned", set())
    plain = FakeContext.execute_async_v3

    def execute(context: FakeContext, stream: int) -> bool:
        if context.cuda.recording is not None:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return plain(context, stream)

    def faulty(fake: FakeTensorRT) -> None:
        if name in CAPTURE:
            fake.cuda.fail[name] = (700, 0)
        elif name == "is_stream_capturable":
            fake.capturable = False

    if name == "execute_async_v3":
        monkeypatch.setattr(FakeContext, name, execute)
    contract, model = tiny.contract(), tiny.model(11)
    request = Request(np.arange(3, 12), DecodeOptions(16))
    for _ in range(2):
        backend, cuda, _ = make_fake_backend(tmp_path, model, contract, library=faulty)
        assert backend.name.endswith(", without CUDA graphs")
        assert generate(backend, request).token_ids == generate(TorchBackend(model, contract), request).token_ids
        assert "cudaGraphLaunch" not in cuda.called()
        assert ("cudaGetLastError" in cuda.called()) == (name != "is_stream_capturable")
        cuda.fail.clear()
        backend.close()
        undestroyed = {"graphs": 4} if name == "cudaGraphDestroy" else {}  # two graphs and what was made of them
        assert cuda.leaks() == undestroyed
    told = capsys.readouterr().err
    assert told.startswith("warning: the engine runs without CUDA graphs, so every step is slower: ")
    assert told.count("\n") == 1 and name in told


def test_a_gpu_that_is_too_small_is_the_users_to_solve(tmp_path: Path) -> None:
    def small(fake: FakeTensorRT) -> None:
        fake.cuda.fail["cudaMalloc"] = (2, 1)
        fake.cuda.total = 20_000

    with pytest.raises(UserError, match=r"the GPU has 0 MB free, but 0 MB more are needed; free some, or build"):
        make_fake_backend(tmp_path, tiny.model(12), tiny.contract(), library=small)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("create_execution_context", "create_execution_context failed"),
        ("set_optimization_profile_async", "does not take a profile: set_optimization_profile_async was refused"),
        ("set_tensor_address", "does not take the address of input_ids: set_tensor_address was refused"),
        ("set_input_shape", r"does not take the shape \[1, 4\] of input_ids: set_input_shape was refused"),
        ("execute_async_v3", "execute_async_v3 failed: .*TensorRT reports: execute_async_v3 was refused"),
    ],
)
def test_what_tensorrt_refuses_is_told_with_its_reason(method: str, told: str, tmp_path: Path) -> None:
    made: list[FakeTensorRT] = []

    def refusing(fake: FakeTensorRT) -> None:
        made.append(fake)
        fake.refuse.add(method)

    with pytest.raises(DeviceError, match=told) as error:
        make_fake_backend(tmp_path, tiny.model(13), tiny.contract(), library=refusing)
    assert "\n" not in str(error.value)
    made[0].cuda.queue.clear()
    assert made[0].cuda.leaks() == {}


RAISES = [
    "create_execution_context", "set_optimization_profile_async", "set_tensor_address", "set_input_shape",
    "execute_async_v3", "get_tensor_profile_shape",
]  # fmt: skip


@pytest.mark.parametrize("error", [RuntimeError, ValueError, IndexError, TypeError, MemoryError])
@pytest.mark.parametrize("method", RAISES)
def test_what_the_bindings_raise_is_a_device_error_of_one_line(
    method: str, error: type[Exception], tmp_path: Path
) -> None:
    made: list[FakeTensorRT] = []

    def raising(fake: FakeTensorRT) -> None:
        made.append(fake)
        fake.raises[method] = error("Error in set\noptimization profile.")

    with pytest.raises(DeviceError, match=r"failed: Error in set optimization profile\.") as told:
        make_fake_backend(tmp_path, tiny.model(13), tiny.contract(), library=raising)
    assert "\n" not in str(told.value)
    made[0].cuda.queue.clear()
    assert made[0].cuda.leaks() == {}


@pytest.mark.parametrize("method", ["Runtime", "deserialize_cuda_engine"])
@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("factory function returned nullptr", "build it again here: blockstep export trt"),
        ("CUDA driver version is insufficient for CUDA runtime version", "pip install blockstep tensorrt-cu12"),
    ],
)
def test_a_library_that_raises_when_it_loads_says_what_to_do(
    method: str, reason: str, advice: str, tmp_path: Path
) -> None:
    def raising(fake: FakeTensorRT) -> None:
        fake.raises[method] = TypeError(reason)

    with pytest.raises(UserError, match="cannot load the engine") as told:
        make_fake_backend(tmp_path, tiny.model(13), tiny.contract(), library=raising)
    assert f"({method} failed: {reason}; {method} was refused); " in str(told.value) and advice in str(told.value)


@pytest.mark.parametrize("name", ["rows", "past_key_values.0.key", "token"])
def test_a_tensor_that_is_read_on_the_host_is_refused_before_it_gets_an_address(name: str, tmp_path: Path) -> None:
    made: list[FakeTensorRT] = []

    def shapes(fake: FakeTensorRT) -> None:
        made.append(fake)
        fake.on_host.add(name)

    with pytest.raises(UserError, match=f"the engine reads {name} on the host, as a shape, .* build it again"):
        make_fake_backend(tmp_path, tiny.model(13), tiny.contract(), library=shapes)
    assert made[0].contexts == []


def test_a_file_that_tensorrt_does_not_load_is_told_with_its_reason(tmp_path: Path) -> None:
    def empty(fake: FakeTensorRT) -> None:
        fake.plans.clear()

    with pytest.raises(UserError, match=r"tensorrt \S+ cannot load the engine .magic tag does not match.; build it"):
        make_fake_backend(tmp_path, tiny.model(14), tiny.contract(), library=empty)


def _tensor(name: str, *value: Any) -> Callable[[FakeTensorRT], None]:
    return lambda fake: fake.changes.update({name: value or None})


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_tensor("visible"), "visible"),
        (_tensor("logits", "OUTPUT", "FLOAT", (1, -1, 24)), "logits"),
        (_tensor("token", "OUTPUT", "INT32", (1, -1)), "token"),
        (_tensor("past_length", "OUTPUT", "INT64", (1,)), "past_length"),
        (_tensor("past_key_values.1.key", "INPUT", "HALF", (1, 2, 64, 8)), "past_key_values.1.key"),
        (_tensor("past_key_values.1.value", "INPUT", "FLOAT", (1, 2, 32, 8)), "past_key_values.1.value"),
        (_tensor("input_ids", "INPUT", "INT64", (-1,)), "input_ids"),
        (lambda fake: fake.aliases.update({"present.0.value": "past_key_values.0.key"}), "present.0.value"),
    ],
)
def test_an_engine_that_is_not_the_contracts_is_refused(
    change: Callable[[FakeTensorRT], None], name: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"not that of its manifest: {name} differs"):
        make_fake_backend(tmp_path, tiny.model(15), tiny.contract(), library=change)


def test_profiles_that_the_manifest_does_not_name_are_refused(tmp_path: Path) -> None:
    def other(fake: FakeTensorRT) -> None:
        fake.plans = {key: replace(plan, profiles=((1, 12),)) for key, plan in fake.plans.items()}

    with pytest.raises(UserError, match="has other profiles than its manifest lists"):
        make_fake_backend(tmp_path, tiny.model(16), tiny.contract(), profiles=PROFILES, library=other)
