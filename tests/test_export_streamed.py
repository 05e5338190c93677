"""Exports that never hold the model: weights read as they are written, int8 and fp16, parity layer by layer."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny
import torch
from foreign import BLOCK, CANVAS
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_export_onnx import student
from test_graph_step import random_weights
from torch import Tensor

from export import onnx as command
from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import write_ort_graph
from export.graph.step_graph import trace
from export.proof.by_layer import check_by_layer
from export.proof.compare import compare
from export.proof.prove import fits_whole
from export.quantization.ort_formats import ORT_FORMATS, choose_formats
from export.quantization.ort_int8 import dequantize, quantize
from runtime import load as load_bundle
from runtime.bundle import store
from runtime.contract import Contract
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort import threads as cores
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.ort.ort_session import load_session
from runtime.errors import NumericalError, UserError
from train.checkpoint import Checkpoint
from train.huggingface.families import Overrides
from train.open_checkpoint import load
from train.storage.student_pt import save
from train.torch_backend import TorchBackend
from train.transformer.network import ModelConfig

SMALL = Overrides(block=BLOCK, canvas=CANVAS)
ROOT = Path(__file__).parent.parent
SEED, TIED = 5, 3  # the latter of a student whose head is its embedding


@given(st.integers(0, 2**32 - 1), st.sampled_from((0, 1)), st.floats(-40, 36))
def test_int8_lies_within_half_a_scale_of_the_weight(seed: int, axis: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((7, 5)) * np.exp2(exponent)).astype(np.float32)
    weight[(slice(None), 2) if axis else 2] = 0
    values, scale = quantize(weight, axis)
    assert values.dtype == np.int8 and values.shape == weight.shape and scale.shape == (weight.shape[axis],)
    channels = scale if axis else scale[:, None]
    assert (np.abs(dequantize(values, scale, axis) - weight) <= channels * 0.5001).all()
    assert scale[2] == 1 and np.abs(values).max(1 - axis).tolist() == [127 * (i != 2) for i in range(len(scale))]


def test_a_table_is_quantized_in_slices_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(SEED).standard_normal((50, 6)).astype(np.float32)
    whole = [quantize(weight, axis) for axis in (0, 1)]
    monkeypatch.setattr("export.quantization.ort_int8.ROWS", 7)
    for axis in (0, 1):
        for ours, theirs in zip(quantize(weight, axis), whole[axis], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_that_are_no_numbers_have_no_int8() -> None:
    for odd in (np.nan, np.inf, -np.inf):
        with pytest.raises(NumericalError, match="not a finite number"):
            quantize(np.array([[1, odd], [2, 3]], np.float32), 0)


def test_a_directory_is_exported_as_if_it_were_in_memory(tmp_path: Path) -> None:
    """Shards, bf16 and an adapter, of which nothing is read before it is written."""
    stock = foreign.write(tmp_path / "base", "dream")
    stored = foreign.rename_tensors(foreign.FOREIGN["dream"], stock)
    save_file({name: tensor.bfloat16() for name, tensor in stored.items()}, tmp_path / "base" / "model.safetensors")
    foreign.shard(tmp_path / "base")
    foreign.write_adapter(tmp_path / "lora", stock, "q_proj|down_proj", "dream", 4, 6.0)
    source = load(tmp_path / "base", replace(SMALL, adapter=tmp_path / "lora", attention="block_causal"))
    files = written(source, tmp_path / "streamed", external=1000)
    held = replace(source, weights=dict(source.weights))
    assert [file.read_bytes() for file in written(held, tmp_path / "held", external=1000)] == [
        file.read_bytes() for file in files
    ]
    model = onnx.load(files[0])
    packed = next(t for t in model.graph.initializer if t.name == "layers.1.self_attn.qkv_proj.weight")
    parts = [held.weights[f"layers.1.self_attn.{part}_proj.weight"].float() for part in "qkv"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(packed), torch.cat(parts).T.numpy())
    (tmp_path / "base" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors is truncated or damaged"):
        dict(source.weights)


def written(source: Checkpoint, folder: Path, precision: str = "fp32", external: int = 1 << 26) -> list[Path]:
    folder.mkdir()
    return write_ort_graph(source, make_export_contract(source, None), precision, folder, external)


class Counted(Mapping[str, Tensor]):
    """Weights that remember how often each was read and how many bytes of them lived at once at the most."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights, self.reads, self.live, self.most = weights, dict.fromkeys(weights, 0), 0, 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.weights[name].bfloat16()
        self.reads[name] += 1
        self._alive(tensor.nbytes)
        weakref.finalize(tensor, self._alive, -tensor.nbytes)
        return tensor

    def _alive(self, change: int) -> None:
        self.live += change
        self.most = max(self.most, self.live)

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@pytest.mark.parametrize("precision", ORT_FORMATS)
def test_each_weight_is_read_once_and_none_is_kept(precision: str, tmp_path: Path) -> None:
    shape = ModelConfig(96, 160, 2, 4, 2, 24, 128, tied=False)  # no tensor so small that it is not streamed
    counted = Counted(random_weights(shape, SEED))
    written(replace(tiny.checkpoint(SEED), model=shape, weights=counted), tmp_path / "out", precision, external=1000)
    assert set(counted.reads.values()) == {1}
    assert counted.live == 0
    assert counted.most == 2 * 160 * (96 + 48 + 48)  # queries, keys and values, which are packed; bytes in bf16


