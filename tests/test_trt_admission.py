"""Which TensorRT engines are loaded: manifest, trust, damage, GPU, library and driver, and who is told what."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from trt_bundle import BUILD, add_engine, make_content, make_fake_plan

from runtime import generate
from runtime.bundle import trust_records
from runtime.bundle.manifest import Build
from runtime.bundle.store import Bundle, Engine, hash_file, make_content_name, read, write
from runtime.contract import GateSpec
from runtime.engines.trt import admission
from runtime.engines.trt.cuda import Cuda, Gpu, load_cuda
from runtime.engines.trt.engine import TrtEngine, load_library
from runtime.engines.trt.trt_backend import TrtBackend, open_engines
from runtime.errors import DeviceError, UserError
from runtime.open_bundle import load

GPU = Gpu("Fake 4090", 89)


def add_ort(path: Path) -> Bundle:
    folder = path.parent / "made"
    folder.mkdir(exist_ok=True)
    (folder / "graph.onnx").write_bytes(b"graph")
    file = (folder / "graph.onnx").rename(
        folder / make_content_name("ort-fp32", ".onnx", hash_file(folder / "graph.onnx"))
    )
    engine = Engine("ort-fp32", "ort", "fp32", "cpu", None, file.name, {}, {})
    return write(path, tiny.contract(), engine, [file], "{}", None, {"checkpoint_sha256": "one"})


def opened(bundle: Bundle, name: str = "trt", cuda: FakeCuda | None = None, trust: bool = False) -> TrtBackend:
    """The backend of some of a bundle's engines on the fake, which has a plan for every file of `add_engine`."""
    calls = cuda or FakeCuda()
    plans = {}
    for engine in bundle.engines:
        if build := engine.build:
            cache = "delta" if engine.dialect == "plain" else "in_place"
            plans[make_content(build)] = make_fake_plan(tiny.model(0), tiny.contract(), build, cache)
    library = FakeTensorRT(calls, plans)

    def installed(flavor: str) -> Any:
        if flavor == "rtx":
            raise UserError("tensorrt_rtx cannot be imported (not here); pip install 'blockstep[rtx]'")
        return library

    return open_engines(bundle, bundle.find_engines(name), trust=trust, cuda=Cuda(calls), library=installed)


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        opened(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_engine_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = add_engine(tmp_path / "a.bundle", tiny.contract(), device="NVIDIA Thor")
    engine = made.find_engine("trt")
    assert read(tmp_path / "a.bundle") == made and isinstance(engine.build, Build)
    assert engine.build == replace(BUILD, device="NVIDIA Thor", onnx=engine.build.onnx)
    assert set(engine.files) == {engine.model, engine.build.onnx} and engine.model.endswith(".engine")


def test_engines_of_other_capacity_or_target_stand_beside_each_other(tmp_path: Path) -> None:
    path, contract = tmp_path / "a.bundle", tiny.contract()
    add_ort(path)
    for changes in ({}, {"capacity": 32}, {"target": "sm87"}, {"flavor": "rtx"}, {"dialect": "plain"}, {"batch": 2}):
        add_engine(path, contract, content=repr(changes).encode(), **changes)
    assert len(read(path).engines) == 7
    keys = {engine.key for engine in read(path).engines}
    add_engine(path, contract, content=b"newer")
    assert len(read(path).engines) == 7 and {engine.key for engine in read(path).engines} == keys


@pytest.mark.parametrize("changes", [{"name": "ort-fp32"}, {"target": "sm80+", "file": "trt-sm80+"}])
def test_an_engine_that_no_reader_would_take_leaves_the_bundle_as_it_was(
    changes: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.bundle"
    before = add_ort(path)
    with pytest.raises(UserError, match=r"two engines of one name|is not a plain file name"):
        add_engine(path, tiny.contract(), **changes)
    assert read(path) == before


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (None, ["ort-fp32"]),
        ("ort", ["ort-fp32"]),
        ("trt", ["trt-fp32-sm89-64", "plain-fp32-sm87-64"]),
        ("plain", ["plain-fp32-sm87-64"]),
        ("plain-fp32-sm87-64", ["plain-fp32-sm87-64"]),
    ],
)
def test_an_engine_is_named_or_the_first_of_its_kind(name: str | None, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    add_ort(path)
    add_engine(path, tiny.contract())
    bundle = add_engine(path, tiny.contract(), dialect="plain", target="sm87")
    assert [engine.name for engine in bundle.find_engines(name)] == found
    assert bundle.find_engine(name).name == found[0]
    with pytest.raises(UserError, match="has no engine 'int8'; it has ort-fp32, trt-fp32-sm89-64, plain"):
        bundle.find_engines("int8")


def test_a_graph_that_no_engine_was_built_of_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    add_engine(path, tiny.contract())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["engines"][0].update(model=manifest["engines"][0].pop("build")["onnx"], target="any")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"graphs for TensorRT, but no engine .*: blockstep export trt --bundle"):
        read(path).find_engines("trt")
    assert read(path).find_engine("trt-fp32-sm89-64").build is None


