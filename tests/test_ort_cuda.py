"""ONNX Runtime on CUDA as far as a CPU shows it: what is refused, and a GPU's code path over the CPU's memory."""

from __future__ import annotations

import builtins
import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import tiny
import torch
from onnx import TensorProto, helper
from test_export_onnx import student

from export import onnx as export_onnx
from export import verify
from export.contract_from_checkpoint import make_export_contract
from export.graph import step_graph
from runtime import bench, generate, load
from runtime.bundle.manifest import Engine, read
from runtime.contract import ALIGNMENTS, Contract, name_cache_part
from runtime.decoding.loop import generate as decode
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort import open_ort, ort_cuda
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.onnx_nodes import find_cache_nodes, list_nodes
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.ort.ort_cuda import CPU, CUDA, check_placement, read_assignments, select_engines
from runtime.engines.ort.ort_session import load_session
from runtime.errors import UserError
from train.storage.student_pt import save

GOLDEN = Path(__file__).parent / "golden"
SAMPLE = GOLDEN.parent.parent / "samples" / "student.bundle"
GQA = "GroupQueryAttention"
CAPACITY = 64
Graph = tuple[Path, Contract]


def bundle_of(folder: Path, precision: str) -> Path:
    """The sample's bundle with a manifest that says so, and a graph that is damaged: whatever reads it fails."""
    copy = shutil.copytree(SAMPLE, folder / "student.bundle")
    values = json.loads((copy / "manifest.json").read_text())
    del values["engines"][1:]
    values["engines"][0] |= {"precision": precision, "name": f"ort-{precision}"}
    (copy / "manifest.json").write_text(json.dumps(values))
    (copy / values["engines"][0]["model"]).write_bytes(b"damaged")
    return copy


def refusal(main: Callable[[list[str]], int], made: Path, capsys: pytest.CaptureFixture[str]) -> str:
    words = [str(made), *(["x"] if main is generate.main else []), "--device", "cuda"]
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    return error


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_bundle_without_fp16_is_refused_before_its_files_are_read(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bundle_of(tmp_path, precision)
    for main in (generate.main, bench.main):
        error = refusal(main, made, capsys)
        assert f"CUDA has no kernels for ort-{precision} (ort, {precision})" in error
        assert "blockstep export onnx --ckpt CKPT --device cuda" in error and "--device cpu" in error


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_an_onnxruntime_without_cuda_is_refused_before_files_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle_of(tmp_path, "fp16")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for main in (generate.main, bench.main):
        error = refusal(main, made, capsys)
        assert "runs on the CPU alone" in error and "'blockstep[gpu]'" in error
        assert "onnxruntime-gpu[cuda,cudnn]" in error and "driver 580 or newer" in error
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    error = refusal(generate.main, made, capsys)
    assert "no wheel with a Jetson's kernels: use TensorRT there, blockstep export trt" in error


def test_on_aarch64_without_onnxruntime_the_advice_for_a_jetson_is_tensorrt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for module in ("runtime.engines.ort.ort_backend", "runtime.engines.ort.no_telemetry"):
        monkeypatch.delitem(sys.modules, module)
    error = refusal(generate.main, bundle_of(tmp_path, "fp16"), capsys)
    assert error.startswith("error: onnxruntime is not installed; onnxruntime-gpu has no wheel with a Jetson's kernels")


def test_an_onnxruntime_without_its_shared_libraries_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *rest: object) -> ModuleType:
        if name == "ort_backend":
            raise ImportError("libonnxruntime.so.1: cannot open shared object file")
        return original(name, *rest)  # type: ignore[arg-type]

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UserError, match=r"onnxruntime cannot be used here .libonnxruntime.so.1: cannot open"):
        open_ort.import_library("cpu")


def test_the_engine_chosen_for_cuda_is_the_first_that_it_has_kernels_for() -> None:
    bundle = read(SAMPLE)

    def engine(dialect: str, precision: str) -> Engine:
        return replace(bundle.engines[0], name=f"{dialect}-{precision}", dialect=dialect, precision=precision)

    engines = [engine("ort", precision) for precision in ("fp32", "int8", "fp16")]
    assert select_engines(bundle, engines, "cuda") == engines[2:]
    assert select_engines(bundle, engines, "cpu") == engines
    assert select_engines(bundle, [engine("trt", "fp32")], "cuda")[0].name == "trt-fp32"
    with pytest.raises(UserError, match="no kernels for plain-fp16"):
        select_engines(bundle, [engine("plain", "fp16")], "cuda")


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:0", "", None])
def test_a_device_that_there_is_not_is_refused_by_its_name(device: Any) -> None:
    with pytest.raises(UserError, match=f"device is {device!r}; expected cpu or cuda"):
        load(SAMPLE, device=device)


