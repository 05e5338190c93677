"""What TensorRT's parser makes of step graphs, and engines that TensorRT for RTX builds of them without a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import tiny
import torch

pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT for RTX: pip install 'blockstep[rtx]'")

from trt_student import make_graph, make_student, plan

from export.contract_from_checkpoint import make_export_contract
from export.graph.graph_writer import write_graph
from export.graph.step_graph import trace
from export.quantization.trt_qdq import find_products, quantize_for_trt
from export.trt_engines import builder
from export.trt_engines.builder import (
    BuilderSettings,
    build_engine,
    collect_errors,
    list_shapes,
    make_configuration,
    parse_network,
    plan_profiles,
)
from export.trt_engines.gpu_support import import_libraries
from export.trt_engines.graphs import GraphRecipe, Graphs
from export.trt_engines.parsed_network import get_kind, list_layers, remove_unit_scales
from export.trt_engines.plan import check_network
from runtime.contract import Contract
from runtime.errors import DeviceError
from train.open_checkpoint import load

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contract]:
    """The graph of a tiny student in fp16, and its contract."""
    return make_graph(tmp_path_factory.mktemp("small"), make_student())


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_the_sample_student_builds_for_three_gpus(dialect: str, tmp_path: Path) -> None:
    source = load(ROOT / "samples" / "student.pt")
    contract = make_export_contract(source, 128)
    model = Graphs(source, contract, GraphRecipe(dialect, "fp16", 1, None)).write(tmp_path)[0]
    # TensorRT for RTX has no fused kernel for a profile of one token, that of the mode causal: see the next test.
    profiles = tuple(each for each in plan_profiles(contract, 128) if each != (1, 1))
    made = build_engine(model, contract, profiles, BuilderSettings("rtx", (86, 89, 120)))
    assert not made.decomposed and len(made.content) > model.stat().st_size  # the weights are in it
    fused = source.model.layers if dialect == "trt" else 0
    network = made.network
    assert (network.attentions, network.masked, network.updates) == (fused, fused, 2 * fused)
    assert network.strongly_typed and (network.batch, network.dtype, network.capacity) == (1, "float16", 128)
    assert check_network(plan(dialect), network, source.model.layers, full=False) is None


@pytest.mark.long
def test_the_sample_s_profile_of_one_token_decomposes_attention(tmp_path: Path) -> None:
    """A limit of TensorRT for RTX, not a wish: if this fails, the profile of the mode causal costs nothing any more."""
    source = load(ROOT / "samples" / "student.pt")
    contract = make_export_contract(source, 128)
    model = Graphs(source, contract, GraphRecipe("trt", "fp16", 1, None)).write(tmp_path)[0]
    profiles = plan_profiles(contract, 128)
    assert (1, 1) in profiles
    assert build_engine(model, contract, profiles, BuilderSettings("rtx", (89,))).decomposed


def without_masks(file: Path) -> Path:
    """The wrong graph: a length in place of the mask, which TensorRT's parser takes and forgets."""
    model = onnx.load(file)
    ends = onnx.helper.make_node("Add", ["past_length", "past_length"], ["keys_that_count"])
    model.graph.node.insert(0, ends)
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]
            node.input.extend(["", "", "", "keys_that_count"])
    wrong = file.with_name("wrong.onnx")
    onnx.save(model, wrong)
    onnx.checker.check_model(wrong)
    return wrong


def test_a_graph_with_a_length_in_place_of_the_mask_fails_the_check(small: tuple[Path, Contract]) -> None:
    file, _ = small
    assert check_network(plan("trt"), parse_network(file, "rtx"), 1, full=False) is None
    network = parse_network(without_masks(file), "rtx")  # parsed without a complaint, which is the trap
    assert check_network(plan("trt"), network, 1, full=False) == "0 masked in the network, expected 1"


def attention_inputs(network: Any) -> list[list[str]]:
    """For each attention, the kinds of layers that its queries, keys and values come from."""
    makers = {
        layer.get_output(i).name: get_kind(layer) for layer in list_layers(network) for i in range(layer.num_outputs)
    }
    return [
        [makers[layer.get_input(i).name] for i in range(3)]
        for layer in list_layers(network)
        if get_kind(layer) == "ATTENTION_INPUT"
    ]