def _build(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["engines"][0]["build"].update(changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m["engines"][0].update(build=None), "build is NoneType; expected an object"),
        (lambda m: m["engines"][0]["build"].pop("version"), "build lacks version"),
        (_build(color="red"), "build has unknown keys color"),
        (_build(flavor="torch"), "'torch'"),
        (_build(dtype="int8"), "'int8'"),
        (_build(version=""), "version is ''"),
        (_build(version_compatible=1), "version_compatible"),
        (_build(device=3), "device"),
        (_build(onnx="other.onnx"), "onnx 'other.onnx' is not among"),
        (_build(options=[]), "options"),
        (_build(capacity=0), "whole numbers"),
        (_build(batch=True), "whole numbers"),
        (_build(profiles=[]), "whole numbers"),
        (_build(profiles=[[8, 4]]), "whole numbers"),
        (_build(profiles=[[1, 2, 3]]), "whole numbers"),
        (_build(profiles=["12"]), "whole numbers"),
        (_build(profiles=[[1, "x"]]), "whole numbers"),
    ],
)
def test_a_build_that_is_not_as_expected_is_refused(
    change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    path = add_engine(tmp_path / "a.bundle", tiny.contract()).path
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError) as error:
        read(path)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_an_engine_that_was_built_elsewhere_is_not_loaded_unless_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # other tests' engines may be of the same bytes
    path = tmp_path / "a.bundle"
    bundle = add_engine(path, tiny.contract(), trusted=False)
    told = refused(bundle)
    assert told.startswith(
        "trt-fp32-sm89-64 was not built on this machine, and an engine is native code: build it here"
    )
    assert f"blockstep export trt --bundle {path}, or give --trust-engine" in told
    opened(bundle, trust=True).close()
    trust_records.remember_built(bundle.find_engine("trt").files[bundle.find_engine("trt").model])
    opened(bundle).close()


def test_an_engine_is_hashed_as_it_is_loaded_whatever_was_remembered(tmp_path: Path) -> None:
    bundle = add_engine(tmp_path / "a.bundle", tiny.contract())
    file = bundle.path / bundle.find_engine("trt").model
    opened(bundle).close()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for trust in (False, True):
        assert f"{file.name} is damaged: its sha256 is not the manifest's" in refused(bundle, trust=trust)
    file.unlink()
    assert "is missing" in refused(bundle)
    file.symlink_to(tmp_path / "elsewhere")
    assert "leads nowhere" in refused(bundle)
    (tmp_path / "elsewhere").write_bytes(make_content(BUILD)[:-1] + b"x")
    assert "is damaged" in refused(bundle)
    (tmp_path / "elsewhere").write_bytes(make_content(BUILD))
    opened(bundle).close()  # trusted by its content, in whatever folder it is


