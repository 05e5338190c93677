"""A quantised graph is held against its own arithmetic in PyTorch, which tells a wrong graph from what bits cost."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export_onnx import student
from test_graph_step import random_weights

from export import onnx as command
from export import verify
from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import write_ort_graph
from export.proof.by_layer import Parts, check_by_layer, measure_embedding, measure_head, measure_layer
from export.proof.compare import compare
from export.proof.instrumented import load_instrumented
from export.proof.prove import prove, sample_requests
from export.proof.quantized_reference import QuantizedBackend, RowsLayer, compute_whole_bound, quantize_module
from export.quantization.ort_formats import ORT_FORMATS, OrtFormats
from export.quantization.ort_int8 import Int8Linear, Rounding, round_activations
from runtime.bundle import store
from runtime.contract import Contract
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_backend import OrtBackend
from train.checkpoint import Checkpoint
from train.storage.student_pt import save
from train.torch_backend import TorchBackend
from train.transformer.network import ModelConfig

SEED = 5
SHAPE = ModelConfig(tiny.VOCAB, 48, 3, 4, 2, 16, 64, qk_norm=True, qkv_bias=True, tied=False)
Made = tuple[Checkpoint, Contract, Path, str, OrtFormats]


@pytest.fixture(
    scope="module",
    params=[
        ("int8", "block_causal"), ("int4", "block_causal"),
        *(pytest.param((precision, "full"), marks=pytest.mark.long) for precision in ORT_FORMATS),
    ],
    ids="-".join,
)  # fmt: skip
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model, its contract, its quantised graph in a folder of its own, the precision and its formats."""
    precision, attention = request.param
    source = tiny.checkpoint(SEED, attention=attention)
    source = replace(source, model=SHAPE, weights=random_weights(SHAPE, SEED))
    contract = make_export_contract(source, None)
    graph = write_ort_graph(source, contract, precision, tmp_path_factory.mktemp(precision))[0]
    return source, contract, graph, precision, ORT_FORMATS[precision]


@pytest.fixture(scope="module")
def operator() -> ort.InferenceSession:
    """ONNX Runtime's DynamicQuantizeLinear alone."""
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])
    kinds = {"x": onnx.TensorProto.FLOAT, "q": onnx.TensorProto.UINT8, "scale": onnx.TensorProto.FLOAT}
    values = {name: onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()}
    values["zero"] = onnx.helper.make_tensor_value_info("zero", onnx.TensorProto.UINT8, [])
    graph = onnx.helper.make_graph([node], "one", [values.pop("x")], list(values.values()))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(-20, 20))
def test_activations_are_rounded_as_the_operator_does(
    operator: ort.InferenceSession, seed: int, shift: float, exponent: float
) -> None:
    x = np.random.default_rng(seed).standard_normal((5, 7)) * np.exp2(exponent) + shift * np.exp2(exponent)
    for each in (x.astype(np.float32), np.abs(x).astype(np.float32), np.zeros((5, 7), np.float32)):
        values, scale, zero = operator.run(None, {"x": each})
        whole, step = round_activations(torch.from_numpy(each))
        np.testing.assert_array_equal(whole.numpy(), values.astype(np.float32) - zero)
        assert step.item() == scale or not each.any()


def test_an_input_of_several_products_is_rounded_once() -> None:
    x, other = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(SEED))
    kept = Rounding()
    for each in (x, other, x):
        assert all(torch.equal(*pair) for pair in zip(kept(each), round_activations(each), strict=True))
        assert kept(each)[0] is kept(each)[0]
    module = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False), torch.nn.Sequential(torch.nn.Linear(8, 4)))
    plain = [Int8Linear(layer.weight.detach(), layer.bias) for layer in (module[0], module[1][0])]
    made = quantize_module(module, lambda _: ORT_FORMATS["int8"].inner)
    assert made[0].round_activations is made[1][0].round_activations
    assert all(torch.equal(a(x), b(x)) for a, b in zip((made[0], made[1][0]), plain, strict=True))


def test_every_part_is_far_nearer_to_its_arithmetic_in_pytorch_than_that_is_to_the_model(made: Made) -> None:
    source, contract, graph, precision, formats = made
    parts = Parts(graph)
    gaps = [gap for i in range(contract.layers) for gap in measure_layer(source, contract, parts, i, "fp32", formats)]
    assert len(gaps) == contract.layers * (3 if contract.attention == "block_causal" else 1)
    gaps.append(measure_head(source, contract, parts, "fp32", formats)[0])
    most = {"int8": 0.5, "int4": 3.0}[precision]
    assert all(1e-3 < gap.bound < most and gap.apart < gap.bound / 10 for gap in gaps), gaps
    assert measure_embedding(source, contract, parts, "fp32", formats).apart < 1e-6


