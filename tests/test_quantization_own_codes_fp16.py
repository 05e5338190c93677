"""int4 of GPTQ and AWQ directories with fp16 scales (`standard`, TensorRT): their own numbers, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import packed
import pytest
import torch
from packed import Packing
from safetensors.torch import load_file, save_file
from test_huggingface_reader import SMALL
from test_quantization_own_codes import SIZES, weight
from test_quantization_trt import plain_session

from export import onnx as export
from export import trt
from export.quantization.ort_int4 import unpack_pairs
from export.quantization.own_codes import OwnCodes, explain_inexact_in_fp16, find_own_codes_in_fp16, fuse_codes
from export.quantization.standard_nbits import quantize_for_nbits
from export.quantization.stored_weights import replace_by_stored_weights
from export.quantization.trt_qdq import quantize_for_trt
from runtime.engines.ort.no_telemetry import ort
from train.huggingface.reader import load_directory

NAME = "layers.0.down_proj.weight"  # as a traced graph calls it
OWN_NAME = "layers.0.mlp.down_proj.weight"  # and the checkpoint
HELD = {
    "symmetric": Packing("gptq", size=32, symmetric=True),
    "act-order": Packing("gptq_v2", size=32, symmetric=True, order=True),
}


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner layers of 64 channels, so that all inputs come in whole groups of 32."""
    narrow = foreign.make_shape
    monkeypatch.setattr(foreign, "make_shape", lambda *given: {**narrow(*given), "intermediate_size": 64})


def write(folder: Path, packing: Packing, **more: Any) -> Any:
    """Writes a packed SDAR directory and returns the stock class with the weights that it stands for."""
    stock = foreign.write(folder, "sdar", seed=3, sharp=4.0)
    stock.load_state_dict(packed.pack_directory(folder, packing, **more))
    return stock