def test_a_manifest_that_names_another_engine_does_not_make_it_trusted(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    add_engine(path, tiny.contract())
    bundle = add_engine(path, tiny.contract(), content=b"native code of somebody else", trusted=False)
    assert "was not built on this machine" in refused(bundle)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"target": "sm87"}, "was built for sm87, here is a GPU of sm89 (Fake 4090)"),
        ({"target": "sm80,sm90"}, "was built for sm80,sm90, here is a GPU of sm89 (Fake 4090)"),
        ({"target": "sm90+"}, "was built for sm90+, here is a GPU of sm89 (Fake 4090)"),
        ({"device": "Fake 4080"}, "was built for Fake 4080, here is Fake 4090"),
        ({"version": "10.13.0.35"}, "was built by version 10.13.0.35 of its library, here is 10.16.1.11"),
        ({"version": "11.0.0", "version_compatible": True}, "was built by version 11.0.0 of its library"),
        ({"flavor": "rtx", "version": "1.7.1"}, "needs TensorRT for RTX 1.7.1: tensorrt_rtx cannot be imported"),
    ],
)
def test_an_engine_for_something_else_is_refused_with_how_to_build_one(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.bundle"
    answer = refused(add_engine(path, tiny.contract(), **changes))
    assert (
        told in answer and f"build one here: blockstep export trt --bundle {path}, or blockstep export onnx" in answer
    )
    add_ort(path)
    assert refused(read(path)).endswith("or --engine ort runs here")


def test_of_several_engines_those_for_this_machine_are_taken(tmp_path: Path) -> None:
    path, contract = tmp_path / "a.bundle", tiny.contract()
    for changes in (
        {"target": "sm87"}, {"flavor": "rtx", "target": "sm120"}, {"version": "10.13.0.35", "precision": "int8"},
        {"target": "sm80+", "capacity": 32}, {"capacity": 64}, {"capacity": 32}, {"capacity": 48, "dialect": "plain"},
    ):  # fmt: skip
        bundle = add_engine(path, contract, **changes)
    assert [engine.name for engine in opened(bundle).engines] == ["trt-fp32-sm80-32"]
    exact = opened(bundle, "trt-fp32-sm89-64")
    assert [engine.name for engine in exact.engines] == ["trt-fp32-sm89-64"] and exact.contract.capacity == 64
    newest = [e.name for e in admission.list_siblings(bundle.engines, bundle.find_engines("trt-fp32-sm89-64")[0])]
    assert newest == ["trt-fp32-sm89-32", "trt-fp32-sm89-64"]
    first, *others = bundle.find_engines("trt-fp32-sm89-64")[0], *bundle.engines
    for other in ({"decision_temperature": 1.5}, {"gate": GateSpec()}):
        assert admission.list_siblings([replace(first, **other), *others], first) == admission.list_siblings(
            others, first
        )


@pytest.mark.parametrize(
    ("target", "capability", "covered"),
    [("sm89", 89, True), ("sm86,sm89", 86, True), ("sm80+", 120, True), ("sm90+", 89, False), ("cpu", 89, False),
     ("sm8", 89, False), ("sm110", 110, True)],
)  # fmt: skip
def test_targets(target: str, capability: int, covered: bool) -> None:
    assert admission.covers(target, capability) == covered


def test_versions() -> None:
    strict, compatible = replace(BUILD, version="10.16.1"), replace(BUILD, version="10.9.0", version_compatible=True)
    assert admission.can_load(strict, "10.16.1") and not admission.can_load(strict, "10.16.2")
    assert admission.can_load(compatible, "10.16.1") and admission.can_load(compatible, "11.0.0")
    assert not admission.can_load(compatible, "10.8.3")


@pytest.mark.parametrize("status", [35, 100, 34, 3, 0])
def test_without_a_driver_or_a_gpu_one_is_told_what_runs(status: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    add_ort(path)
    bundle, cuda = add_engine(path, tiny.contract(), trusted=False), FakeCuda()
    cuda.devices, cuda.driver = 0, 0
    if status:
        cuda.fail["cudaGetDeviceCount"] = (status, 0)
    told = refused(bundle, cuda=cuda)
    assert told == "the engine is built; running it needs an NVIDIA driver; --engine ort runs here"
    cuda.fail["cudaGetDeviceCount"] = (700, 0)
    with pytest.raises(DeviceError, match="cudaGetDeviceCount failed: scripted fault"):
        opened(bundle, cuda=cuda)


def test_a_driver_for_an_older_cuda_is_told_with_the_package_for_it(tmp_path: Path) -> None:
    path, cuda = tmp_path / "a.bundle", FakeCuda()
    add_ort(path)
    cuda.fail["cudaGetDeviceCount"], cuda.driver = (35, 0), 12080
    told = refused(add_engine(path, tiny.contract()), cuda=cuda)
    assert "needs a newer NVIDIA driver, 580 or newer for CUDA 13 (NVIDIA's driver here is for CUDA 12.8), or" in told
    assert "pip install blockstep tensorrt-cu12" in told and told.endswith("; --engine ort runs here")


def test_what_was_built_here_cannot_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not trust_records.was_built("0" * 64)
    with pytest.raises(UserError, match="cannot be remembered"):
        trust_records.remember_built("0" * 64)


def needs_no_driver(cuda: Cuda) -> None:
    if cuda.find_gpu() is not None:
        pytest.skip("there is a GPU here; this is about machines without one")


def test_the_real_library_without_a_driver_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    needs_no_driver(load_cuda())
    path = tmp_path / "a.bundle"
    add_ort(path)
    add_engine(path, tiny.contract())
    with pytest.raises(UserError, match="running it needs an NVIDIA driver; --engine ort runs here"):
        load(path, engine="trt")
    for name in ("trt", "trt-fp32-sm89-64"):
        assert generate.main([str(path), "x", "--engine", name]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: the engine is")
    with pytest.raises(DeviceError, match=r"cudaMalloc failed: CUDA driver .* \(CUDA error \d+\)"):
        load_cuda().allocate(256)


def test_every_call_that_is_made_exists_in_the_real_bindings() -> None:
    calls = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    source = inspect.getsource(inspect.getmodule(Cuda) or Cuda)
    made = set(re.findall(r'_call\("(cuda\w+)"', source)) | set(re.findall(r"self\._calls\.(cuda\w+)", source))
    assert len(made) > 15
    for name in sorted(made):
        assert hasattr(calls, name), name
        assert hasattr(FakeCuda, name) or hasattr(FakeCuda, f"_{name}"), f"the fake has no {name}"
    for kind in re.findall(r"cuda\w+\.(cuda(?:Memcpy|StreamCapture)\w+)", source):
        assert hasattr(calls.cudaMemcpyKind, kind) or hasattr(calls.cudaStreamCaptureMode, kind), kind


def test_what_is_asked_of_tensorrt_exists_in_the_real_library() -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    for kind, names in {
        "IExecutionContext": (
            "set_device_memory", "set_optimization_profile_async", "set_tensor_address", "set_input_shape",
            "execute_async_v3", "is_stream_capturable",
        ),
        "ICudaEngine": (
            "device_memory_size_v2", "num_io_tensors", "num_optimization_profiles", "get_tensor_name",
            "get_tensor_mode", "get_tensor_dtype", "get_tensor_shape", "get_tensor_profile_shape",
            "get_aliased_input_tensor", "create_execution_context", "get_tensor_location", "create_runtime_config",
        ),
        "IRuntimeConfig": (
            "dynamic_shapes_kernel_specialization_strategy", "set_execution_context_allocation_strategy",
            "create_runtime_cache", "set_runtime_cache",
        ),
        "IRuntimeCache": ("serialize", "deserialize"), "TensorLocation": ("DEVICE",),
        "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
        "Runtime": ("deserialize_cuda_engine",), "ILogger": ("INTERNAL_ERROR", "ERROR"),
        "TensorIOMode": ("INPUT", "OUTPUT"), "DataType": ("INT64", "FLOAT", "HALF", "BF16"),
        "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    }.items():  # fmt: skip
        missing = [name for name in names if not hasattr(getattr(library, kind), name)]
        assert missing == [], kind


def test_a_file_that_the_real_library_does_not_know_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    cuda = Cuda(FakeCuda())
    with pytest.raises(
        UserError, match=r"tensorrt_rtx 1\.\S+ cannot load the engine \(.*readHeader.*\); build it"
    ) as error:
        TrtEngine(b"no engine", tiny.contract(), cuda, load_library("rtx"))
    assert "\n" not in str(error.value)
    captured = capfd.readouterr()
    assert captured.out == captured.err == "", "what the library complains of is in the error, not on the terminal"