def graph_of(bundle: Path) -> Graph:
    made = read(bundle)
    return made.path / made.find_engine().model, made.contract


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph]:
    """Graphs of fp32: the sample student's and a small one's in the dialect `ort`, and one in standard operators."""
    source, file = tiny.checkpoint(0), tmp_path_factory.mktemp("graphs") / "trt.onnx"
    onnx_ir.save(step_graph.trace(source, CAPACITY, dialect="trt", dtype=torch.float32, batch=1), file)
    small = graph_of(GOLDEN / "ort.bundle")
    return {"sample": graph_of(SAMPLE), "small": small, "trt": (file, make_export_contract(source, CAPACITY))}


@pytest.mark.parametrize("name", ["sample", "small", "trt"])
def test_the_nodes_that_touch_the_kv_cache_are_those_that_onnx_finds(name: str, graphs: dict[str, Graph]) -> None:
    file, contract = graphs[name]
    parts = {each for i in range(2 * contract.layers) for each in name_cache_part(i)}
    model = onnx.load(file)
    expected = {node.name: node.op_type for node in model.graph.node if parts & {*node.input, *node.output}}
    assert find_cache_nodes(file) == expected and len(expected) >= contract.layers
    assert sum(1 for _ in list_nodes(memoryview(model.graph.SerializeToString()))) == len(model.graph.node)


def test_a_node_of_a_subgraph_that_reads_the_kv_cache_is_found(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["past_key_values.0.key"], ["y"], name="inside")], "body", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("If", ["q"], ["z"], name="outside", then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert find_cache_nodes(tmp_path / "a.onnx") == {"inside": "Identity"}


def recorded(file: Path) -> list[tuple[str, str, str]]:
    """Where ONNX Runtime puts the nodes of a graph here: all on the CPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return read_assignments(ort.InferenceSession(str(file), options, providers=[CPU]))


Assigned = list[tuple[str, str, str]]


def on_cuda(assigned: Assigned, *but: str) -> Assigned:
    """The same with everything on CUDA, these operators left out."""
    return [(CPU if operator in but else CUDA, name, operator) for _, name, operator in assigned]


@pytest.mark.parametrize("name", ["sample", "trt"])
def test_a_graph_is_refused_if_the_kv_cache_would_be_read_or_written_elsewhere(
    name: str, graphs: dict[str, Graph]
) -> None:
    assigned, cached = recorded(graphs[name][0]), find_cache_nodes(graphs[name][0])
    operators = set(cached.values())
    assert {provider for provider, *_ in assigned} == {CPU} and cached.keys() <= {name for _, name, _ in assigned}
    with pytest.raises(UserError, match=f"{min(operators)}.* reads or writes the KV cache.*tokens would be wrong"):
        check_placement(assigned, cached)
    check_placement(on_cuda(assigned, "Add", "Sub", "Cast", "Shape", "Gather", "Range"), cached)
    for operator in operators:
        with pytest.raises(UserError, match=f"{operator}, which reads or writes"):
            check_placement(on_cuda(assigned, operator), cached)
    last = max(cached)  # one layer's alone is enough
    moved = [(CPU if name == last else CUDA, name, operator) for _, name, operator in assigned]
    with pytest.raises(UserError, match="--device cuda"):
        check_placement(moved, cached)


def test_a_node_that_lost_its_name_is_judged_by_its_operator(graphs: dict[str, Graph]) -> None:
    assigned, cached = recorded(graphs["sample"][0]), find_cache_nodes(graphs["sample"][0])
    renamed = [(provider, f"{name}_fused", operator) for provider, name, operator in assigned]
    check_placement(on_cuda(renamed), cached)
    for lost in (on_cuda(renamed, GQA), [each for each in on_cuda(renamed) if each[2] != GQA], []):
        with pytest.raises(UserError, match=GQA):
            check_placement(lost, cached)


def test_a_graph_is_refused_if_its_products_would_be_the_cpus(graphs: dict[str, Graph]) -> None:
    assigned, cached = recorded(graphs["sample"][0]), find_cache_nodes(graphs["sample"][0])
    for product in ("MatMul", "DynamicQuantizeMatMul"):
        with pytest.raises(UserError, match=f"no CUDA kernel for this graph's {product}"):
            check_placement([*on_cuda(assigned), (CPU, "product", product)], cached)
    with pytest.raises(UserError, match=f"no CUDA kernel for this graph's {GQA}"):
        check_placement([(CPU, "attention", GQA)], {})  # of a model without a KV cache


class Pretending:
    """ONNX Runtime with a CUDA that runs everything on the CPU, and what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, providers: list[str], preloaded: str = "") -> None:
        self.asked: dict[str, Any] = {}
        self.preloads, start = 0, ort.InferenceSession.__init__

        def open_session(session: Any, model: str, options: Any, **rest: Any) -> None:
            self.asked = rest
            start(session, model, options, providers=[CPU])

        def preload() -> None:
            self.preloads += 1
            print(preloaded, end="")

        monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr(ort, "preload_dlls", preload)
        monkeypatch.setattr(ort.InferenceSession, "__init__", open_session)
        monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _: providers)