def test_attention_reads_the_cache_itself_and_not_its_product_with_one(small: tuple[Path, Contract]) -> None:
    trt, polygraphy = import_libraries("rtx")
    with collect_errors():
        _, network, _ = polygraphy.backend.trt.network_from_onnx_path(str(small[0]), strongly_typed=True)
        assert attention_inputs(network) == [["ELEMENTWISE", "ELEMENTWISE", "KV_CACHE_UPDATE"]]  # the parser's
        remove_unit_scales(trt, network)
    assert attention_inputs(network) == [["CAST", "KV_CACHE_UPDATE", "KV_CACHE_UPDATE"]]


def test_what_the_standard_builder_is_told_reaches_its_configuration(small: tuple[Path, Contract]) -> None:
    """The library for RTX has the same interface, the level of hardware compatibility aside."""
    trt, polygraphy = import_libraries("rtx")
    settings = BuilderSettings("tensorrt", (), 64, 2, True, True, Path("none.cache"))
    seen: list[str] = []
    with collect_errors():
        parts = polygraphy.backend.trt.network_from_onnx_path(str(small[0]), strongly_typed=True)
        create = make_configuration(trt, settings, ((4, 4), (1, 64)), small[1], parts[1],
            lambda phase, done, steps: seen.append(f"{phase} {done} of {steps}"))  # fmt: skip
        made = create(*parts[:2])
    assert (made.builder_optimization_level, made.num_optimization_profiles) == (2, 2)
    assert made.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert made.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    made.progress_monitor.phase_start("Building", None, 2)
    assert made.progress_monitor.step_complete("Building", 0)
    made.progress_monitor.phase_finish("Building")
    assert seen == ["Building 0 of 2", "Building 1 of 2", "Building 2 of 2"]


@pytest.mark.long
def test_attention_without_a_fused_kernel_is_decomposed_and_told(tmp_path: Path) -> None:
    file, contract = make_graph(tmp_path, make_student(), precision="fp32")
    assert build_engine(file, contract, ((4, 4),), BuilderSettings("rtx", (89,))).decomposed
    file, contract = make_graph(tmp_path, make_student(), precision="bf16")
    made = build_engine(file, contract, ((4, 4), (1, 64)), BuilderSettings("rtx", (80, 89)))
    assert not made.decomposed and made.network.dtype == "bfloat16"


def test_what_tensorrt_does_not_take_is_told_in_one_line(small: tuple[Path, Contract], tmp_path: Path) -> None:
    model, file = onnx.load(small[0]), tmp_path / "capped.onnx"
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("softcap", 30.0))
    onnx.save(model, file)
    with pytest.raises(DeviceError, match="TensorRT does not build") as told:
        build_engine(file, small[1], ((4, 4),), BuilderSettings("rtx", (89,)))
    assert "softcap" in str(told.value).lower() and "\n" not in str(told.value)


def test_profiles_are_a_block_two_blocks_and_buckets_of_prefill() -> None:
    contract = tiny.contract(block=32, canvas=96, capacity=1024)
    assert plan_profiles(contract, 1024) == ((32, 32), (64, 64), (1, 128), (129, 512), (513, 1024))
    assert plan_profiles(contract, 1024, max_prompt=300) == ((32, 32), (64, 64), (1, 128), (129, 332))
    assert plan_profiles(contract, 40) == ((32, 32), (1, 40))
    full = tiny.contract(attention="full", canvas=96, block=32)
    assert plan_profiles(full, 256) == ((97, 256),)


@pytest.mark.parametrize(
    ("modes", "shift", "rows"),
    [(["block"], True, 4), (["speculative", "block", "causal"], True, 7), (["block", "speculative"], False, 4)],
)
def test_an_engine_has_the_logits_rows_of_a_verification_that_drafts_too(
    modes: list[str], shift: bool, rows: int
) -> None:
    contract = tiny.contract(attention="causal_context", modes=modes, shift=shift)
    inputs = [SimpleNamespace(name="input_ids", shape=(1, -1)), SimpleNamespace(name="rows", shape=(1, -1))]
    network = SimpleNamespace(num_inputs=2, get_input=inputs.__getitem__)
    assert dict(list_shapes(network, contract, 1, 40)) == {
        "input_ids": [[1, 1], [1, 40], [1, 40]],
        "rows": [[1, rows]] * 3,
    }


Sized = tuple[ir.Model, Contract, int]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Sized:
    """The traced graph of a wider model, its contract, and the size of its fp16 engine."""
    source = make_student(width=256, ffn=512)
    contract, model = make_export_contract(source, 64), trace(source, 64, dialect="trt", dtype=torch.float16)
    return model, contract, engine_size(model.clone(), contract, 89, tmp_path_factory.mktemp("wide"))


