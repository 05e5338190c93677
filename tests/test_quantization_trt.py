"""Weights in few bits and calibrated activations: the numbers, and that graphs compute with just these numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import ORT_PRECISIONS
from export.precisions import PRECISIONS
from export.proof.held_out import make_held_out_requests
from export.quantization.trt_formats import TRT_FORMATS, TrtFormat
from export.quantization.trt_qdq import quantize_activations, quantize_for_trt
from export.trt_engines.graphs import GraphRecipe, Graphs
from runtime.bundle.manifest import CACHE_DTYPES
from runtime.decoding.loop import generate
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import NumericalError, UserError
from train.checkpoint import Checkpoint
from train.data.prompts import make_encoder
from train.torch_backend import TorchBackend
from train.transformer.network import Transformer, initialize

STEP = {
    "int8": 0.5 / 127,
    "int4": 0.5 / 7,
    "fp8": 1 / 16,
    "nvfp4": 1.3 / 6,
}  # the largest error, in parts of the largest


def weight(inputs: int = 128, outputs: int = 24) -> NDArray[np.float32]:
    """Columns of very different sizes, one of them zero, with outliers."""
    rng = np.random.default_rng(3)
    made = rng.standard_normal((inputs, outputs)) * np.logspace(-2, 1, outputs)
    made[rng.integers(0, inputs, outputs), np.arange(outputs)] *= 5
    made[:, 2] = 0
    return made.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("chosen", TRT_FORMATS.values(), ids=TRT_FORMATS)
def test_what_is_stored_is_within_half_a_step(chosen: TrtFormat) -> None:
    w = weight()
    block = chosen.choose_block(len(w))
    assert block is not None
    stored = chosen.quantize(w, block)
    size = block or len(w)
    top = np.repeat(np.abs(w.reshape(-1, size, w.shape[1])).max(axis=1), size, axis=0)  # [in, out]
    assert (np.abs(stored.dequantize() - w) <= (STEP[chosen.name] + 1e-3) * top + 1e-4).all()
    assert not stored.dequantize()[:, 2].any() and stored.values.shape == w.shape
    assert stored.values.dtype == chosen.values and stored.scale.dtype == chosen.scale


def test_blocks_are_the_largest_that_divide_the_inputs() -> None:
    assert [TRT_FORMATS["int4"].choose_block(size) for size in (256, 192, 96, 48)] == [128, 64, 32, None]
    assert [TRT_FORMATS["nvfp4"].choose_block(size) for size in (64, 40)] == [16, None]
    assert TRT_FORMATS["int8"].choose_block(7) == 0


def test_every_format_is_a_precisions_and_every_precision_has_its_format() -> None:
    assert {row.weights for row in PRECISIONS.values()} - {None} == set(TRT_FORMATS)
    assert all(row.dtype in CACHE_DTYPES and row.capability <= row.rtx for row in PRECISIONS.values())
    assert set(ORT_PRECISIONS) <= set(PRECISIONS)
    assert [name for name, row in PRECISIONS.items() if row.exact] == ["fp32"]


@pytest.mark.parametrize("chosen", TRT_FORMATS.values(), ids=TRT_FORMATS)
def test_weights_that_are_no_numbers_are_refused(chosen: TrtFormat) -> None:
    w = weight()
    w[5, 5] = np.nan
    with pytest.raises(NumericalError, match="not a finite number"):
        chosen.quantize(w, chosen.choose_block(len(w)) or 0)


def product(w: NDArray[np.float32]) -> ir.Model:
    """A graph x [n, in] @ w in fp16."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, ["n", None]) for name in "xy")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "product", [x], [y], [onnx.numpy_helper.from_array(w.astype(np.float16), "w")]
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10))


def run(model: ir.Model, x: NDArray[np.float16], reference: bool = False) -> NDArray[Any]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    if reference:
        return ReferenceEvaluator(proto).run(None, {"x": x})[0]
    return plain_session(proto.SerializeToString()).run(None, {"x": x})[0]


