"""GPTQ and AWQ directories: read as the weights that they stand for in each layout, and others refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import packed
import pytest
import torch
from packed import Packing
from safetensors.torch import load_file, save_file
from test_huggingface_reader import SMALL, apart
from torch import Tensor, nn

from runtime.errors import UserError
from train.huggingface import directory_writer
from train.huggingface.packed_weights import PackedWeight, read_packed_weight
from train.huggingface.quantization_config import Scheme, find_scheme
from train.huggingface.reader import load_directory
from train.huggingface.stored_tensor import StoredTensor, read_header
from train.huggingface.weights import DirectoryWeights

LIBRARIES = Path(__file__).parent / "golden/quantized/packed_by_libraries.safetensors"
LIBRARY = {  # of each weight there, its layout, bits, group size and whether its inputs are in another order
    "gptq4": ("gptq", 4, 32, False), "gptq4_order": ("gptq", 4, 32, True), "gptq4_sym": ("gptq", 4, 32, False),
    "gptq2": ("gptq", 2, 32, False), "gptq3": ("gptq", 3, 32, False), "gptq3_order": ("gptq", 3, 32, True),
    "gptq8": ("gptq", 8, 32, False), "awq_gemm": ("gemm", 4, 32, False), "awq_gemv": ("gemv", 4, 32, False),
    "awq_gemv64": ("gemv", 4, 64, False),
}  # fmt: skip
PACKINGS = {
    "gptq": Packing("gptq"), "gptq, act-order": Packing("gptq", order=True),
    "gptq, symmetric": Packing("gptq", symmetric=True), "gptq, one group": Packing("gptq", size=-1),
    "gptq, 2 bits": Packing("gptq", bits=2), "gptq, 3 bits": Packing("gptq", bits=3),
    "gptq, 8 bits": Packing("gptq", bits=8), "gptq_v2": Packing("gptq_v2", least=0),
    "gptq_v2, act-order": Packing("gptq_v2", least=0, order=True),
    "gptq, by GPTQModel": Packing("gptq", more={"meta": {"quantizer": ["gptqmodel:2.2.0"]}}),
    "awq, gemm": Packing("gemm", least=0), "awq, gemv": Packing("gemv", least=0),
    "awq, gemv of 32": Packing("gemv", size=32, least=0),
}  # fmt: skip


@pytest.mark.parametrize("name", LIBRARY)
def test_weights_that_the_libraries_packed_are_what_they_packed(name: str) -> None:
    layout, bits, size, order = LIBRARY[name]
    golden = load_file(LIBRARIES)
    parts = {s.name.rpartition(".")[2]: s for s in read_header(LIBRARIES) if s.name.startswith(f"{name}.")}
    scheme = Scheme(layout, bits, size, order, name.endswith("sym"), False)
    dense = golden[f"{name}.dense"]
    found = PackedWeight(name, tuple(dense.shape), scheme, parts).unpack()
    assert torch.equal(found.values, golden[f"{name}.codes"]) and torch.equal(found.zeros, golden[f"{name}.zeros"])
    torch.testing.assert_close(found.dequantize(), dense, rtol=0, atol=1e-6)
    if order:
        assert not torch.equal(found.group, found.group.sort().values)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_packer_of_these_tests_packs_as_the_libraries_do(name: str) -> None:
    layout, bits, size, order = LIBRARY[name]
    golden = {k.rpartition(".")[2]: v for k, v in load_file(LIBRARIES).items() if k.startswith(f"{name}.")}
    inputs, groups = golden["codes"].shape[1], golden["zeros"].shape[1]
    scales = golden["scales"] if layout == "gemv" else golden["scales"].T
    group = golden.get("g_idx", torch.arange(inputs) // size).numpy().astype(np.int64)
    whole = [golden[part].numpy().astype(np.int64) for part in ("codes", "zeros")]
    made = packed.pack(packed.Made(*whole, scales[:, :groups].numpy(), group), Packing(layout, bits, size, order))
    assert made and all(torch.equal(tensor, golden[part]) for part, tensor in made.items())


def packed_directory(folder: Path, packing: Packing, **more: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """Writes a packed SDAR directory; returns the stock class with the weights that it stands for, and those."""
    stock = foreign.write(folder, "sdar", seed=3)
    dense = packed.pack_directory(folder, packing, **more)
    stock.load_state_dict(dense)
    return stock, dense


@pytest.mark.parametrize("name", PACKINGS)
def test_a_packed_directory_is_read_as_the_weights_it_stands_for(name: str, tmp_path: Path) -> None:
    wide = ("mlp",) if PACKINGS[name].bits == 3 else ()  # 32 numbers lie in three words, and these are 48 wide
    stock, dense = packed_directory(tmp_path, PACKINGS[name], kept=wide)
    weights = load_directory(tmp_path, SMALL).weights
    assert isinstance(weights, DirectoryWeights) and len(weights.packed) == (8 if wide else 14)
    for stored, weight in dense.items():
        torch.testing.assert_close(weights[stored.removeprefix("model.")].float(), weight, rtol=0, atol=1e-6)
    assert apart(tmp_path, stock) <= 1e-5


WRONG: dict[str, tuple[Packing, str, Any]] = {  # what is read wrongly, and with what in its place
    "v1 as v2": (Packing("gptq"), "scheme", {"layout": "gptq_v2"}),
    "v2 as v1": (Packing("gptq_v2"), "scheme", {"layout": "gptq", "carries": True}),
    "g_idx ignored": (Packing("gptq", order=True), "parts", None),
    "nibbles in sequence": (Packing("gemm"), "order", tuple(range(8))),
    "nibbles as they are packed": (Packing("gemm"), "order", (0, 2, 4, 6, 1, 3, 5, 7)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reading_changes_logits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing, kind, other = WRONG[name]
    stock, _ = packed_directory(tmp_path, packing)
    assert apart(tmp_path, stock) <= 1e-5
    whole = PackedWeight.unpack
    if kind == "order":
        monkeypatch.setattr("train.huggingface.packed_codes.NIBBLES", other)
    elif kind == "scheme":
        wrong = lambda self: whole(replace(self, scheme=replace(self.scheme, **other)))  # noqa: E731
        monkeypatch.setattr(PackedWeight, "unpack", wrong)
    else:
        sequence = lambda self: torch.arange(self.shape[1]) // self.group_size  # noqa: E731
        monkeypatch.setattr(PackedWeight, "group", sequence)
    assert apart(tmp_path, stock) > 1e-2


def test_zero_points_that_borrow_from_each_other_are_read_if_gptqmodel_wrote_them(tmp_path: Path) -> None:
    """GPTQModel subtracts one from whole words, so that a zero point of 0 takes one from the next."""
    packing = Packing("gptq_v2", least=0)
    stock, _ = packed_directory(tmp_path, packing)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("qzeros")]:
        less = tensors[name].numpy().view(np.uint32) - np.uint32(0x11111111)  # modulo 2^32
        tensors[name] = torch.from_numpy(less.view(np.int32))
    save_file(tensors, file, {"format": "pt"})
    config = packing.config() | {"checkpoint_format": "gptq"}
    foreign.change_config(tmp_path, quantization_config=config)
    with pytest.raises(UserError, match="zero points of 15 in GPTQ's version 1, which is 0 to some libraries and 16"):
        load_directory(tmp_path, SMALL).build()
    foreign.change_config(tmp_path, quantization_config=config | {"meta": {"quantizer": ["gptqmodel:4.0.0"]}})
    assert apart(tmp_path, stock) <= 1e-5


def test_a_symmetric_directory_of_another_version_than_it_says_is_refused(tmp_path: Path) -> None:
    packed_directory(tmp_path, Packing("gptq", symmetric=True))
    config = Packing("gptq", symmetric=True).config()
    foreign.change_config(tmp_path, quantization_config=config | {"checkpoint_format": "gptq_v2"})
    with pytest.raises(UserError, match="has the zero point 7 by its layout gptq_v2, but quantization_config says sym"):
        load_directory(tmp_path, SMALL).build()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, "quantized by bitsandbytes, which is not supported: its blocks"),
    "bitsandbytes, unnamed": ({"load_in_4bit": True, "quant_method": None}, "quantized by bitsandbytes"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "quantized by compressed-tensors"),
    "fp8": ({"quant_method": "fp8"}, "quantized by fp8, which is not supported: its weights are 8-bit floats"),
    "hqq": ({"quant_method": "hqq"}, "quantized by hqq, which is not supported: its zero points"),
    "unknown": ({"quant_method": "sinq"}, "quantized by sinq, which is not supported; give a GPTQ or AWQ checkpoint"),
    "unnamed": ({"quant_method": None}, "quantized by a method that its quantization_config does not name"),
    "marlin": ({"checkpoint_format": "marlin"}, "gptq weights in the layout marlin, which is not supported; gptq and"),
    "marlin, by its flag": ({"is_marlin_format": True}, "the layout marlin"),
    "planar": ({"checkpoint_format": "gptq_p"}, "the layout gptq_p"),
    "two layouts": ({"format": "gptq_v2"}, r"more than one layout in its quantization_config \(gptq, gptq_v2\)"),
    "gemv_fast": ({"quant_method": "awq", "checkpoint_format": "gemv_fast"}, "the layout gemv_fast"),
    "llm-awq": ({"quant_method": "awq", "backend": "llm-awq"}, "the layout llm-awq"),
    "bits": ({"bits": 5}, "gptq weights of 5 bits; expected one of 2, 3, 4, 8"),
    "awq of 8 bits": ({"quant_method": "awq", "checkpoint_format": "gemm", "bits": 8}, "awq weights of 8 bits"),
    "group size": ({"group_size": 0}, "group_size 0"),
    "mixed": ({"dynamic": {"+:.*": {"bits": 8}}}, "bits or groups of their own for some modules"),
    "adapter": ({"adapter": {"name": "lora"}}, "has adapter in its quantization_config"),
    "words": ({"pack_dtype": "int16"}, "words of int16"),
    "another group size": ({"group_size": 32}, r"by its config \(gptq, 4 bits, groups of 32\) it should be"),
    "act-order untold": ({"desc_act": False}, "but quantization_config says desc_act false"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name_in_one_line(name: str, tmp_path: Path) -> None:
    packing = Packing("gptq", order=True)
    packed_directory(tmp_path, packing)
    changes, message = REFUSED[name]
    config = {key: value for key, value in (packing.config() | changes).items() if value is not None}
    foreign.change_config(tmp_path, quantization_config=config)
    with pytest.raises(UserError, match=message) as found:
        load_directory(tmp_path, SMALL).build()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("layout", "bits", "shape"),
    [("gptq", 4, (32, 20)), ("gptq", 3, (32, 48)), ("gptq", 4, (20, 32)), ("gemm", 4, (20, 32)), ("gemv", 4, (32, 20))],
)
def test_a_weight_that_does_not_fill_words_is_refused(layout: str, bits: int, shape: tuple[int, int]) -> None:
    stored = [StoredTensor(Path("x.safetensors"), "m.qweight", (2, 32), "I32")]
    with pytest.raises(UserError, match=r"^x.safetensors: m.weight is \[.*do not fill whole words") as found:
        read_packed_weight("m.weight", shape, Scheme(layout, bits, 16, False, False, False), stored)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("meta", ["gptqmodel", ["gptqmodel"], None, {}])
def test_what_is_no_object_names_no_quantizer(meta: Any) -> None:
    found = find_scheme({"quantization_config": Packing("gptq").config() | {"meta": meta}}, Path("config.json"))
    assert found is not None and not found.carries


def test_tensors_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    file, packing = tmp_path / "model.safetensors", Packing("gptq", order=True)
    packed_directory(tmp_path, packing)
    whole, module = load_file(file), "model.layers.1.self_attn.o_proj"
    config = json.loads((tmp_path / "config.json").read_text())

    def refusal(**changes: Tensor | None) -> str:
        tensors = whole | {f"{module}.{part}": tensor for part, tensor in changes.items()}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})
        with pytest.raises(UserError) as found:
            load_directory(tmp_path, SMALL).build()
        return str(found.value)

    assert "without g_idx" in refusal(g_idx=None)
    assert "without qzeros" in refusal(qzeros=None)
    assert "extra tensor model.layers.1.self_attn.o_proj.bias" in refusal(bias=torch.ones(32))
    assert "both quantized and unquantized" in refusal(weight=torch.ones(32, 64))
    assert "is F32; expected I32" in refusal(qweight=whole[f"{module}.qweight"].float())
    assert "groups outside 0 to 3" in refusal(g_idx=whole[f"{module}.g_idx"] + 1)
    save_file(whole | {f"{module}.bias": torch.zeros(32)}, file, {"format": "pt"})  # as older libraries write it
    load_directory(tmp_path, SMALL).build()
    foreign.change_config(tmp_path, quantization_config=None)
    with pytest.raises(UserError, match=r"but config\.json has no quantization_config"):
        load_directory(tmp_path, SMALL)
    foreign.write(tmp_path, "sdar")
    foreign.change_config(tmp_path, quantization_config=config["quantization_config"])
    with pytest.raises(UserError, match="no quantized weights; remove it"):
        load_directory(tmp_path, SMALL)


def test_a_student_of_a_packed_teacher_is_written_with_plain_weights(tmp_path: Path) -> None:
    stock, _ = packed_directory(tmp_path / "teacher", Packing("gemm"))
    read, out = load_directory(tmp_path / "teacher", SMALL), tmp_path / "student"
    out.mkdir()
    directory_writer.write_directory(out, read, tmp_path / "teacher", SMALL, torch.float32)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert apart(out, stock) <= 1e-5
