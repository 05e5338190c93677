"""python -m export.trt where there is no GPU: bundles, what is built again and why, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from fake_cuda import FakeCuda

pytest.importorskip("tensorrt_rtx", reason="builds engines with TensorRT for RTX: pip install 'blockstep[rtx]'")

from trt_student import LIBRARY, make_graph, make_student, plan

from export import trt as command
from export import verify
from export.precisions import PRECISIONS
from export.proof import instrumented
from export.trt_engines import add_to_bundle, gpu_support
from export.trt_engines import plan as trt_plan
from export.trt_engines.add_to_bundle import TargetBundle, report_missing
from export.trt_engines.from_bundle import list_graph_entries
from export.trt_engines.from_checkpoint import match_capacity
from export.trt_engines.gpu_support import TrtLibrary, import_libraries
from export.trt_engines.plan import GraphRequest, Plan
from export.trt_engines.report import BuildReport
from runtime import generate as run
from runtime.bundle import trust_records
from runtime.bundle.store import Engine, hash_file, read, set_decision_temperature, set_gate
from runtime.contract import GateSpec
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.trt.cuda import Cuda, load_cuda
from runtime.engines.trt.trt_backend import open_engines
from runtime.errors import DeviceError, UserError
from train.storage.student_pt import save

ROOT = Path(__file__).parent.parent
GRAPH = ["--graph-only", "--dialect", "trt"]
FITTED, FITTED_HERE = 1.25, 1.75  # temperatures of decisions: the checkpoint's, and one that a bundle was given


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student.pt and a bundle with one engine; copied before a test changes it."""
    folder, source = tmp_path_factory.mktemp("made"), make_student()
    save(replace(source, decoding=replace(source.decoding, decision_temperature=FITTED)), folder / "student.pt")
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


def calibrate(path: Path) -> GateSpec:
    """Gives the bundle's first engine a gate and a temperature of its own, as train.calibrate does."""
    engine, gate = read(path).engines[0], GateSpec(threshold=0.625)
    set_gate(path, engine.name, gate)
    set_decision_temperature(path, engine.name, FITTED_HERE)
    return gate


def calibrated(path: Path) -> list[tuple[GateSpec | None, float]]:
    return [(engine.gate, engine.decision_temperature) for engine in read(path).engines]


def test_an_engine_of_the_standard_library_is_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    library, graph = TrtLibrary("tensorrt", "10.16.1", ()), GraphRequest("trt", "fp16", 64, 1, "float16", {})
    cuda = FakeCuda()
    monkeypatch.setattr(trt_plan, "load_cuda", lambda: Cuda(cuda))

    def plan_for(*options: str, precision: str = "fp16") -> Plan:
        settings = command.make_settings(command.parse_options(["--ckpt", "student.pt", *options]))
        return trt_plan.make_plan(replace(graph, precision=precision), tiny.contract(), settings, library)

    mine = plan_for()
    assert (mine.target, mine.device, mine.make_stem()) == ("sm89", "Fake 4090", "trt-fp16-sm89-64")
    anywhere = plan_for("--hardware-compatibility", "--version-compatible", "--timing-cache", "x")
    assert (anywhere.target, anywhere.device, anywhere.make_stem()) == ("sm80+", None, "trt-fp16-sm80plus-64")
    assert anywhere.build("x.onnx").version_compatible and anywhere.settings.timing_cache == Path("x")
    with pytest.raises(UserError, match="fp8 needs a GPU of compute capability 89 or newer, and SM80 is to run it"):
        plan_for("--hardware-compatibility", precision="fp8")
    with pytest.raises(UserError, match="nvfp4 needs a GPU of compute capability 100 or newer, and SM89 is"):
        plan_for(precision="nvfp4")
    with pytest.raises(UserError, match=r"SM70 is to run it; build for a newer GPU$"):
        gpu_support.check_precision("fp16", 70, "tensorrt")
    with pytest.raises(UserError, match="give --precision fp16, or build"):
        gpu_support.check_precision("bf16", 75, "tensorrt")
    with pytest.raises(UserError, match="--compute-capability is for TensorRT for RTX"):
        plan_for("--compute-capability", "89")
    cuda.devices = 0
    with pytest.raises(UserError, match="there is none here; build there with --bundle, or give --flavor rtx"):
        plan_for()


