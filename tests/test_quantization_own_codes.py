"""int4 of GPTQ and AWQ directories: exactly their own numbers, computed as PyTorch does here, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign
import numpy as np
import onnx
import packed
import pytest
import torch
from foreign import BLOCK, CANVAS, Stock
from numpy.typing import NDArray
from packed import Packing
from safetensors.torch import load_file, save_file
from slow_decode import slow_decode
from test_huggingface_path import lines
from test_huggingface_reader import SMALL

from export import onnx as export
from export import trt, verify
from export.proof.quantized_reference import QuantizedBackend
from export.quantization.ort_formats import choose_formats
from export.quantization.ort_int4 import unpack_pairs
from export.quantization.own_codes import OwnCodesLinear, find_own_codes, fuse_codes
from runtime import load
from runtime.contract import GateSpec
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.no_telemetry import ort
from train.huggingface.packed_weights import PackedWeight
from train.huggingface.quantization_config import Scheme
from train.huggingface.reader import load_directory
from train.huggingface.stored_tensor import read_header

SIZES = ["--block", str(BLOCK), "--canvas", str(CANVAS)]
EXPORTED = {
    "gptq": Packing("gptq"),
    "gptq, act-order": Packing("gptq_v2", order=True, least=0),
    "awq": Packing("gemm", least=0),
}


def weight(folder: Path, packing: Packing, outputs: int, inputs: int) -> tuple[PackedWeight, NDArray[np.float32]]:
    """A quantized weight in a file of its own, and what it stands for."""
    rng = np.random.default_rng(8)
    made = packed.quantize(torch.from_numpy(0.2 * rng.standard_normal((outputs, inputs))), packing, rng)
    file = folder / "one.safetensors"
    save_file({f"one.{name}": tensor for name, tensor in packed.pack(made, packing).items()}, file)
    parts = {stored.name.removeprefix("one."): stored for stored in read_header(file)}
    size = max(0, packing.size)
    scheme = Scheme(packing.layout, packing.bits, size, packing.order, packing.symmetric, carries=False)
    return PackedWeight("one", (outputs, inputs), scheme, parts), made.dense()


def product(found: Any) -> ort.InferenceSession:
    """ONNX Runtime's MatMulNBits alone, with a weight's own numbers."""
    outputs, inputs = found.shape
    parts = found.make_arrays()
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *parts], ["y"], domain="com.microsoft", K=inputs, N=outputs, bits=4,
        block_size=found.block, accuracy_level=4,
    )  # fmt: skip
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", None]) for name in "xy")
    stored = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in parts.items()]
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph([node], "one", [x], [y], stored)
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("packing", "inputs", "block"),
    [
        (Packing("gptq", size=16), 64, 16), (Packing("gptq", size=32, order=True), 96, 32),
        (Packing("gemm", size=64, least=0), 192, 64), (Packing("gptq", size=128), 256, 128),
        (Packing("gptq", size=256, order=True), 512, 128), (Packing("gptq", size=48), 96, 16),
        (Packing("gptq", size=64), 96, 64),  # the last group is short
        (Packing("gptq", size=-1), 160, 32), (Packing("gptq", bits=3, size=32), 96, 32),
        (Packing("gptq", bits=2, size=32, order=True), 64, 32),
    ],
)  # fmt: skip
def test_the_operator_computes_with_the_own_numbers_as_pytorch_does_here(
    packing: Packing, inputs: int, block: int, tmp_path: Path
) -> None:
    one, dense = weight(tmp_path, packing, 32, inputs)
    found = fuse_codes([one])
    assert found.block == block and (found.order is not None) == packing.order
    operator, linear = product(found), OwnCodesLinear(one.read(), None, found.block, found.order)
    rng = np.random.default_rng(4)
    for rows in (1, 2, 17):
        x = rng.standard_normal((rows, inputs)).astype(np.float32)
        x[:, :block] *= 20  # a block of its own scale
        in_order = x if found.order is None else x[:, found.order.numpy()]
        theirs = operator.run(None, {"x": in_order})[0]
        unit = np.sqrt(np.mean(np.square(theirs)))
        unrounded = x @ dense.T  # x86 CPUs without AVX2 leave activations in fp32
        ours = linear(torch.from_numpy(x)).numpy()
        assert min(np.abs(each - theirs).max() for each in (ours, unrounded)) < 1e-5 * unit


@pytest.fixture(scope="module", params=EXPORTED)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """A packed SDAR directory, the stock class with the weights that it stands for, and its name in EXPORTED."""
    folder = tmp_path_factory.mktemp("packed") / "Tiny"
    stock = foreign.write(folder, "sdar", seed=3, sharp=4.0)
    stock.load_state_dict(packed.pack_directory(folder, EXPORTED[request.param]))
    return folder, stock, request.param


def prompt(vocab: int) -> NDArray[np.int64]:
    return np.random.default_rng(4).integers(0, vocab, 2 * BLOCK + 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_packed_directory_is_exported_and_proved(
    directory: tuple[Path, Any, str], precision: str, tmp_path: Path
) -> None:
    folder, stock, _ = directory
    made = tmp_path / "made.bundle"
    assert export.main(["--ckpt", str(folder), *SIZES, "--precision", precision, "--out", str(made)]) == 0
    if precision == "fp32":
        model, read = load(made), load_directory(folder, SMALL)
        asked = prompt(model.contract.vocab)
        slow: Any = Stock(stock, read.count_vocab())
        answer, finish, _ = slow_decode(slow, model.contract, asked.tolist(), CANVAS - 1, 0.4)
        result = generate(model.backend, Request(asked, DecodeOptions(CANVAS - 1)), gate=GateSpec(threshold=0.4))
        assert (list(result.token_ids), result.finish) == (answer, finish)


def test_int4_holds_exactly_the_directorys_own_numbers(directory: tuple[Path, Any, str], tmp_path: Path) -> None:
    folder, _, name = directory
    made = tmp_path / "made.bundle"
    assert export.main(["--ckpt", str(folder), *SIZES, "--precision", "int4", "--out", str(made)]) == 0
    graph = onnx.load(next(made.glob("ort-int4-*.onnx"))).graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulNBits") == 2 * 5 and kinds.count("DynamicQuantizeMatMul") == 1  # the head
    read = load_directory(folder, SMALL)
    packed_parts: dict[str, PackedWeight] = read.weights.packed  # type: ignore[attr-defined]
    inner = {"qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "o_proj": ("self_attn.o_proj",)}
    inner |= {f"{part}_proj": (f"mlp.{part}_proj",) for part in ("gate", "up", "down")}
    for i in range(2):
        for fused, parts in inner.items():
            codes = [packed_parts[f"layers.{i}.{part}.weight"].unpack() for part in parts]
            group, values = codes[0].group.numpy(), torch.cat([each.values for each in codes]).numpy()
            where = f"layers.{i}.self_attn." if fused in ("qkv_proj", "o_proj") else f"layers.{i}."
            ours = {part: stored[f"{where}{fused}.weight.{part}"] for part in ("int4", "scale", "zero")}
            order = stored.get(f"{where}{fused}.weight.order", np.arange(len(group)))
            assert (name == "gptq, act-order") == (f"{where}{fused}.weight.order" in stored)
            assert (np.diff(group[order]) >= 0).all() and sorted(order) == list(range(len(group)))
            unpacked = unpack_pairs(ours["int4"].reshape(len(values), -1), values.shape[1])
            np.testing.assert_array_equal(unpacked, values[:, order])
            zeros, scales = (torch.cat([getattr(each, part) for each in codes]).numpy() for part in ("zeros", "scales"))
            np.testing.assert_array_equal(unpack_pairs(ours["zero"], zeros.shape[1]), zeros)
            np.testing.assert_array_equal(ours["scale"], scales)

    model = load(made)
    asked = Request(prompt(model.contract.vocab), DecodeOptions(CANVAS - 1))
    gate, formats = GateSpec(threshold=0.4), choose_formats("ort", "int4", read)
    assert formats is not None
    slow = QuantizedBackend(read, model.contract, formats)
    assert generate(model.backend, asked, gate=gate).token_ids == generate(slow, asked, gate=gate).token_ids
    assert verify.main([str(made), "--ckpt", str(folder), "--data", str(lines(tmp_path)), "--prompts", "2"]) == 0


def test_int4_is_proved_layer_by_layer_too(directory: tuple[Path, Any, str], tmp_path: Path) -> None:
    words = ["--precision", "int4", "--parity", "layers", "--out", str(tmp_path / "made.bundle")]
    assert export.main(["--ckpt", str(directory[0]), *SIZES, *words]) == 0


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], command: Any = export, *words: str) -> str:
    """What the export to int4 is refused with, in one line."""
    out = folder.parent / "none.bundle"
    given = ["--ckpt", str(folder), *SIZES, "--precision", "int4", "--out", str(out), *words]
    assert command.main(given) == 2 and not out.exists()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "fp16 or int8" in err
    return err


def test_what_int4_would_round_again_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def packed_folder(name: str, packing: Packing, **more: Any) -> Path:
        folder = tmp_path / name / "Tiny"
        foreign.write(folder, "sdar")
        packed.pack_directory(folder, packing, **more)
        return folder

    eight = packed_folder("eight", Packing("gptq", bits=8))
    assert "quantized to 8 bits, which int4 would round again" in refusal(eight, capsys)
    small = packed_folder("small", Packing("gptq", size=8))
    assert "groups of 8 inputs; int4 takes multiples of 16" in refusal(small, capsys)
    mixed = packed_folder("mixed", Packing("gptq"), kept=("v_proj",))
    assert "q_proj.weight is quantized and layers.0.self_attn.v_proj.weight is not" in refusal(mixed, capsys)
    plain = packed_folder("plain", Packing("gptq"))
    graph = refusal(plain, capsys, trt, "--graph-only", "--dialect", "trt")
    assert "int4 of the dialect trt would round layers.0.mlp.down_proj.weight a second time" in graph
    uneven = packed_folder("uneven", Packing("gptq", order=True))
    file = uneven / "model.safetensors"
    tensors = load_file(file)
    for part in ("q", "k", "v"):
        tensors[f"model.layers.0.self_attn.{part}_proj.g_idx"][:] = torch.arange(32) // 20
    save_file(tensors, file, {"format": "pt"})
    assert "groups of other than 16 inputs" in refusal(uneven, capsys)
    tensors["model.layers.0.self_attn.k_proj.g_idx"] = 1 - tensors["model.layers.0.self_attn.k_proj.g_idx"]
    save_file(tensors, file, {"format": "pt"})
    assert "in other groups than the keys or values" in refusal(uneven, capsys)


def test_an_adapter_over_quantized_weights_is_merged_and_refused_for_int4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Tiny"
    stock = foreign.write(folder, "sdar")
    stock.load_state_dict(packed.pack_directory(folder, Packing("gemm")))
    foreign.write_adapter(tmp_path / "lora", stock, r"layers\.0\.self_attn\.q_proj", "sdar", rank=2, alpha=4.0)
    words = ["--adapter", str(tmp_path / "lora")]
    assert "an adapter is merged into quantized weights" in refusal(folder, capsys, export, *words)
    assert export.main(["--ckpt", str(folder), *SIZES, *words, "--out", str(tmp_path / "made.bundle")]) == 0


def test_weights_that_a_directory_left_as_they_were_are_int8(tmp_path: Path) -> None:
    folder = tmp_path / "Tiny"
    foreign.write(folder, "sdar")
    packed.pack_directory(folder, Packing("gptq"), kept=("down_proj",))
    made = tmp_path / "made.bundle"
    assert export.main(["--ckpt", str(folder), *SIZES, "--precision", "int4", "--out", str(made)]) == 0
    kinds = [node.op_type for node in onnx.load(next(made.glob("ort-int4-*.onnx"))).graph.node]
    assert kinds.count("MatMulNBits") == 2 * 4 and kinds.count("DynamicQuantizeMatMul") == 2 + 1
    assert len(find_own_codes(load_directory(folder, SMALL))) == 2 * 6
