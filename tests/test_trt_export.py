"""TensorRT engines built without a GPU, by TensorRT for RTX: networks, engines, bundles, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import tiny
import torch
from fake_cuda import FakeCuda

pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT for RTX: pip install 'blockstep[rtx]'")

from export import parity, trt_plan, verify
from export import trt as command
from export import trt_targets as targets
from export.graph import trace
from export.onnx import exported_contract
from export.qdq import products, quantise_weights
from export.store import store
from export.trt_add import Shared, missing
from export.trt_build import Settings, build, configuration, overheard, parse, profiles_for
from export.trt_from_bundle import graphs
from export.trt_from_checkpoint import beside
from export.trt_graph import Graphs, Recipe
from export.trt_network import kind, layers, without_unit_scales
from export.trt_plan import Asked, Plan, check_network
from export.trt_report import Report
from export.trt_targets import Library, libraries
from runtime import generate as run
from runtime import memory
from runtime.bundle import Engine, read, sha256
from runtime.contract import Contract
from runtime.cuda import Cuda, load_cuda
from runtime.errors import DeviceError, UserError
from runtime.trt_backend import open_engines
from train.checkpoint import Checkpoint, load, save
from train.model import Model, ModelConfig, initialise

ROOT = Path(__file__).parent.parent
SEED = 5
LIBRARY = Library("rtx", "1", (75, 80, 86, 89, 120, 121))


def student(**changes: Any) -> Checkpoint:
    """A tiny checkpoint with heads of 64, for which TensorRT has fused attention."""
    source = tiny.checkpoint(SEED)
    own = {"vocab": source.read_tokenizer().get_vocab_size(), "qk_norm": True, **changes}
    shape = ModelConfig(**{"width": 64, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 64, "ffn": 128, **own})
    weights = initialise(Model(shape), SEED).state_dict()
    return replace(source, model=shape, weights={name: 3 * weight for name, weight in weights.items()})


def graph(folder: Path, source: Checkpoint, dialect: str = "trt", precision: str = "fp16") -> tuple[Path, Contract]:
    contract = exported_contract(source, 64)
    return Graphs(source, contract, Recipe(dialect, precision, 1, None)).write(folder)[0], contract


def plan(dialect: str) -> Plan:
    return Plan(Asked(dialect, "fp16", 64, 1, "float16", {}), ((4, 4),), "sm89", None, LIBRARY, Settings("rtx", (89,)))


@pytest.fixture(scope="module", autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student.pt and a bundle with one engine; copied before a test changes it."""
    folder = tmp_path_factory.mktemp("made")
    save(student(), folder / "student.pt")
    assert command.main(["--ckpt", str(folder / "student.pt"), "--compute-capability", "86", "89", "120"]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def again(folder: Path, *options: str) -> list[str]:
    return ["--ckpt", str(folder / "student.pt"), "--compute-capability", "86", "89", "120", *options]


def only(folder: Path) -> Engine:
    (engine,) = read(folder / "student.bundle").engines
    return engine


@pytest.mark.parametrize("dialect", ["trt", "plain"])
def test_the_sample_student_builds_for_three_gpus(dialect: str, tmp_path: Path) -> None:
    source = load(ROOT / "samples" / "student.pt")
    contract = exported_contract(source, 128)
    model = Graphs(source, contract, Recipe(dialect, "fp16", 1, None)).write(tmp_path)[0]
    made = build(model, contract, profiles_for(contract, 128), Settings("rtx", (86, 89, 120)))
    assert not made.decomposed and len(made.content) > model.stat().st_size  # the weights are in it
    fused = source.model.layers if dialect == "trt" else 0
    network = made.network
    assert (network.attentions, network.masked, network.updates) == (fused, fused, 2 * fused)
    assert network.strongly_typed and (network.batch, network.dtype, network.capacity) == (1, "float16", 128)
    assert check_network(plan(dialect), network, source.model.layers, full=False) is None


def graph_of(folder: Path) -> Path:
    """The graph in a bundle."""
    build = only(folder).build
    assert build is not None
    return folder / "student.bundle" / build.onnx


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


def test_a_graph_with_a_length_in_place_of_the_mask_fails_the_check(copy: Path) -> None:
    file = graph_of(copy)
    assert check_network(plan("trt"), parse(file, "rtx"), 1, full=False) is None
    network = parse(without_masks(file), "rtx")  # parsed without a complaint, which is the trap
    assert check_network(plan("trt"), network, 1, full=False) == "0 masked in the network, expected 1"


def attention_inputs(network: Any) -> list[list[str]]:
    """For each attention, the kinds of layers that its queries, keys and values come from."""
    makers = {layer.get_output(i).name: kind(layer) for layer in layers(network) for i in range(layer.num_outputs)}
    return [
        [makers[layer.get_input(i).name] for i in range(3)]
        for layer in layers(network)
        if kind(layer) == "ATTENTION_INPUT"
    ]


def test_attention_reads_the_cache_itself_and_not_its_product_with_one(copy: Path) -> None:
    trt, polygraphy = libraries("rtx")
    with overheard():
        _, network, _ = polygraphy.backend.trt.network_from_onnx_path(str(graph_of(copy)), strongly_typed=True)
        assert attention_inputs(network) == [["ELEMENTWISE", "ELEMENTWISE", "KV_CACHE_UPDATE"]]  # the parser's
        without_unit_scales(trt, network)
    assert attention_inputs(network) == [["CAST", "KV_CACHE_UPDATE", "KV_CACHE_UPDATE"]]


def test_what_the_standard_builder_is_told_reaches_its_configuration(copy: Path) -> None:
    """The library for RTX has the same interface, the level of hardware compatibility aside."""
    trt, polygraphy = libraries("rtx")
    settings = Settings("tensorrt", (), 64, 2, True, True, copy / "none.cache")
    seen: list[str] = []
    with overheard():
        parts = polygraphy.backend.trt.network_from_onnx_path(str(graph_of(copy)), strongly_typed=True)
        create = configuration(trt, settings, ((4, 4), (1, 64)), read(copy / "student.bundle").contract, parts[1],
            lambda phase, done, steps: seen.append(f"{phase} {done} of {steps}"))  # fmt: skip
        made = create(*parts[:2])
    assert (made.builder_optimization_level, made.num_optimization_profiles) == (2, 2)
    assert made.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    assert made.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    made.progress_monitor.phase_start("Building", None, 2)
    assert made.progress_monitor.step_complete("Building", 0)
    made.progress_monitor.phase_finish("Building")
    assert seen == ["Building 0 of 2", "Building 1 of 2", "Building 2 of 2"]


def test_an_engine_of_the_standard_library_is_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    library, asked = Library("tensorrt", "10.16.1", ()), Asked("trt", "fp16", 64, 1, "float16", {})
    cuda = FakeCuda()
    monkeypatch.setattr(trt_plan, "load_cuda", lambda: Cuda(cuda))

    def plan_for(*options: str, precision: str = "fp16") -> Plan:
        args = command.options(["--ckpt", "student.pt", *options])
        return trt_plan.planned(replace(asked, precision=precision), tiny.contract(), args, library)

    mine = plan_for()
    assert (mine.target, mine.device, mine.stem()) == ("sm89", "Fake 4090", "trt-fp16-sm89-64")
    anywhere = plan_for("--hardware-compatibility", "--version-compatible", "--timing-cache", "x")
    assert (anywhere.target, anywhere.device, anywhere.stem()) == ("sm80+", None, "trt-fp16-sm80plus-64")
    assert anywhere.build("x.onnx").version_compatible and anywhere.settings.timing_cache == Path("x")
    with pytest.raises(UserError, match="fp8 needs a GPU of compute capability 89 or newer, and SM80 is to run it"):
        plan_for("--hardware-compatibility", precision="fp8")
    with pytest.raises(UserError, match="nvfp4 needs a GPU of compute capability 100 or newer, and SM89 is"):
        plan_for(precision="nvfp4")
    with pytest.raises(UserError, match="--compute-capability is for TensorRT for RTX"):
        plan_for("--compute-capability", "89")
    cuda.devices = 0
    with pytest.raises(UserError, match="there is none here; build there with --bundle, or give --flavor rtx"):
        plan_for()


def test_attention_without_a_fused_kernel_is_decomposed_and_told(tmp_path: Path) -> None:
    file, contract = graph(tmp_path, student(), precision="fp32")
    assert build(file, contract, ((4, 4),), Settings("rtx", (89,))).decomposed
    file, contract = graph(tmp_path, student(), precision="bf16")
    made = build(file, contract, ((4, 4), (1, 64)), Settings("rtx", (80, 89)))
    assert not made.decomposed and made.network.dtype == "bfloat16"


def test_what_tensorrt_does_not_take_is_told_in_one_line(copy: Path) -> None:
    file, contract = graph_of(copy), read(copy / "student.bundle").contract
    model = onnx.load(file)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("softcap", 30.0))
    onnx.save(model, file)
    with pytest.raises(DeviceError, match="TensorRT does not build") as told:
        build(file, contract, ((4, 4),), Settings("rtx", (89,)))
    assert "softcap" in str(told.value).lower() and "\n" not in str(told.value)