def test_the_bundle_says_how_its_engine_was_built(made: Path) -> None:
    engine, bundle = only(made), read(made / "student.bundle")
    build = engine.build
    assert build is not None and engine.name == "trt-fp16-rtx-sm86-sm89-sm120-64" and engine.target == "sm86,sm89,sm120"
    assert (build.flavor, build.capacity, build.batch, build.dtype) == ("rtx", 64, 1, "float16")
    assert build.profiles == ((4, 4), (8, 8), (1, 64)) and build.device is None and build.options["user_allocation"]
    assert engine.files.keys() == {engine.model, build.onnx} and engine.model.endswith(".engine")
    assert all(hash_file(bundle.path / name) == digest for name, digest in engine.files.items())
    assert trust_records.was_built(engine.files[engine.model]) and not trust_records.was_built(engine.files[build.onnx])
    assert engine.parity.keys() == {"graph", "steps", "answers", "reference"}
    assert (engine.gate, engine.decision_temperature) == (None, FITTED)  # as the checkpoint has them
    assert bundle.contract.capacity == 64 and bundle.provenance["checkpoint_sha256"] == hash_file(made / "student.pt")


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
    if load_cuda().find_gpu() is None:
        assert run.main([str(path), "a b", "--engine", "trt"]) == 2
        assert "the engine is built; running it needs an NVIDIA driver" in capsys.readouterr().err


