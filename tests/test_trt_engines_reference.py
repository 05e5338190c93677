"""A TensorRT engine carries a recorded reference too, and is refused on a machine where it computes something else."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from trt_bundle import BLOCK, BUILD, make_content, make_fake_plan
from trt_student import make_student, plan

from export import trt as command
from export.contract_from_checkpoint import make_export_contract
from export.proof.record import Recording
from export.quantization.stored_weights import replace_by_stored_weights
from export.trt_engines.from_bundle import can_replay_reference
from export.trt_engines.graphs import GraphRecipe, Graphs
from runtime import load, verify
from runtime.bundle import trust_records
from runtime.bundle.reference import Reference, read_reference
from runtime.bundle.store import Bundle, Engine, hash_file, make_content_name, read, write
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import UserError
from runtime.proof.judge import prove
from train.checkpoint import Checkpoint
from train.storage.student_pt import save


def recorded(
    source: Checkpoint, precision: str, folder: Path, dialect: str = "trt", batch: int = 1
) -> tuple[Recording, Reference, OrtBackend]:
    """A reference that was written and read again, and the graph that it is of as ONNX Runtime's CPU runs it."""
    contract = make_export_contract(source, 64, 4)
    graphs = Graphs(source, contract, GraphRecipe(dialect, precision, batch, None))
    [file] = graphs.write(folder)
    engine = Engine("graph", dialect, precision, "any", None, file.name, {}, {})
    made = graphs.record(engine, file, folder, None, None)
    [dense] = [file] if precision in ("fp32", "fp16") else graphs.write_dense(folder)
    return made, read_reference(folder, made.entry, contract), OrtBackend(dense, contract, threads=1)