def test_profiles_are_a_block_two_blocks_and_buckets_of_prefill() -> None:
    contract = tiny.contract(block=32, canvas=96, capacity=1024)
    assert profiles_for(contract, 1024) == ((32, 32), (64, 64), (1, 128), (129, 512), (513, 1024))
    assert profiles_for(contract, 1024, max_prompt=300) == ((32, 32), (64, 64), (1, 128), (129, 332))
    assert profiles_for(contract, 40) == ((32, 32), (1, 40))
    full = tiny.contract(attention="full", canvas=96, block=32)
    assert profiles_for(full, 256) == ((97, 256),)


def test_the_bundle_says_how_its_engine_was_built(made: Path) -> None:
    engine, bundle = only(made), read(made / "student.bundle")
    build = engine.build
    assert build is not None and engine.name == "trt-fp16-rtx-sm86-sm89-sm120-64" and engine.target == "sm86,sm89,sm120"
    assert (build.flavor, build.capacity, build.batch, build.dtype) == ("rtx", 64, 1, "float16")
    assert build.profiles == ((4, 4), (8, 8), (1, 64)) and build.device is None
    assert engine.files.keys() == {engine.model, build.onnx} and engine.model.endswith(".engine")
    assert all(sha256(bundle.path / name) == digest for name, digest in engine.files.items())
    assert memory.was_built(engine.files[engine.model]) and not memory.was_built(engine.files[build.onnx])
    assert engine.parity.keys() == {"graph", "steps", "answers"}
    assert bundle.contract.capacity == 64 and bundle.provenance["checkpoint_sha256"] == sha256(made / "student.pt")