PEAK = '''
import sys
from pathlib import Path

def peak():
    """KiB. Not ru_maxrss: a process inherits that of the one that started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])
'''

GROWTH = (
    PEAK
    + """
import onnx_ir as ir
from export.graph.graph_writer import write_graph
from export.graph.lazy_weights import attach
from train.huggingface.weights import DirectoryWeights, read_header

there = {stored.name: stored for stored in read_header(Path(sys.argv[1]))}
shapes = {name: (stored.shape[1], stored.shape[0]) for name, stored in there.items()}
names = {name: name.replace(".mlp.", ".") for name in there}
values = [ir.val(names[name], ir.DataType.FLOAT, shapes[name]) for name in there]
nodes = [ir.node("Identity", [value]) for value in values]
graph = ir.Graph([], [node.outputs[0] for node in nodes], nodes=nodes, initializers=values, opset_imports={"": 23})
model = ir.Model(graph, ir_version=10)
attach(model, list(names.values()), DirectoryWeights({name: stored.read for name, stored in there.items()}, {}))
before = peak()
write_graph(model, Path(sys.argv[2]), "ort-fp32")
print(peak() - before)
"""
)


@pytest.mark.long
def test_memory_grows_by_a_few_tensors_and_not_by_the_model(tmp_path: Path) -> None:
    """96 MB of weights in bf16, written as 192 MB in fp32, 8 MB each."""
    one = torch.full((2048, 1024), 0.5, dtype=torch.bfloat16)
    save_file({f"layers.{i}.mlp.up_proj.weight": one.clone() for i in range(24)}, tmp_path / "model.safetensors")
    (tmp_path / "out").mkdir()
    words = [sys.executable, "-c", GROWTH, str(tmp_path / "model.safetensors"), str(tmp_path / "out")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) > 190e6
    assert int(done.stdout) * 1024 < 60e6, done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student.pt and a bundle of it in fp16, proved whole, and int8, proved layer by layer."""
    folder = tmp_path_factory.mktemp("made")
    save(student(TIED), folder / "student.pt")
    for words in (["fp16"], ["int8", "--parity", "layers"]):
        assert command.main(["--ckpt", str(folder / "student.pt"), "--precision", *words]) == 0
    return folder


def test_engines_of_three_precisions_are_held_by_one_bundle(made: Path) -> None:
    read = store.read(made / "student.bundle")
    assert [(engine.name, engine.precision) for engine in read.engines] == [("ort-fp16", "fp16"), ("ort-int8", "int8")]
    assert read.find_engine("ort-fp16").parity.keys() == {"graph", "steps", "answers", "reference"}
    assert read.find_engine("ort-int8").parity.keys() == {"graph", "embedding", "layers", "head", "reference"}
    assert all(engine.reference for engine in read.engines)
    assert "layer by layer, 2 of them" in read.find_engine("ort-int8").parity["layers"]
    assert sorted(file.name for file in made.iterdir()) == ["student.bundle", "student.pt"]


def test_a_small_int8_engine_takes_one_thread_and_others_the_cores(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "count_physical_cores", lambda: 3)
    path = made / "student.bundle"
    threads = {name: load_bundle(path, engine=name).backend.threads for name in ("ort-fp16", "ort-int8")}
    assert threads == {"ort-fp16": 3, "ort-int8": 1} and cores.choose_threads("int8", cores.LITTLE) == 3
    assert load_bundle(path, engine="ort-int8", threads=2).backend.threads == 2


@pytest.mark.parametrize(("precision", "bound", "cache"), [("fp16", 0.02, "float16"), ("int8", 0.5, "float32")])
def test_fewer_bits_stay_within_their_bound_of_pytorch(precision: str, bound: float, cache: str, made: Path) -> None:
    """Bounds for these weights: the export's own are for any model's."""
    read, rng = store.read(made / "student.bundle"), np.random.default_rng(SEED)
    engine = OrtBackend(read.path / read.find_engine(f"ort-{precision}").model, read.contract, threads=1)
    requests = [Request(rng.integers(3, read.contract.vocab, length), DecodeOptions(8)) for length in (1, 4, 9)]
    *_, found = compare(TorchBackend(student(TIED).build(), read.contract), engine, requests, separate=1)
    assert engine.cache.dtype == cache
    assert 0 < found.distance.log_prob < bound and found.distance.tokens <= found.distance.rows // 20, found.distance
    model = onnx.load(read.path / read.find_engine(f"ort-{precision}").model)
    matrices = [t for t in model.graph.initializer if len(t.dims) == 2 and t.name not in ("cos", "sin")]
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8
    assert {matrix.data_type for matrix in matrices} == {kind}
    assert sum(matrix.dims[0] == read.contract.vocab for matrix in matrices) == 1  # the head's is the embedding's, tied


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Contract, list[Path]]:
    """A model with a head of its own, written with its weights in a file of their own."""
    shape = ModelConfig(tiny.VOCAB, 48, 3, 4, 2, 16, 64, qk_norm=True, qkv_bias=True, tied=False)
    source = replace(tiny.checkpoint(SEED), model=shape, weights=random_weights(shape, SEED))
    contract = make_export_contract(source, None)
    return source, contract, write_ort_graph(source, contract, "fp32", tmp_path_factory.mktemp("apart"), 1000)


@pytest.mark.parametrize(
    ("tensor", "check"),
    [
        ("", ""), ("embedding", "embedding"), ("layers.1.down_proj.weight", "layers"),
        ("layers.2.self_attn.qkv_proj.weight", "layers"), ("layers.0.self_attn.qkv_proj.weight", "layers"),
        ("head", "head"),
    ],
)  # fmt: skip
def test_a_damaged_weight_fails_the_check_of_its_part_alone(
    tensor: str, check: str, apart: tuple[Checkpoint, Contract, list[Path]]
) -> None:
    source, contract, (graph, data) = apart
    model, sound = onnx.load(graph, load_external_data=False), data.read_bytes()
    entries = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}
    if tensor:
        place = int(entries[tensor]["offset"])
        data.write_bytes(sound[:place] + np.full(8, 0.5, np.float32).tobytes() + sound[place + 32 :])
    try:
        found = list(check_by_layer(source, contract, graph, "fp32"))
    finally:
        data.write_bytes(sound)
    assert [each.name for each in found] == ["embedding", "layers", "head"]
    assert [each.name for each in found if not each.ok] == [check] * bool(check), [str(each) for each in found]
    if check == "layers" and "down_proj" in tensor:
        assert "(layer 1)" in found[1].detail
    assert sorted(file.name for file in graph.parent.iterdir()) == sorted([graph.name, data.name])


SESSION = (
    PEAK
    + """