@pytest.mark.parametrize("name", ["sample", "trt"])
def test_a_session_on_cuda_is_refused_if_the_cpu_took_the_kv_cache(
    name: str, graphs: dict[str, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, contract = graphs[name]
    pretending = Pretending(monkeypatch, [CUDA, CPU])
    with pytest.raises(UserError, match="tokens would be wrong"):
        OrtBackend(file, contract, threads=1, device="cuda")
    assert pretending.asked == {"providers": [(CUDA, {"use_tf32": "0"}), CPU], "enable_fallback": 0}
    assert pretending.preloads == 1


@pytest.mark.parametrize("printed", ["", "Failed to load libcublasLt.so.13\nFailed to load libcublas.so.13\n"])
def test_a_cuda_that_does_not_load_is_refused_with_what_it_needs(
    printed: str, graphs: dict[str, Graph], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Pretending(monkeypatch, [CPU], printed)
    with pytest.raises(UserError) as refused:
        load_session(graphs["sample"][0], 1, "cuda")
    reason = "Failed to load libcublasLt.so.13" if printed else "no driver or no GPU was found"
    assert f"({reason}); it needs NVIDIA's driver 580 or newer" in str(refused.value)
    assert "onnxruntime-gpu[cuda,cudnn]" in str(refused.value) and capsys.readouterr().out == ""


def test_the_session_options_of_the_cpu_record_nothing(graphs: dict[str, Graph]) -> None:
    options = load_session(graphs["small"][0], 1).get_session_options()
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("session.record_ep_graph_assignment_info")


class Device:
    """A GPU's memory that is the CPU's: arrays put there are copies, and what is put there later is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: list[Any] = []
        self.uploads = 0
        place, self._update = ort.OrtValue.ortvalue_from_numpy, ort.OrtValue.update_inplace

        def allocate(array: Any, kind: str = "cpu", number: int = 0) -> Any:
            value = place(array.copy() if kind == "cuda" else array)
            self.values += [value] if kind == "cuda" else []
            return value

        def update(value: Any, array: Any) -> None:
            self.uploads += 1
            self._update(value, array)

        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", staticmethod(allocate))
        monkeypatch.setattr(ort.OrtValue, "update_inplace", update)

    def spoil(self) -> None:
        """Makes the KV cache NaN, every position of it."""
        for value in self.values:
            self._update(value, np.full(value.shape(), np.nan, np.float32))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    yield Device(monkeypatch)


def requests() -> list[Request]:
    rng = np.random.default_rng(5)
    return [Request(rng.integers(3, tiny.VOCAB, length), DecodeOptions(9)) for length in (1, 3, 4, 5, 14, 2)]


def contracts(contract: Contract) -> list[Contract]:
    return [replace(contract, alignment=each, shift=shift) for each in ALIGNMENTS for shift in (False, True)]


def test_no_kv_cache_is_uploaded_for_a_request_and_an_earlier_ones_is_not_read(
    graphs: dict[str, Graph], device: Device
) -> None:
    """All that an earlier request left is NaN here, at every position: GroupQueryAttention reads [0, total) alone."""
    file, first = graphs["small"]
    session = load_session(file, 1)
    for contract in contracts(first):
        here, there = OrtBackend(session, contract), OrtBackend(session, contract, device="cuda")
        there.open(1, CAPACITY)
        for request in requests():
            device.spoil()
            assert decode(there, request).token_ids == decode(here, request).token_ids, contract
    assert device.uploads == 0 and device.values


def test_a_kv_cache_of_fixed_capacity_is_zeroed_for_every_request(graphs: dict[str, Graph], device: Device) -> None:
    """Attention over all of it would take a masked NaN for a NaN: the control of the test above."""
    file, contract = graphs["trt"]
    session = load_session(file, 1)
    here, there = OrtBackend(session, contract), OrtBackend(session, contract, device="cuda")
    there.open(1, CAPACITY)
    for request in requests():
        device.spoil()
        assert decode(there, request).token_ids == decode(here, request).token_ids
    assert device.uploads == len(requests()) * len(device.values)


def test_an_engine_is_verified_against_pytorch_on_the_device_that_it_runs_on(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both engine and instrumented graph, whose KV caches are read back from the device."""
    save(student(), ckpt := tmp_path / "student.pt")
    made = str(ckpt.with_suffix(".bundle"))
    assert export_onnx.main(["--ckpt", str(ckpt), "--dialect", "standard"]) == 0
    words = [made, "--ckpt", str(ckpt), "--prompts", "2", "--task", "math", "--device", "cuda"]
    opened = list[Any]()
    pretending = Pretending(monkeypatch, [CUDA, CPU])
    monkeypatch.setattr(ort_cuda, "check_placement", lambda assigned, cached: opened.append(pretending.asked))
    before = len(device.values)
    assert verify.main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out.splitlines()[-1])
    assert told["max"]["every_log_prob"] is not None and 0 < told["max"]["keys"] < 1e-4
    assert "standard-fp32: onnxruntime on cuda" in captured.err and len(device.values) > before
    assert [CUDA in str(each) for each in (*opened, pretending.asked)] == [True, True], "the engine, then its twin"
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    assert verify.main(words) == 2
    assert "runs on the CPU alone" in capsys.readouterr().err