def engine_size(model: ir.Model, contract: Contract, target: int, folder: Path) -> int:
    file = write_graph(model, folder, "graph")[0]
    return len(build_engine(file, contract, ((4, 4), (1, 64)), BuilderSettings("rtx", (target,))).content)


@pytest.mark.parametrize(("precision", "target"), [("int8", 89), ("int4", 89), ("fp8", 89), ("nvfp4", 120)])
def test_quantized_weights_build(precision: str, target: int, wide: Sized, tmp_path: Path) -> None:
    model, contract, fp16 = wide[0].clone(), *wide[1:]
    weights = sum(node.inputs[1].const_value.size for node in find_products(model))  # type: ignore[union-attr]
    quantize_for_trt(model, precision)
    size = engine_size(model, contract, target, tmp_path)
    if precision.startswith("int"):  # the others need kernels that are larger than these few weights
        assert fp16 - size > 0.7 * weights, (fp16, size, weights)  # of 2 bytes a weight in fp16


def test_an_engine_for_two_sequences_builds(tmp_path: Path) -> None:
    source = make_student()
    contract = make_export_contract(source, 64)
    file = Graphs(source, contract, GraphRecipe("trt", "fp16", 2, None)).write(tmp_path)[0]
    made = build_engine(file, replace(contract, batch=2), ((4, 4), (1, 64)), BuilderSettings("rtx", (89,)))
    assert made.network.batch == 2 and not made.decomposed


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_an_engine_with_top_tokens_builds(dialect: str, tmp_path: Path) -> None:
    source = make_student()
    contract = make_export_contract(source, 64, top_k=32)
    file = Graphs(source, contract, GraphRecipe(dialect, "fp16", 1, None)).write(tmp_path)[0]
    made = build_engine(file, contract, ((4, 4), (1, 64)), BuilderSettings("rtx", (86, 89, 120)))
    assert not made.decomposed and made.network.strongly_typed
    with collect_errors():
        _, network, _ = import_libraries("rtx")[1].backend.trt.network_from_onnx_path(str(file), strongly_typed=True)
    outputs = {network.get_output(i).name: network.get_output(i) for i in range(network.num_outputs)}
    for name, dtype in (("top_token", "INT64"), ("top_logprob", "FLOAT")):
        assert (tuple(outputs[name].shape), outputs[name].dtype.name) == ((1, -1, 32), dtype)


def test_contexts_of_an_engine_for_rtx_allocate_nothing_while_they_run(small: tuple[Path, Contract]) -> None:
    trt, polygraphy = import_libraries("rtx")
    with collect_errors():
        parts = polygraphy.backend.trt.network_from_onnx_path(str(small[0]), strongly_typed=True)
        made = make_configuration(trt, BuilderSettings("rtx", (89,)), ((4, 4),), small[1], parts[1], None)(*parts[:2])
    assert made.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION), "needed to capture CUDA graphs"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TypeError("pybind11::init(): factory function returned nullptr"), "returned nullptr$"),
        (RuntimeError("CUDA driver version is insufficient"), "is insufficient; pip install .* tensorrt-cu12 "),
    ],
)
def test_what_the_builders_bindings_raise_is_a_device_error(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    made = import_libraries("rtx")
    monkeypatch.setattr(builder, "import_libraries", lambda flavor: made)
    monkeypatch.setattr(builder, "_build", refuse)
    with pytest.raises(DeviceError, match=f"TensorRT does not build a.onnx: .*{told}"):
        build_engine(Path("a.onnx"), tiny.contract(), ((4, 4),), BuilderSettings("tensorrt"))


def test_static_int8_is_calibrated_proved_and_built(tmp_path: Path) -> None:
    source, data = make_student(), tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a b a b", "answer": "b"}) + "\n")
    contract = make_export_contract(source, 64)
    graphs = Graphs(source, contract, GraphRecipe("trt", "int8-static", 1, data))
    ranges = graphs.calibrate(tmp_path)
    assert ranges is not None and len(ranges) == 5 * source.model.layers and min(ranges.values()) > 0
    file = graphs.write(tmp_path, ranges)[0]
    names = [node.op_type for node in onnx.load(file).graph.node]
    assert names.count("QuantizeLinear") == len(ranges) and names.count("DequantizeLinear") == 2 * len(ranges)
    checks = list(graphs.prove(file, tmp_path, ranges))
    assert [check.name for check in checks] == ["graph", "steps", "answers"] and all(check.ok for check in checks)
    assert build_engine(file, contract, ((4, 4),), BuilderSettings("rtx", (89,))).content