@pytest.mark.long
def test_another_count_of_top_tokens_replaces_a_lone_engine_and_is_refused_beside_others(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(again(copy, "--top-k", "8", "--json")) == 0
    out, err = capsys.readouterr()
    assert "to be built, graph.top_k is None, now 8" in err and json.loads(out)["engines"][0]["built"]
    path, lone = copy / "student.bundle", only(copy)
    assert read(path).contract.top_k == 8 and "of the top tokens" in lone.parity["steps"]
    assert command.main(again(copy, "--top-k", "8", "--json")) == 0  # and is then as it should be
    assert not json.loads(capsys.readouterr().out)["engines"][0]["built"]
    files = sorted(path.iterdir())
    for wrong, options in (("8, but trt-bf16", ["--precision", "bf16"]), ("8, but trt-fp16-64", GRAPH)):
        assert command.main(again(copy, *options)) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("error: ") and f"holds {lone.name} with top_k {wrong}" in err
        assert err.endswith("has 0; export with the same, or into another bundle") and sorted(path.iterdir()) == files
    assert command.main(["--bundle", str(path), "--top-k", "8"]) == 2
    assert "--top-k is for --ckpt" in capsys.readouterr().err
    assert not [left for left in copy.iterdir() if left.name.endswith(".part")]


def test_nothing_is_built_twice_and_what_differs_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = only(copy)
    file = copy / "student.bundle" / before.model
    files = sorted(copy.rglob("*"))
    (copy / ".student.bundle.part").mkdir()  # as a run leaves them that is killed when all but this is done
    (copy / ".student.bundle.part" / "half.onnx").touch()
    (copy / "student.bundle" / f"{file.stem[:-8]}00000000.engine").touch()
    assert command.main(again(copy, "--json")) == 0
    assert sorted(copy.rglob("*")) == files
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
    assert not file.exists() and hash_file(file.with_name(engine.model)) == engine.files[engine.model]


def test_a_manifest_that_does_not_say_what_came_of_a_build_is_no_reason_to_build(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = copy / "student.bundle" / "manifest.json"
    values = json.loads(manifest.read_text(encoding="utf-8"))
    del values["engines"][0]["build"]["options"]["decomposed"]
    manifest.write_text(json.dumps(values), encoding="utf-8")
    assert command.main(again(copy, "--json")) == 0
    assert not json.loads(capsys.readouterr().out)["engines"][0]["built"]


def test_an_export_of_another_checkpoint_reports_which_calibration_is_lost(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, lost = copy / "student.bundle", only(copy).name
    calibrate(path)
    save(make_student(), copy / "student.pt")  # with no temperature of its own
    assert command.main(["--ckpt", str(copy / "student.pt"), *GRAPH]) == 0
    assert calibrated(path) == [(None, 1)]
    out = capsys.readouterr().out
    for what, flag in (("gate", ""), ("temperature of decisions", " --decisions")):
        line = f"the calibrated {what} of {lost} was another checkpoint's and is gone; calibrate: blockstep train "
        assert f"\n{line}calibrate{flag} --bundle {path} --engine trt-fp16-64\n" in out


def test_a_bundle_of_another_checkpoint_is_a_reason_to_build(made: Path) -> None:
    bundle, report = read(made / "student.bundle"), BuildReport(io.StringIO())
    shared = TargetBundle(bundle.path, bundle.contract, "{}", None, {"checkpoint_sha256": "another"})
    assert report_missing(shared, plan("trt"), report)
    told = report.stream.getvalue()  # type: ignore[attr-defined]
    assert told == "trt-fp16-rtx-sm89-64: to be built, the bundle is of another checkpoint, whose engines go\n"


def test_another_chat_template_is_written_with_nothing_to_build(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_to_bundle, "list_plan_differences", lambda *_: [])
    before = read(copy / "student.bundle")
    shared = TargetBundle(
        before.path, before.contract, before.tokenizer.read_text(), "{{ messages }}", before.provenance
    )
    assert not report_missing(shared, plan("trt"), BuildReport(io.StringIO()))
    after = read(before.path)
    assert after.chat_template == "{{ messages }}" and after.engines == before.engines


def test_a_graph_that_is_too_far_from_pytorch_is_not_built(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((copy / "student.bundle").iterdir())
    monkeypatch.setitem(PRECISIONS, "fp16", replace(PRECISIONS["fp16"], log_prob=0.0))
    assert command.main(again(copy, "--max-prompt", "20", "--json")) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert not told["ok"] and told["engines"] == [] and [check["ok"] for check in told["checks"]] == [True, False]
    assert err.endswith(f"what failed was not added to {copy / 'student.bundle'}\n")
    assert sorted((copy / "student.bundle").iterdir()) == before


@pytest.mark.long
def test_another_capacity_is_another_engine_of_the_same_bundle(copy: Path) -> None:
    gate = calibrate(copy / "student.bundle")
    assert command.main(again(copy, "--capacity", "32", "64")) == 0
    engines = read(copy / "student.bundle").engines
    assert sorted(e.build.capacity for e in engines if e.build) == [32, 64]
    # It is run in place of the other one, by the gate and the temperature that were measured there.
    assert calibrated(copy / "student.bundle") == [(gate, FITTED_HERE)] * 2
    there = read(copy / "student.bundle")
    assert there.contract.capacity == 64
    with pytest.raises(
        UserError, match="was exported with a KV-cache capacity of 64, 65 is more; give --capacity 64 or less"
    ):
        match_capacity(there, replace(there.contract, capacity=65))
    assert match_capacity(there, replace(there.contract, capacity=32)) == there.contract


def test_a_copied_bundle_is_built_without_torch_and_checkpoint(copy: Path) -> None:
    other = Path(shutil.move(copy / "student.bundle", copy / "device.bundle"))
    gate = calibrate(other)
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
    assert old.reference is not None and new.reference == old.reference
    assert calibrated(other) == [(gate, FITTED_HERE)] * 2
    assert trust_records.was_built(new.files[new.model])


@pytest.mark.long
def test_a_graph_alone_is_written_for_another_machine(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--ckpt", str(copy / "student.pt"), "--dialect", "plain", "--graph-only"]
    assert command.main(options) == 0
    engines = read(copy / "student.bundle").engines
    assert [engine.name for engine in engines] == ["trt-fp16-rtx-sm86-sm89-sm120-64", "plain-fp16-64"]
    assert engines[1].decision_temperature == FITTED
    capsys.readouterr()
    assert run.main([str(copy / "student.bundle"), "a b", "--engine", "plain-fp16-64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "plain-fp16-64"
    bundle = ["--bundle", str(copy / "student.bundle")]
    found = list_graph_entries(read(copy / "student.bundle"), ("trt", "plain"), None)
    assert [engine.dialect for engine in found] == ["trt"]
    alone = replace(read(copy / "student.bundle"), engines=(engines[1],))
    assert list_graph_entries(alone, ("trt", "plain"), None) == [engines[1]]
    assert command.main([*bundle, "--dialect", "plain", "--compute-capability", "89"]) == 0
    assert [e.name for e in read(copy / "student.bundle").engines][2] == "plain-fp16-rtx-sm89-64"
    assert command.main([*bundle, "--precision", "int8"]) == 2
    assert "has no graph trt or plain int8, it has trt fp16, plain fp16; write it on" in capsys.readouterr().err


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
                verify.open_candidate(read(made / "student.bundle"), other, trust=False)


def test_a_graph_that_the_cpu_fails_at_is_to_be_verified_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Engine("trt-int8-static", "trt", "int8-static", "sm89", None, "a.engine", {}, {}, plan("trt").build("a"))
    for gpu, engine, error in (
        (False, stand_in, UserError), (True, stand_in, DeviceError),
        (False, replace(stand_in, dialect="ort", build=None), DeviceError),
    ):  # fmt: skip
        monkeypatch.setattr(verify, "has_gpu", lambda gpu=gpu: gpu)
        with pytest.raises(error) as told, verify.report_ort_failure(engine):
            raise DeviceError("onnxruntime failed on the cpu: no such kernel")
        own = "trt-int8-static cannot be compared here: onnxruntime failed on the cpu: no such kernel; verify it on the"
        assert str(told.value).startswith(own) == (error is UserError)


def test_a_twin_that_does_not_load_is_a_device_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, contract = make_graph(tmp_path, make_student())
    shipped = OrtBackend(file, contract)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED :\nno kernel")

    monkeypatch.setattr(instrumented.ort, "InferenceSession", refuse)
    with pytest.raises(DeviceError, match=r"onnxruntime cannot load .*\.onnx with its logits \(.*NOT_IMPLEMENTED : no"):
        instrumented.load_instrumented(file, shipped)


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
        (["--ckpt", "student.pt", "--optimization-level", "0"], "--optimization-level is for standard TensorRT"),
        (["--ckpt", "student.pt", "--flavor", "tensorrt"], "no TensorRT is installed here (tensorrt); "),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(
    options: list[str], told: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    if "tensorrt" in options:
        monkeypatch.setattr(gpu_support, "find_spec", lambda name: None)
    before = sorted(made.iterdir())
    assert command.main(options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert sorted(made.iterdir()) == before


def test_a_full_model_takes_no_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its graph has no input that hides what pads a shorter sequence."""
    full = make_student()
    save(replace(full, decoding=replace(full.decoding, attention="full")), tmp_path / "student.pt")
    assert command.main(["--ckpt", str(tmp_path / "student.pt"), "--batch", "2"]) == 2
    assert "--batch is 2, but a full model sees all that it is given" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["student.pt"]


def test_a_tensorrt_without_polygraphy_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", None)
    with pytest.raises(UserError, match=r"^tensorrt_rtx cannot be used here \(.*polygraphy.*\); .*install"):
        import_libraries("rtx")


def test_the_commands_for_a_jetson_are_understood() -> None:
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    lines = re.findall(r"^blockstep export trt (.*?)(?: +#.*)?$", page, re.M)
    given = [command.parse_options(shlex.split(line)) for line in lines]
    assert [args.graph_only for args in given] == [True, True, False, False]
    assert [args.dialect for args in given[:2]] == ["plain", "plain"]


def test_the_line_that_installs_tensorrt_is_this_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_support, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_support.platform, "machine", lambda: "x86_64")
    line = gpu_support.install_line("rtx")
    assert line.startswith("pip install 'blockstep[rtx]'") and "tensorrt-rtx-cu12" in line
    line = gpu_support.install_line("tensorrt")
    assert line.startswith("pip install 'blockstep[trt]'") and "driver 580" in line and "tensorrt-cu12" in line
    monkeypatch.setattr(gpu_support, "JETSON", tmp_path)
    assert gpu_support.install_line("tensorrt").startswith("on a Jetson: sudo apt-get install python3-libnvinfer, then")


def test_the_dialect_is_what_the_installed_tensorrt_takes() -> None:
    versions = {"10.3.0": "plain", "10.13.3.9": "plain", "10.15.1": "trt", "11.0": "trt"}
    assert {version: TrtLibrary("tensorrt", version, ()).list_dialects()[0] for version in versions} == versions
    assert gpu_support.choose_targets(LIBRARY, "int4", ()) == (80, 86, 89, 120, 121)