def plain_session(model: bytes) -> ort.InferenceSession:
    """A session that runs the nodes as they are: optimised, products with a stored weight are rounded otherwise."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options)


@pytest.mark.parametrize("chosen", TRT_FORMATS.values(), ids=TRT_FORMATS)
def test_graphs_dequantize_to_the_exporters_numbers(chosen: TrtFormat) -> None:
    w = weight()
    dense = chosen.quantize(w, chosen.choose_block(len(w)) or 0).dequantize()
    unit = np.eye(len(w), dtype=np.float16)  # times which the weight comes out as it is
    stored, twin = product(w), product(w)
    quantize_for_trt(stored, chosen.name)
    quantize_for_trt(twin, chosen.name, dense=True)
    # ONNX Runtime's CPU has no 4-bit floats; onnx's own evaluator has.
    np.testing.assert_array_equal(run(stored, unit, reference=chosen.name == "nvfp4"), dense)
    np.testing.assert_array_equal(run(twin, unit), dense)


def test_a_weight_that_no_block_divides_stays() -> None:
    w = weight(inputs=48)
    model = product(w)
    quantize_for_trt(model, "int4")
    assert [node.op_type for node in model.graph] == ["MatMul"]
    np.testing.assert_array_equal(run(model, np.eye(48, dtype=np.float16)), w.astype(np.float16))


def test_activations_are_rounded_to_the_calibrated_scale() -> None:
    w, x = np.eye(16, dtype=np.float32), np.linspace(-4, 4, 32).reshape(2, 16).astype(np.float16)
    model = product(w)
    quantize_activations(model, {"y": 3.0})
    scale = np.float32(np.float16(3 / 127))
    wanted = np.clip(np.rint(x.astype(np.float32) / scale), -128, 127) * scale  # what is larger is cut
    np.testing.assert_allclose(run(model, x), wanted, atol=2e-3)
    assert np.abs(wanted).max() < 3.1 < np.abs(x).max()


def student() -> Checkpoint:
    """A tiny checkpoint whose vocabulary is its tokenizer's, so that texts can be answered."""
    source = tiny.checkpoint(4)
    shape = replace(source.model, vocab=source.read_tokenizer().get_vocab_size())
    weights = initialize(Transformer(shape), 4).state_dict()
    return replace(source, model=shape, weights={name: 6 * weight for name, weight in weights.items()})


def test_ranges_are_the_largest_inputs_that_pytorch_sees(tmp_path: Path) -> None:
    source = student()
    data, contract = tmp_path / "data.jsonl", make_export_contract(source, 40)
    data.write_text("".join(json.dumps({"prompt": text, "answer": "a"}) + "\n" for text in ("ab", "cde")))
    ranges = Graphs(source, contract, GraphRecipe("trt", "int8-static", 1, data)).calibrate(tmp_path)
    assert ranges is not None and list(tmp_path.iterdir()) == [data]
    model, seen = source.build(), dict[str, float]()
    attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
    for name, module in {"qkv": attention.q_proj, "o": attention.o_proj, "gate": mlp.gate_proj, "up": mlp.up_proj,
                         "down": mlp.down_proj}.items():  # fmt: skip

        def hook(_: object, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            seen[name] = max(seen.get(name, 0.0), float(inputs[0].abs().max()))

        module.register_forward_pre_hook(hook)
    for request in make_held_out_requests(make_encoder(source, raw=True), contract, ["ab", "cde"]):
        generate(TorchBackend(model, contract), request)
    np.testing.assert_allclose([*ranges.values()][:5], [*seen.values()], rtol=0.02)


def test_ranges_do_not_depend_on_room_for_candidates(tmp_path: Path) -> None:
    source, data, found = student(), tmp_path / "data.jsonl", []
    data.write_text(json.dumps({"prompt": "ab", "answer": "a"}) + "\n")
    for candidates in (0, 4):
        contract = make_export_contract(source, 40, candidates=candidates)
        found.append(Graphs(source, contract, GraphRecipe("trt", "int8-static", 1, data)).calibrate(tmp_path))
    plain, own = found
    assert plain and own and sorted(plain.values()) == sorted(own.values())


@pytest.mark.long
def test_the_dense_form_of_a_quantized_graph_answers_as_it_does(tmp_path: Path) -> None:
    source = student()
    contract = make_export_contract(source, 40)
    graphs = Graphs(source, contract, GraphRecipe("plain", "int8", 1, None))
    files = [graphs.write(tmp_path), graphs.write_dense(tmp_path)]
    stored, dense = (OrtBackend(plain_session(file.read_bytes()), contract) for file, *_ in files)
    for request in make_held_out_requests(make_encoder(source, raw=True), contract, ["abc", "d"]):
        assert generate(stored, request).token_ids == generate(dense, request).token_ids
        np.testing.assert_array_equal(stored.cache, dense.cache)


def test_calibration_needs_prompts(tmp_path: Path) -> None:
    source, empty = tiny.checkpoint(4), tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match="holds no problems"):
        Graphs(source, make_export_contract(source, 40), GraphRecipe("trt", "int8-static", 1, empty)).calibrate(
            tmp_path
        )