def product(dense: Any) -> ir.Model:
    """A graph x [n, in] @ weight in fp16, as it is traced."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, ["n", None]) for name in "xy")
    stored = [onnx.numpy_helper.from_array(np.ascontiguousarray(dense.T.astype(np.float16)), NAME)]
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", NAME], ["y"])], "product", [x], [y], stored)
    opset = [onnx.helper.make_opsetid("", 21)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10))


@pytest.mark.parametrize(
    "packing",
    [*HELD.values(), Packing("gptq", size=128, symmetric=True), Packing("gptq", size=-1, symmetric=True)],
    ids=str,
)
def test_tensorrts_product_dequantizes_to_the_directorys_weights(packing: Packing, tmp_path: Path) -> None:
    one, dense = weight(tmp_path, packing, 24, 256)
    model = product(dense)
    quantize_for_trt(model, "int4", own={OWN_NAME: fuse_codes([one])})
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Gather"] * packing.order + ["DequantizeLinear", "MatMul"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    found = plain_session(proto.SerializeToString()).run(None, {"x": np.eye(256, dtype=np.float16)})[0]
    np.testing.assert_array_equal(found.T, dense.astype(np.float16))


@pytest.mark.parametrize(
    "packing",
    [*HELD.values(), Packing("gptq", size=16), Packing("gemm", size=64, least=0), Packing("gptq", bits=3, size=32)],
    ids=str,
)
def test_standards_product_dequantizes_to_the_directorys_weights(packing: Packing, tmp_path: Path) -> None:
    one, dense = weight(tmp_path, packing, 32, 256)
    model = product(dense)
    quantize_for_nbits(model, "int4", own={OWN_NAME: fuse_codes([one])})
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Gather"] * packing.order + ["MatMulNBits"]
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.eye(256, dtype=np.float16)})[0]
    np.testing.assert_array_equal(found.T, dense.astype(np.float16))


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", HELD)
def test_symmetric_directories_are_int4_for_tensorrt_in_their_own_numbers(name: str, tmp_path: Path) -> None:
    folder, made = tmp_path / "Tiny", tmp_path / "made.bundle"
    write(folder, HELD[name])
    words = ["--graph-only", "--dialect", "trt", "--precision", "int4", "--out", str(made)]
    assert trt.main(["--ckpt", str(folder), *SIZES, *words]) == 0  # proved by the dequantized graph
    graph = onnx.load(next(made.glob("trt-int4-*.onnx"))).graph
    stored = {each.name: each for each in graph.initializer}
    read = load_directory(folder, SMALL)
    down = read.weights.packed[OWN_NAME].unpack()  # type: ignore[attr-defined]
    order = torch.argsort(down.group, stable=True).numpy()
    assert (f"{NAME}.order" in stored) == HELD[name].order
    values = ir.from_proto(stored[f"{NAME}.values"]).numpy()
    assert values.dtype == ml_dtypes.int4
    np.testing.assert_array_equal(values.astype(int).T, down.values.numpy().astype(int)[:, order] - 8)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored[f"{NAME}.scale"]).T, down.scales.numpy())
    reference = replace_by_stored_weights(read, "int4").weights[OWN_NAME]
    assert torch.equal(reference, down.dequantize().half().float())


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("packing", [HELD["act-order"], Packing("gemm", size=32, least=0)], ids=str)
def test_directories_are_int4_of_the_dialect_standard_in_their_own_numbers(packing: Packing, tmp_path: Path) -> None:
    folder, made = tmp_path / "Tiny", tmp_path / "made.bundle"
    write(folder, packing, kept=("gate_proj",))
    words = ["--dialect", "standard", "--precision", "int4", "--out", str(made)]
    assert export.main(["--ckpt", str(folder), *SIZES, *words]) == 0
    graph = onnx.load(next(made.glob("standard-int4-*.onnx"))).graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    assert stored["layers.0.gate_proj.weight"].dtype == np.float16  # left plain by the directory
    down = load_directory(folder, SMALL).weights.packed[OWN_NAME].unpack()  # type: ignore[attr-defined]
    order = torch.argsort(down.group, stable=True).numpy()
    values = unpack_pairs(stored[f"{NAME}.int4"].reshape(len(down.values), -1), 64)
    np.testing.assert_array_equal(values, down.values.numpy()[:, order])
    np.testing.assert_array_equal(unpack_pairs(stored[f"{NAME}.zero"], down.zeros.shape[1]), down.zeros.numpy())
    np.testing.assert_array_equal(stored[f"{NAME}.scale"], down.scales.numpy().astype(np.float16))


@pytest.mark.usefixtures("wide")
def test_what_fp16_would_round_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(name: str, packing: Packing, dialect: str) -> str:
        folder, out = tmp_path / name / "Tiny", tmp_path / f"{name}.bundle"
        if not folder.exists():
            write(folder, packing)
        command, words = (export, []) if dialect == "standard" else (trt, ["--graph-only"])
        given = ["--ckpt", str(folder), *SIZES, *words, "--dialect", dialect, "--precision", "int4", "--out", str(out)]
        assert command.main(given) == 2 and not out.exists()
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "would round layers." in err and "for ONNX Runtime in the dialect ort" in err
        return err

    for packing in (Packing("gemm", size=32), Packing("gptq", size=32), Packing("gptq", bits=3, size=32)):
        assert "not symmetric of 4 bits" in refusal(str(packing), packing, "trt")
    assert "groups of 16 of 64 inputs are not blocks of 32" in refusal("s", Packing("gptq", symmetric=True), "trt")

    fine = tmp_path / "fine" / "Tiny"
    write(fine, HELD["symmetric"])
    file = fine / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.v_proj.scales"
    tensors[name] = tensors[name].float() * 1.0001
    save_file(tensors, file, {"format": "pt"})
    for dialect in ("standard", "trt"):
        assert "its scales are not fp16 numbers" in refusal("fine", HELD["symmetric"], dialect)
    tensors[name] = tensors[name].half().bfloat16()  # of which all are fp16 numbers in that range
    save_file(tensors, file, {"format": "pt"})
    assert find_own_codes_in_fp16(load_directory(fine, SMALL), "trt")


def test_a_short_last_group_is_no_whole_block_of_tensorrts(tmp_path: Path) -> None:
    one, _ = weight(tmp_path, Packing("gptq", size=64, symmetric=True), 8, 96)
    codes = fuse_codes([one])
    assert isinstance(codes, OwnCodes) and codes.block == 64
    assert "groups of 64 of 96 inputs" in explain_inexact_in_fp16(codes, has_zero_points=False)
    assert not explain_inexact_in_fp16(codes, has_zero_points=True)