def test_an_engine_that_was_built_here_is_refused_as_any_other(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the file and manifest that a real build wrote; the GPU is a scripted one, or none."""
    path, engine = copy / "student.bundle", only(copy)

    def told(capability: int = 89, trust: bool = False) -> str:
        cuda = Cuda(FakeCuda(capability))
        with pytest.raises(UserError) as error:
            open_engines(read(path), [engine], trust=trust, cuda=cuda)
        return str(error.value)

    assert told(90).startswith(f"{engine.name} was built for sm86,sm89,sm120, here is a GPU of sm90")
    file = path / engine.model
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert f"{engine.model} is damaged" in told() and f"{engine.model} is damaged" in told(trust=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of another machine"))
    assert "was not built on this machine, and an engine is native code" in told()
    if load_cuda().gpu() is None:
        assert run.main([str(path), "a b", "--engine", "trt"]) == 2
        assert "the engine is built; running it needs an NVIDIA driver" in capsys.readouterr().err


def test_nothing_is_built_twice_and_what_differs_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = only(copy)
    file = copy / "student.bundle" / before.model
    assert command.main(again(copy, "--json")) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["engines"] == [{"name": before.name, "built": False}] and told["ok"] and out.count("\n") == 1
    assert err.startswith(f"{before.name}: as it should be, nothing to build\n") and only(copy) == before
    file.write_bytes(b"damaged")
    assert command.main(again(copy, "--max-prompt", "20", "--json")) == 0
    out, err = capsys.readouterr()
    assert "to be built, profiles is ((4, 4), (8, 8), (1, 64)), now ((4, 4), (8, 8), (1, 24)); " in err
    assert f"{before.model} is damaged" in err
    (built,) = json.loads(out)["engines"]
    assert built["built"] and built["bytes"] == (copy / "student.bundle" / built["file"]).stat().st_size
    engine = only(copy)
    assert engine.name == before.name and engine.build is not None and engine.build.profiles[-1] == (1, 24)
    assert not file.exists() and sha256(file.with_name(engine.model)) == engine.files[engine.model]


def test_a_bundle_of_another_checkpoint_is_a_reason_to_build(made: Path) -> None:
    bundle, report = read(made / "student.bundle"), Report(io.StringIO())
    shared = Shared(bundle.path, bundle.contract, "{}", None, {"checkpoint_sha256": "another"})
    assert missing(shared, plan("trt"), report)
    told = report.stream.getvalue()  # type: ignore[attr-defined]
    assert told == "trt-fp16-rtx-sm89-64: to be built, the bundle is of another checkpoint, whose engines go\n"


def test_a_graph_that_is_too_far_from_pytorch_is_not_built(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((copy / "student.bundle").iterdir())
    monkeypatch.setitem(parity.BOUNDS, "fp16", 0.0)
    assert command.main(again(copy, "--max-prompt", "20", "--json")) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert not told["ok"] and told["engines"] == [] and [check["ok"] for check in told["checks"]] == [True, False]
    assert err.endswith(f"what failed was not added to {copy / 'student.bundle'}\n")
    assert sorted((copy / "student.bundle").iterdir()) == before


def test_another_capacity_is_another_engine_of_the_same_bundle(copy: Path) -> None:
    assert command.main(again(copy, "--capacity", "32", "64")) == 0
    engines = read(copy / "student.bundle").engines
    assert sorted(e.build.capacity for e in engines if e.build) == [32, 64]
    there = read(copy / "student.bundle")
    assert there.contract.capacity == 64
    with pytest.raises(UserError, match="was exported with a capacity of 64, 65 is more; give --capacity 64 or less"):
        beside(there, replace(there.contract, capacity=65))
    assert beside(there, replace(there.contract, capacity=32)) == there.contract


def test_a_copied_bundle_is_built_without_torch_and_checkpoint(copy: Path) -> None:
    other = Path(shutil.move(copy / "student.bundle", copy / "device.bundle"))
    heavy = ["torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "ml_dtypes", "safetensors", "tokenizers", "tqdm"]
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy}))\nfrom export.trt import main\nsys.exit(main())"
    line = ["--bundle", str(other), "--compute-capability", "75", "--workspace", "512", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *line], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    old, new = read(other).engines
    assert json.loads(done.stdout)["engines"][0]["name"] == new.name == "trt-fp16-rtx-sm75-64"
    assert old.build is not None and new.build is not None and old.build.onnx == new.build.onnx
    assert memory.was_built(new.files[new.model])


def test_a_graph_alone_is_written_for_another_machine(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--ckpt", str(copy / "student.pt"), "--dialect", "plain", "--graph-only"]
    assert command.main(options) == 0
    engines = read(copy / "student.bundle").engines
    assert [engine.name for engine in engines] == ["trt-fp16-rtx-sm86-sm89-sm120-64", "plain-fp16-64"]
    capsys.readouterr()
    assert run.main([str(copy / "student.bundle"), "a b", "--engine", "plain-fp16-64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "plain-fp16-64"
    bundle = ["--bundle", str(copy / "student.bundle")]
    found = graphs(read(copy / "student.bundle"), ("trt", "plain"), None)
    assert [engine.dialect for engine in found] == ["trt"]
    alone = replace(read(copy / "student.bundle"), engines=(engines[1],))
    assert graphs(alone, ("trt", "plain"), None) == [engines[1]]
    assert command.main([*bundle, "--dialect", "plain", "--compute-capability", "89"]) == 0
    assert [e.name for e in read(copy / "student.bundle").engines][2] == "plain-fp16-rtx-sm89-64"
    assert command.main([*bundle, "--precision", "int8"]) == 2
    assert "has no graph trt or plain int8, it has trt fp16, plain fp16; write it where" in capsys.readouterr().err


def test_verify_compares_an_engines_graph(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"a b {i}", "answer": "c"}) + "\n" for i in range(40)))
    where = [str(made / "student.bundle"), "--ckpt", str(made / "student.pt"), "--data", str(data), "--prompts", "2"]
    assert verify.main([*where, "--engine", only(made).name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompts"] == 2 and 0 < told["max"]["log_prob"] < 0.05
    for changes, why in (({"precision": "bf16"}, "graphs of bf16"), ({"batch": 2}, "batches of 2")):
        engine = only(made)
        assert engine.build is not None
        batch = changes.pop("batch", 1)
        other = replace(engine, **changes, build=replace(engine.build, batch=batch))
        if not verify.has_gpu():
            with pytest.raises(UserError, match=f"ONNX Runtime's CPU does not run {why}; verify it on the GPU"):
                verify.candidate_of(read(made / "student.bundle"), other, trust=False)


Sized = tuple[ir.Model, Contract, int]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Sized:
    """The traced graph of a wider model, its contract, and the size of its fp16 engine."""
    source = student(width=256, ffn=512)
    contract, model = exported_contract(source, 64), trace(source, 64, dialect="trt", dtype=torch.float16)
    return model, contract, engine_size(model.clone(), contract, 89, tmp_path_factory.mktemp("wide"))


def engine_size(model: ir.Model, contract: Contract, target: int, folder: Path) -> int:
    file = store(model, folder, "graph")[0]
    return len(build(file, contract, ((4, 4), (1, 64)), Settings("rtx", (target,))).content)


@pytest.mark.parametrize(("precision", "target"), [("int8", 89), ("int4", 89), ("fp8", 89), ("nvfp4", 120)])
def test_quantised_weights_build(precision: str, target: int, wide: Sized, tmp_path: Path) -> None:
    model, contract, fp16 = wide[0].clone(), *wide[1:]
    weights = sum(node.inputs[1].const_value.size for node in products(model))  # type: ignore[union-attr]
    quantise_weights(model, precision)
    size = engine_size(model, contract, target, tmp_path)
    if precision.startswith("int"):  # the others need kernels that are larger than these few weights
        assert fp16 - size > 0.7 * weights, (fp16, size, weights)  # of 2 bytes a weight in fp16


def test_an_engine_for_two_sequences_builds(tmp_path: Path) -> None:
    source = student()
    contract = exported_contract(source, 64)
    file = Graphs(source, contract, Recipe("trt", "fp16", 2, None)).write(tmp_path)[0]
    made = build(file, replace(contract, batch=2), ((4, 4), (1, 64)), Settings("rtx", (89,)))
    assert made.network.batch == 2 and not made.decomposed


def test_static_int8_is_calibrated_proved_and_built(tmp_path: Path) -> None:
    source, data = student(), tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a b a b", "answer": "b"}) + "\n")
    contract = exported_contract(source, 64)
    graphs = Graphs(source, contract, Recipe("trt", "int8-static", 1, data))
    ranges = graphs.calibrate(tmp_path)
    assert ranges is not None and len(ranges) == 5 * source.model.layers and min(ranges.values()) > 0
    file = graphs.write(tmp_path, ranges)[0]
    names = [node.op_type for node in onnx.load(file).graph.node]
    assert names.count("QuantizeLinear") == len(ranges) and names.count("DequantizeLinear") == 2 * len(ranges)
    checks = list(graphs.prove(file, tmp_path, ranges))
    assert [check.name for check in checks] == ["graph", "steps", "answers"] and all(check.ok for check in checks)
    assert build(file, contract, ((4, 4),), Settings("rtx", (89,))).content


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "give one of --ckpt"),
        (["--ckpt", "student.pt", "--bundle", "x"], "give one of --ckpt"),
        (["--bundle", "x", "--capacity", "64"], "--capacity is for --ckpt"),
        (["--bundle", "x", "--batch", "1"], "--batch is for --ckpt"),
        (["--bundle", "student.bundle", "--compute-capability", "90"], "does not build for SM90"),
        (["--bundle", "nowhere"], "no bundle at nowhere"),
        (["--ckpt", "student.pt", "--batch", "0"], "--batch is 0; expected at least 1"),
        (["--ckpt", "student.pt", "--precision", "int8-static"], "give --data"),
        (["--ckpt", "student.pt", "--data", "x.jsonl"], "--data calibrates int8-static alone"),
        (["--ckpt", "student.pt", "--graph-only"], "give --dialect trt (10.15 on) or plain"),
        (["--ckpt", "student.pt", "--capacity", "65"], "--capacity is 65; expected 1 to 64"),
        (["--ckpt", "student.pt", "--compute-capability", "90"], "does not build for SM90; it knows 75, 80, 86, 89,"),
        (["--ckpt", "student.pt", "--precision", "nvfp4", "--compute-capability", "89"],
         "nvfp4 needs a GPU of compute capability 100 or newer, and SM89 is to run it; give --precision int4"),
        (["--ckpt", "student.pt", "--precision", "int4", "--compute-capability", "75"], "give --precision int8"),
        (["--ckpt", "student.pt", "--precision", "fp8", "--compute-capability", "120", "86"], "fp8 needs"),
        (["--ckpt", "student.pt", "--timing-cache", "x"], "--timing-cache is for standard TensorRT"),
        (["--ckpt", "student.pt", "--flavor", "tensorrt"], "no TensorRT is installed here (tensorrt); "),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(
    options: list[str], told: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    if "tensorrt" in options:
        monkeypatch.setattr(targets, "find_spec", lambda name: None)
    before = sorted(made.iterdir())
    assert command.main(options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert sorted(made.iterdir()) == before


def test_a_tensorrt_without_polygraphy_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", None)
    with pytest.raises(UserError, match=r"^tensorrt_rtx cannot be used here \(.*polygraphy.*\); .*install"):
        libraries("rtx")


def test_the_commands_for_a_jetson_are_understood() -> None:
    page = (ROOT / "samples" / "jetson" / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"python -m export\.trt (.*?)(?: +#.*)?$", page, re.M)
    asked = [command.options(shlex.split(line)) for line in lines]
    assert [args.graph_only for args in asked] == [True, False] and asked[0].dialect == "plain"


def test_the_line_that_installs_tensorrt_is_this_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    assert targets.install_line("rtx") == "pip install 'blockstep[rtx]'"
    monkeypatch.setattr(targets, "JETSON", tmp_path)
    assert targets.install_line("tensorrt").startswith("on a Jetson: sudo apt-get install python3-libnvinfer, then")


def test_the_dialect_is_what_the_installed_tensorrt_takes() -> None:
    versions = {"10.3.0": "plain", "10.13.3.9": "plain", "10.15.1": "trt", "11.0": "trt"}
    assert {version: Library("tensorrt", version, ()).dialects()[0] for version in versions} == versions
    assert targets.choose_targets(LIBRARY, "int4", ()) == (80, 86, 89, 120, 121)