@pytest.mark.parametrize(
    ("tensor", "check"),
    [
        ("embedding", "embedding"), ("layers.1.down_proj.weight", "layers"), ("layers.2.gate_proj.weight", "layers"),
        ("layers.0.self_attn.qkv_proj.weight", "layers"), ("head", "head"),
    ],
)  # fmt: skip
def test_scales_that_are_too_large_fail_the_check_of_their_part_alone(
    tensor: str, check: str, made: Made, tmp_path: Path
) -> None:
    source, contract, graph, precision, formats = made
    factor = {"int8": 1.2, "int4": 2.0}[precision]  # beyond what a layer loses anyway
    found = list(check_by_layer(source, contract, stretched(graph, tensor, factor, tmp_path), precision, formats))
    assert [each.name for each in found if not each.ok] == [check], [str(each) for each in found]


def stretched(graph: Path, tensor: str, factor: float, folder: Path) -> Path:
    """A copy of the graph in which one weight's scales are `factor` times what they were."""
    model = onnx.load(graph)
    [scale] = [each for each in model.graph.initializer if each.name == f"{tensor}.scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(factor), scale.name))
    onnx.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


def test_the_arithmetic_next_to_an_engine_loses_what_it_does_compared_alone_and_changes_nothing(made: Made) -> None:
    source, contract, graph, _, formats = made
    requests = sample_requests(contract)[-2:]
    reference = TorchBackend(source.build(), contract, barred=source.list_missing_ids())
    engine, arithmetic = OrtBackend(graph, contract, threads=1), QuantizedBackend(source, contract, formats)
    *_, alone = compare(reference, arithmetic, requests)
    *_, engines = compare(reference, engine, requests, instrumented=load_instrumented(graph, engine))
    twin = load_instrumented(graph, engine)
    *_, both = compare(reference, engine, requests, instrumented=twin, arithmetic=arithmetic)
    assert both.lost == alone.distance.log_prob > 1e-3
    assert both == replace(engines, lost=both.lost) and both.distance.forwards == alone.distance.forwards


@pytest.mark.long
def test_a_whole_engine_may_be_twice_as_far_from_the_model_as_its_arithmetic_in_pytorch(
    made: Made, tmp_path: Path
) -> None:
    source, contract, graph, precision, formats = made
    assert all(check.ok for check in prove(source, contract, graph, precision, "whole", formats))
    requests = sample_requests(contract)
    reference = TorchBackend(source.build(), contract, barred=source.list_missing_ids())
    engine, arithmetic = OrtBackend(graph, contract, threads=1), QuantizedBackend(source, contract, formats)
    *_, found = compare(reference, engine, requests, separate=1, arithmetic=arithmetic)
    assert 0.5 < found.distance.log_prob / found.lost < 1.5
    assert compute_whole_bound(found.lost) == 2 * found.lost < {"int8": 1, "int4": 9}[precision]
    wrong = list(prove(source, contract, stretched(graph, "head", 4.0, tmp_path), precision, "whole", formats))
    assert [check.name for check in wrong if not check.ok] == ["steps"], [str(check) for check in wrong]


@pytest.mark.parametrize("precision", ["int8", pytest.param("int4", marks=pytest.mark.long)])
def test_verify_holds_a_quantized_bundle_to_what_its_bits_cost(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(student(), tmp_path / "student.pt")
    assert command.main(["--ckpt", str(tmp_path / "student.pt"), "--precision", precision]) == 0
    at = store.read(tmp_path / "student.bundle")
    words = [str(at.path), "--ckpt", str(tmp_path / "student.pt"), "--prompts", "2", "--task", "math"]
    assert verify.main(words) == 0
    wrong = stretched(at.path / at.find_engine().model, "embedding", 4.0, tmp_path)  # the head's too, which is tied
    file = wrong.rename(tmp_path / store.make_content_name(f"ort-{precision}", ".onnx", store.hash_file(wrong)))
    engine = replace(at.find_engine(), model=file.name, reference=None)
    store.write(at.path, at.contract, engine, [file], student().tokenizer, None, at.provenance)
    capsys.readouterr()
    assert verify.main(words) == 1
    assert "[x] steps" in capsys.readouterr().out


def test_a_layer_that_is_not_needed_any_more_gives_its_memory_back_at_once() -> None:
    layer = RowsLayer(tiny.model(0).layers[0])  # type: ignore[arg-type]
    kept = weakref.ref(layer.layer)
    gc.disable()
    try:
        del layer
        assert kept() is None  # a large model's layers would pile up until Python looks for cycles
    finally:
        gc.enable()