def scaled(source: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint with one matrix 1.02 times as large."""
    weights: dict[str, torch.Tensor] = {**source.weights}
    weights[name] = 1.02 * weights[name]
    return replace(source, weights=weights)


@pytest.mark.parametrize(
    ("precision", "dialect"),
    [("fp32", "trt"), ("fp16", "plain"), ("int8", "trt"), ("int4", "plain"), ("fp8", "trt"), ("nvfp4", "trt")],
)
def test_a_graph_keeps_the_bounds_of_its_reference_and_a_wrong_one_does_not(
    precision: str, dialect: str, tmp_path: Path
) -> None:
    source = make_student()
    (tmp_path / "wrong").mkdir()
    made, reference, backend = recorded(source, precision, tmp_path, dialect)
    assert made.check.ok, made.check
    checks = prove(backend, reference.forwards, made.entry.bounds)
    assert {check.name for check in checks} >= {"keys", "values", "top_log_prob", "entropy"}
    assert all(check.ok for check in checks), checks
    _, _, other = recorded(scaled(source, "layers.0.self_attn.k_norm.weight"), precision, tmp_path / "wrong", dialect)
    assert not all(check.ok for check in prove(other, reference.forwards, made.entry.bounds))


def test_what_runs_nowhere_here_has_its_precisions_bounds(tmp_path: Path) -> None:
    source = make_student()
    contract = make_export_contract(source, 64)
    graphs = Graphs(source, contract, GraphRecipe("trt", "bf16", 1, None))
    [file] = graphs.write(tmp_path)
    made = graphs.record(Engine("graph", "trt", "bf16", "any", None, file.name, {}, {}), file, tmp_path, 9, None)
    assert made.check.ok and "nothing here runs bf16" in made.check.detail
    assert made.entry.bounds == made.entry.first_load_bounds and 1e-3 <= made.entry.bounds["keys"] < 4e-3
    forwards = read_reference(tmp_path, made.entry, contract).forwards
    assert max(each.forward.input_ids.shape[1] for each in forwards if each.begins) <= 9 + contract.block


@pytest.mark.parametrize("format", ["int8", "int4", "fp8", "nvfp4"])
def test_stored_weights_are_the_layers_matrices_and_within_a_step_of_what_they_were(format: str) -> None:
    source = make_student()
    stored = replace_by_stored_weights(source, format)
    assert stored.weights.keys() == source.weights.keys()
    for name, weight in source.weights.items():
        apart = (stored.weights[name] - weight).abs().max() / weight.abs().max()
        matrix = name.startswith("layers.") and weight.dim() == 2
        assert (0 < apart < 0.2) if matrix else apart == 0, name


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bundle, FakeTensorRT]:
    """A bundle with a graph and an engine of it, on a machine with a GPU, cuda-python and TensorRT."""
    return make_bundle(make_student(), (1, 64), tmp_path, monkeypatch)


def make_bundle(
    source: Checkpoint, prefill: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Bundle, FakeTensorRT]:
    """As `bundle`, of this checkpoint; prefill: the widths that the engine's profile of prefills takes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save(source, tmp_path / "student.pt")
    words = ["--ckpt", str(tmp_path / "student.pt"), "--graph-only", "--dialect", "trt", "--precision", "fp32"]
    assert command.main([*words, "--capacity", "64"]) == 0
    made = read(tmp_path / "student.bundle")
    [graph] = made.engines
    assert graph.reference is not None
    build = replace(BUILD, onnx=graph.model, profiles=((BLOCK, BLOCK), (2 * BLOCK, 2 * BLOCK), prefill))
    (tmp_path / "new.engine").write_bytes(make_content(build))
    digest = hash_file(tmp_path / "new.engine")
    file = (tmp_path / "new.engine").rename(tmp_path / make_content_name("trt-fp32-sm89-64", ".engine", digest))
    trust_records.remember_built(digest)
    engine = replace(graph, name="trt-fp32-sm89-64", target="sm89", model=file.name, build=build)
    files = [file, made.path / graph.model, made.path / graph.reference.file]
    text = made.tokenizer.read_text(encoding="utf-8")
    made = write(made.path, made.contract, engine, files, text, None, made.provenance)
    cuda, plan = FakeCuda(), make_fake_plan(source.build(), made.contract, build, "in_place")
    library = FakeTensorRT(cuda, {make_content(build): plan})
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt", library)  # type: ignore[arg-type]
    return made, library


def test_an_engine_replays_the_reference_of_its_graph(
    bundle: tuple[Bundle, FakeTensorRT], capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = bundle
    assert can_replay_reference(made, made.engines[0], replace(plan("trt"), profiles=((1, 64),)))
    # it takes four tokens at once, and a prompt of this alignment sees itself both ways
    assert not can_replay_reference(made, made.engines[0], plan("trt"))
    assert verify.main([str(made.path), "--engine", "trt", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["engine"] == "trt-fp32-sm89-64" and "Fake 4090" in told["backend"]
    assert told["figures"]["keys"]["value"] < 1e-6 and told["answers"] > 0
    model = load(made.path, engine="trt")
    assert model.proved and not list(Path(made.path).glob("*.tmp"))


@pytest.mark.parametrize("alignment", ["absolute", "end"])
def test_a_reference_wider_than_an_engine_is_replayed_by_chunked_prefill(
    alignment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_student()
    source = replace(source, decoding=replace(source.decoding, alignment=alignment))
    made, _ = make_bundle(source, (1, 2 * BLOCK), tmp_path, monkeypatch)
    engine = made.find_engine("trt")
    assert engine.build is not None and engine.reference is not None
    forwards = read_reference(made.path, engine.reference, made.contract).forwards
    assert max(each.forward.input_ids.shape[1] for each in forwards) > 2 * BLOCK
    assert can_replay_reference(made, engine, replace(plan("trt"), profiles=engine.build.profiles))
    assert verify.main([str(made.path), "--engine", "trt"]) == 0
    assert "[ok] keys" in capsys.readouterr().out and load(made.path, engine="trt").proved


def test_an_engine_that_computes_something_else_on_this_gpu_is_refused(
    bundle: tuple[Bundle, FakeTensorRT], capsys: pytest.CaptureFixture[str]
) -> None:
    made, library = bundle
    [held] = library.plans.values()
    with torch.no_grad():
        held.model.layers[0].self_attn.v_proj.weight *= 1.02
    with pytest.raises(UserError) as refused:
        load(made.path, engine="trt")
    said = str(refused.value)
    assert (
        said.startswith(f"engine trt-fp32-sm89-64 of {made.path} does not compute on this machine") and "values" in said
    )
    assert verify.main([str(made.path), "--engine", "trt"]) == 1
    assert "[x] values" in capsys.readouterr().out
    assert load(made.path, engine="trt", verify="never").proved is False


def test_calibrated_activations_of_a_large_model_have_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_student()
    save(source, tmp_path / "student.pt")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a b", "answer": "a"}) + "\n", encoding="utf-8")
    monkeypatch.setattr("export.trt_engines.graphs.proves_whole", lambda source, parity: False)
    words = ["--ckpt", str(tmp_path / "student.pt"), "--graph-only", "--dialect", "trt", "--precision", "int8-static"]
    assert command.main([*words, "--capacity", "64", "--data", str(data)]) == 0
    [graph] = read(tmp_path / "student.bundle").engines
    assert graph.reference is None
    assert graph.parity["reference"] == "none: nothing bounds calibrated activations by layers"