from runtime.engines.ort.ort_session import load_session

before = peak()
load_session(Path(sys.argv[1]), 1, prepacking=sys.argv[2] == "1")
print(peak() - before)
"""
)


@pytest.mark.long
def test_a_part_in_fp16_is_in_memory_twice_and_not_three_times(tmp_path: Path) -> None:
    """64 MB of weights in fp16, which ONNX Runtime holds in fp32 too, 128 MB; a packed copy of these is left out."""
    weight = ir.tensor(np.full((1024, 32768), 0.5, np.float16), name="w")
    x, w = ir.val("x", ir.DataType.FLOAT16, (1, 1024)), ir.val("w", const_value=weight)
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 23})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape((1, 32768))
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "m.onnx", external_data="m.data")
    peaks = []
    for packed in "01":
        words = [sys.executable, "-c", SESSION, str(tmp_path / "m.onnx"), packed]
        peaks.append(int(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout) * 1024)
    assert peaks[0] < 215e6 and peaks[0] < peaks[1] - 40e6, peaks


@pytest.mark.parametrize(("precision", "packed"), [("fp16", False), ("int8", True)])
def test_only_integer_products_are_proved_with_packed_weights(
    precision: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integer products have other kernels without; of fp16 the packed fp32 copies would only take memory."""
    seen = list[bool]()

    def loaded(*args: Any, prepacking: bool, **keywords: Any) -> Any:
        seen.append(prepacking)
        return load_session(*args, prepacking=prepacking, **keywords)

    monkeypatch.setattr("export.proof.by_layer.load_session", loaded)
    source = tiny.checkpoint(SEED)
    contract = make_export_contract(source, None)
    [graph, *_] = write_ort_graph(source, contract, precision, tmp_path)
    assert all(each.ok for each in check_by_layer(source, contract, graph, precision, choose_formats("ort", precision)))
    assert seen == [packed] * (contract.layers + 2)


