"""int4: how weights are packed, that the operator computes as PyTorch does here, what is stored how often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_graph_step import random_weights

from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import write_ort_graph
from export.quantization.ort_int4 import BLOCK, Int4Linear, dequantize, pack_pairs, quantize
from runtime.engines.ort.no_telemetry import ort
from runtime.errors import NumericalError
from train.transformer.network import ModelConfig

SEED = 7


def test_a_block_spans_its_weights_and_zero_in_sixteen_steps() -> None:
    weight = np.zeros((1, BLOCK), np.float32)
    weight[0, :6] = -1, 2, 0.19, 0.31, -0.5, 1.91  # a step is 3 / 15 = 0.2, and zero the fifth
    values, scale, zero = quantize(weight)
    np.testing.assert_allclose(scale, [[0.2]], rtol=1e-6)
    assert zero.tolist() == [[5]]
    # 0, 15, 6, 7 (1.55 steps are 2), 2 (-2.5 steps, to the even one, are 3; the scale is a little above 0.2), 15
    steps = [0, 15, 6, 7, int(np.rint(-0.5 / scale[0, 0])) + 5, 15] + [5] * 26
    assert values.shape == (1, 1, 16) and values[0, 0].tolist() == [
        low + 16 * high for low, high in zip(steps[0::2], steps[1::2], strict=True)
    ]
    np.testing.assert_allclose(dequantize(values, scale, zero)[0, :4], [-1, 2, 0.2, 0.4], rtol=1e-6)


def test_two_values_lie_in_a_byte_and_the_first_in_its_low_half() -> None:
    assert pack_pairs(np.array([[1, 2, 3], [15, 0, 9]], np.uint8)).tolist() == [[0x21, 0x03], [0x0F, 0x09]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 3 * BLOCK), st.floats(-40, 36))
def test_int4_lies_within_half_a_scale_of_the_weight(seed: int, inputs: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((5, inputs)) * np.exp2(exponent) + rng.normal()).astype(np.float32)
    weight[1], weight[2, ::3] = 0, 0
    values, scale, zero = quantize(weight)
    blocks = -(-inputs // BLOCK)
    assert values.shape == (5, blocks, BLOCK // 2) and scale.shape == (5, blocks) and zero.shape == (5, -(-blocks // 2))
    restored, steps = dequantize(values, scale, zero), np.repeat(scale, BLOCK, axis=1)
    assert (np.abs(restored[:, :inputs] - weight) <= 0.5001 * steps[:, :inputs]).all()
    assert not restored[1].any() and not restored[:, inputs:].any() and not restored[2, :inputs:3].any()


def test_weights_that_are_no_numbers_have_no_int4() -> None:
    for odd in (np.nan, np.inf, -np.inf):
        with pytest.raises(NumericalError, match="not a finite number"):
            quantize(np.array([[1, odd], [2, 3]], np.float32))


def test_a_weight_is_quantized_in_slices_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(SEED).standard_normal((50, 40)).astype(np.float32)
    whole = quantize(weight)
    monkeypatch.setattr("export.quantization.ort_int4.ROWS", 7)
    for ours, theirs in zip(quantize(weight), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def product(weight: NDArray[np.float32]) -> ort.InferenceSession:
    """ONNX Runtime's MatMulNBits alone, over a weight [out, in]."""
    outputs, inputs = weight.shape
    parts = dict(zip(("values", "scale", "zero"), quantize(weight), strict=True))
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *parts], ["y"], domain="com.microsoft", K=inputs, N=outputs, bits=4, block_size=BLOCK,
        accuracy_level=4,
    )  # fmt: skip
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", None]) for name in "xy")
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in parts.items()]
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", [x], [y], stored), opset_imports=opsets, ir_version=10
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("outputs", "inputs"), [(7, 16), (5, 32), (24, 40), (33, 96), (64, 256)])
def test_the_operator_computes_as_pytorch_does_here(outputs: int, inputs: int) -> None:
    rng = np.random.default_rng(SEED)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    operator, linear = product(weight), Int4Linear(torch.from_numpy(weight))
    for rows in (1, 2, 17):
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        x[:, :BLOCK] *= 20  # a block of its own scale
        x[1:2, -BLOCK:] = 0
        ours, theirs = linear(torch.from_numpy(x)).numpy(), operator.run(None, {"x": x})[0]
        unit = np.sqrt(np.mean(np.square(theirs)))
        # x86 CPUs without AVX2 have no int8 kernel of the operator: activations stay in fp32 there, more exact.
        unrounded = x @ dequantize(*quantize(weight))[:, :inputs].T
        assert min(np.abs(each - theirs).max() for each in (ours, unrounded)) < 1e-5 * unit
        assert 1e-5 * unit < np.abs(x @ weight.T - theirs).max()


def test_a_row_does_not_depend_on_its_neighbors() -> None:
    rng = np.random.default_rng(SEED)
    operator = product(rng.standard_normal((16, 64)).astype(np.float32))
    x = rng.standard_normal((9, 64)).astype(np.float32)
    [whole] = operator.run(None, {"x": np.concatenate((x, 1000 * x))})
    np.testing.assert_allclose(whole[4], operator.run(None, {"x": x[4:5]})[0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.long)])
def test_inner_layers_are_in_int4_the_rest_in_int8_and_a_tied_table_is_stored_once(tied: bool, tmp_path: Path) -> None:
    shape = ModelConfig(tiny.VOCAB, 32, 4, 4, 2, 16, 64, tied=tied)
    source = replace(tiny.checkpoint(SEED), model=shape, weights=random_weights(shape, SEED))
    model = onnx.load(write_ort_graph(source, make_export_contract(source, None), "int4", tmp_path)[0])
    names = [node.op_type for node in model.graph.node]
    assert names.count("MatMulNBits") == 5 * (shape.layers - 2) and "MatMul" not in names
    assert names.count("DynamicQuantizeMatMul") == 2 * 5 + 1  # of the first and last layer, and the head
    stored = {each.name: onnx.numpy_helper.to_array(each).nbytes for each in model.graph.initializer}
    layers = {name: size for name, size in stored.items() if name.startswith("layers.") and "norm" not in name}
    inner = sum(size for name, size in layers.items() if name.startswith(("layers.1.", "layers.2.")))
    # Of 32 weights 16 bytes and a scale of 4 in int4; zero points in pairs along the inputs.
    rows, wide = 128 + 32 + 64 + 64, 32  # outputs of qkv, o, gate and up over blocks of 32, 64, 32 and 32 inputs
    blocks = 128 + 2 * 32 + 64 + 64 + 2 * wide
    assert inner == 2 * (blocks * 20 + rows + wide)
    assert sum(layers.values()) - inner == 2 * (32 * blocks + 4 * (128 + 32 + 64 + 64 + 32))
    tables = {name: size for name, size in stored.items() if name.startswith(("embedding", "head"))}
    assert sum(tables.values()) == (1 if tied else 2) * tiny.VOCAB * (32 + 4)