def test_a_model_without_a_cache_is_proved_layer_by_layer_too(tmp_path: Path) -> None:
    source = tiny.checkpoint(SEED, attention="full")
    files = written(source, tmp_path / "out")
    found = list(check_by_layer(source, make_export_contract(source, None), files[0], "fp32"))
    assert [each.ok for each in found] == [True] * 3 and "layer by layer, 2 of them" in found[1].detail


@pytest.mark.long
@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_other_dialects_are_proved_layer_by_layer_too(dialect: str, tmp_path: Path) -> None:
    source = tiny.checkpoint(SEED)
    ir.save(trace(source, 40, dialect=dialect), tmp_path / "graph.onnx")
    found = list(check_by_layer(source, make_export_contract(source, 40), tmp_path / "graph.onnx", "fp32"))
    assert [each.ok for each in found] == [True] * 3, [str(each) for each in found]


def test_only_small_models_are_proved_whole() -> None:
    assert fits_whole(student().model)
    assert not fits_whole(ModelConfig(151936, 1024, 28, 16, 8, 128, 3072, qk_norm=True))  # Qwen3-0.6B: 2.4 GB each


def test_numbers_that_fp16_cannot_hold_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = student()
    source.weights["layers.1.mlp.up_proj.weight"][3, 4] = 7e4
    save(source, tmp_path / "student.pt")
    assert command.main(["--ckpt", str(tmp_path / "student.pt"), "--precision", "fp16"]) == 1
    told = "error: layers.1.up_proj.weight has numbers up to 70000, more than fp16 holds; export fp32, int8 or int4\n"
    assert capsys.readouterr().err == told
    assert os.listdir(tmp_path) == ["student.pt"]


def test_a_place_that_is_no_bundles_is_told_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = student()
    save(source, tmp_path / "sound.pt")
    assert command.main(["--ckpt", str(tmp_path / "sound.pt"), "--capacity", "64"]) == 0
    before = (tmp_path / "sound.bundle" / "manifest.json").read_bytes()
    again = ["--ckpt", str(tmp_path / "sound.pt"), "--precision", "fp16"]
    assert command.main([*again, "--capacity", "32"]) == 2
    assert "holds ort-fp32 with capacity 64, but ort-fp16 has 32" in capsys.readouterr().err
    source.weights["layers.1.mlp.up_proj.weight"][3, 4] = 7e4  # which fails as it is written, with exit code 1
    save(source, tmp_path / "student.pt")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    words = ["--ckpt", str(tmp_path / "student.pt"), "--precision", "fp16", "--out"]
    for out, said in (("file", "file is a file"), ("folder", "folder of other files (notes.txt)")):
        assert command.main([*words, str(tmp_path / out)]) == 2
        assert said in capsys.readouterr().err
    assert command.main([*words, str(tmp_path / "sound.bundle")]) == 1
    assert (tmp_path / "sound.bundle" / "manifest.json").read_bytes() == before
    assert load_bundle(tmp_path / "sound.bundle").generate("hi", max_new_tokens=4).result.token_ids
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "sound.bundle", "sound.pt", "student.pt"]
