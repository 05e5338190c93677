"""A bundle's recorded reference: read strictly, replayed by `blockstep verify` and at the first load on a machine."""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_faults
import numpy as np
import pytest

from runtime import load_check, verify
from runtime.bundle import reference as format
from runtime.bundle import trust_records
from runtime.bundle.manifest import Bundle, read
from runtime.bundle.reference import read_reference, write_reference
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import UserError
from runtime.open_bundle import load
from runtime.proof import first_load
from runtime.proof.judge import judge, measure, prove
from runtime.proof.replay import ReplayResult, replay

ROOT = Path(__file__).parent.parent
SAMPLE, GOLDEN = ROOT / "samples" / "student.bundle", Path(__file__).parent / "golden"
MADE = read(SAMPLE)
REFERENCE = read_reference(SAMPLE, MADE.find_engine().reference, MADE.contract)
GRAPH = (SAMPLE / MADE.find_engine().model).read_bytes()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Path(shutil.copytree(SAMPLE, tmp_path / "a.bundle"))
    manifest = json.loads((made / "manifest.json").read_text())
    del manifest["engines"][1:]  # fp32 alone
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def engine(content: bytes = GRAPH, folder: Path | None = None) -> OrtBackend:
    if folder is None:
        return OrtBackend(SAMPLE / MADE.find_engine().model, MADE.contract, 1)
    (folder / "graph.onnx").write_bytes(content)
    return OrtBackend(folder / "graph.onnx", MADE.contract, 1)


def put_reference(bundle: Path, content: bytes) -> Bundle:
    """Puts another content in the place of a bundle's reference, with its hash."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = manifest["engines"][0]["reference"]
    (bundle / entry["file"]).write_bytes(content)
    entry["sha256"] = format.hashlib.sha256(content).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return read(bundle)


def test_a_reference_is_read_as_it_was_written_and_is_the_same_file_again(tmp_path: Path) -> None:
    write_reference(tmp_path / "a.npz", REFERENCE)
    assert (tmp_path / "a.npz").read_bytes() == (SAMPLE / MADE.find_engine().reference.file).read_bytes()
    assert len(REFERENCE.forwards) > 20 and 20 < len(REFERENCE.answers) <= 40
    assert REFERENCE.forwards[0].begins and REFERENCE.forwards[0].top_token.shape[1] == 32


def arrays(**changes: Any) -> bytes:
    """The sample's reference with other arrays."""
    stored = dict(np.load(SAMPLE / MADE.find_engine().reference.file)) | changes
    content = io.BytesIO()
    np.savez_compressed(content, **{name: part for name, part in stored.items() if part is not None})
    return content.getvalue()


def claiming(shape: str) -> bytes:
    """A reference whose `begins` says that it has another shape than its bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(SAMPLE / MADE.find_engine().reference.file) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            length = len(np.load(SAMPLE / MADE.find_engine().reference.file)["begins"])
            new.writestr(name, part.replace(b"(%d,)" % length, shape.encode()) if name == "begins.npy" else part)
    return content.getvalue()


def packed(method: int, **contents: bytes) -> bytes:
    """The sample's reference, compressed by a method, with other contents of some arrays."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(SAMPLE / MADE.find_engine().reference.file) as old,
        zipfile.ZipFile(content, "w", method) as new,
    ):
        for name in old.namelist():
            new.writestr(name, contents.get(name.removesuffix(".npy"), old.read(name)))
    return content.getvalue()


INTS, COUNT = np.dtype("<i4"), len(REFERENCE.answers)
DAMAGED = {
    "no archive": (lambda: b"PK no archive", "not a zip file"),
    "a missing array": (lambda: arrays(norms=None), "expected begins"),
    "another array": (lambda: arrays(more=np.zeros(1)), "expected begins"),
    "another type": (lambda: arrays(entropy=np.zeros(3)), "entropy is <f8 [3]"),
    "objects": (lambda: arrays(begins=np.array([{}], object)), "begins"),
    "a claimed shape": (lambda: claiming("(99999999999,)"), "begins"),
    "a header that is no literal": (lambda: claiming("{[]: -1}"), "begins does not have the header"),
    "another compression": (lambda: packed(zipfile.ZIP_LZMA), "another method than deflate"),
    "an id too large": (lambda: arrays(answer_ids=np.full(COUNT, 1 << 20, INTS)), "answer_ids has an id"),
    "a length too many": (lambda: arrays(rows=np.zeros(1, INTS)), "rows is [1]"),
    "a margin below 0": (lambda: arrays(margin=np.full(COUNT, -1, "<f4")), "margin has a number below 0"),
    "an answer too long": (lambda: arrays(wanted=np.full(COUNT, 512, INTS)), "beyond the capacity 512"),
    "a NaN": (lambda: arrays(margin=np.full(COUNT, np.nan, "<f4")), "margin has a value out of range"),
    "a position too far": (
        lambda: arrays(past_length=np.full(len(REFERENCE.forwards), 500, INTS)), "beyond the capacity 512"
    ),
    "a query that sees nothing": (
        lambda: arrays(visible=np.zeros(sum(e.forward.input_ids.size for e in REFERENCE.forwards), INTS)), "visible"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_reference_is_refused_in_one_line(damage: str, bundle: Path) -> None:
    make, reason = DAMAGED[damage]
    made = put_reference(bundle, make())
    told = refusal(lambda: read_reference(bundle, made.find_engine().reference, made.contract))
    assert reason in told and told.endswith("export the bundle again")


def test_a_reference_that_unpacks_to_too_much_or_is_too_long_is_not_unpacked(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "ARRAY_LIMIT", 1000)
    assert "more than 1000 bytes" in refusal(
        lambda: read_reference(bundle, MADE.find_engine().reference, MADE.contract)
    )
    monkeypatch.setattr(format, "FILE_LIMIT", 100)
    assert "more than 100 bytes" in refusal(lambda: read_reference(bundle, MADE.find_engine().reference, MADE.contract))


def test_an_array_that_unpacks_to_more_than_it_says_takes_no_more_memory_than_it_says(bundle: Path) -> None:
    size = 64 << 20
    lying = packed(zipfile.ZIP_DEFLATED, begins=bytes(size)).replace(size.to_bytes(4, "little"), bytes([100, 0, 0, 0]))
    made = put_reference(bundle, lying)
    tracemalloc.start()
    try:
        told = refusal(lambda: read_reference(bundle, made.find_engine().reference, made.contract))
        assert "CRC" in told and tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


BOUNDS = MADE.find_engine().reference.bounds
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "a bound of nothing": ({"bounds": BOUNDS | {"none": 1.0}}, "bounds has ['entropy'"),
    "no bounds but of answers": (
        {"first_load_bounds": {"answers": 1.0}},
        "first_load_bounds has ['answers']; expected",
    ),
    "more than there are": ({"first_load": 1000}, f"first_load is 1000; expected at most {len(REFERENCE.forwards)}"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_bounds_and_counts_that_would_judge_nothing_are_refused(misfit: str) -> None:
    changes, reason = MISFITS[misfit]
    recorded = replace(MADE.find_engine().reference, **changes)
    told = refusal(lambda: read_reference(SAMPLE, recorded, MADE.contract))
    assert reason in told and told.startswith(f"{SAMPLE / 'manifest.json'}: ")


def test_a_bundle_from_before_the_spread_was_a_figure_is_judged_by_the_others() -> None:
    recorded = MADE.find_engine().reference
    before = {name: bound for name, bound in BOUNDS.items() if name != "top_spread"}
    part = {name: bound for name, bound in recorded.first_load_bounds.items() if name != "top_spread"}
    forwards = read_reference(SAMPLE, replace(recorded, bounds=before, first_load_bounds=part), MADE.contract).forwards[
        :3
    ]
    names = [check.name for check in judge(forwards, replay(engine(), forwards), before)]
    assert names == ["keys", "values", "top_log_prob", "log_prob", "entropy", "largest_log_prob", "tokens"]


def test_a_spread_is_of_the_tokens_after_the_best_and_not_of_what_moves_them_together() -> None:
    forwards = REFERENCE.forwards[:3]
    right = replay(engine(), forwards)
    top, step = right.top_logprob, np.where(np.arange(len(right.token)) % 2, 0.1, -0.1)[:, None]
    best = np.arange(top.shape[1]) == 0
    assert spread_of(replace(right, top_logprob=top + step)) < 1e-5
    assert spread_of(replace(right, top_logprob=np.where(best, top - 0.1, top))) < 1e-5
    middle = top[:, 1:].mean(1, keepdims=True)
    assert spread_of(replace(right, top_logprob=np.where(best, top, middle + 1.01 * (top - middle)))) == pytest.approx(
        0.01, rel=1e-3
    )
    assert "top_spread" not in measure(forwards, replace(right, top_logprob=top[:, :2]))


def spread_of(replayed: ReplayResult) -> float:
    return measure(REFERENCE.forwards[:3], replayed)["top_spread"].value


def test_a_reference_is_none_of_the_engines_files(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = manifest["engines"][0]
    entry["files"][entry["reference"]["file"]] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert "is reference and engine at once" in refusal(lambda: read(bundle))


def test_a_reference_with_another_hash_is_damage_to_whoever_reads_it(bundle: Path) -> None:
    file = bundle / MADE.find_engine().reference.file
    file.write_bytes(file.read_bytes() + b" ")
    assert "is damaged" in refusal(lambda: read_reference(bundle, MADE.find_engine().reference, MADE.contract))
    assert "is damaged" in refusal(lambda: load(bundle))


def test_verify_prints_a_line_per_check_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(SAMPLE), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all((line.startswith("[ok] ") and "bound" in line) or "differ" in line for line in lines[:-1])
    means = ["keys", "values", "top_log_prob", "top_spread", "log_prob", "entropy"]
    names = [*means, "largest_log_prob", "tokens", "answers"]
    assert [line.split()[1].rstrip(":") for line in lines[:-1]] == names
    assert lines[-1].startswith(f"ort-fp32 on onnxruntime: {len(REFERENCE.forwards)} forward passes")


def test_verify_ends_with_1_for_a_wrong_engine_and_json_is_one_object(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine_faults.put_graph(
        bundle, engine_faults.change_graph(GRAPH, {"layers.2.up_proj.weight": engine_faults.scale()})
    )
    assert verify.main([str(bundle), "--threads", "1", "--json"]) == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [check["name"] for check in told["checks"] if not check["ok"]][:2] == ["keys", "values"]
    assert told["figures"]["keys"]["place"] > 2 and err.count("[x]") >= 2  # seen in a layer after it


def test_verify_ends_with_2_without_a_reference_and_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(GOLDEN / "ort.bundle")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ort-fp32 of ") and err.count("\n") == 1
    assert "blockstep export onnx --ckpt CHECKPOINT --out" in err and "--precision fp32" in err


def attempts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the isolated load check is called with from now on."""
    calls: list[tuple[Any, ...]] = []
    attempt = load_check.attempt
    monkeypatch.setattr(load_check, "attempt", lambda *given: (calls.append(given), attempt(*given))[1])
    return calls


def test_the_first_load_proves_the_engine_and_a_load_on_another_cpu_does_so_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = attempts(monkeypatch)
    load(bundle, threads=1), load(bundle, threads=1)
    assert [given[-1] for given in calls] == [True]
    monkeypatch.setattr(first_load, "read_cpu_features", lambda: ["AVX9"])
    load(bundle, threads=1), load(bundle, threads=1)
    assert [given[-1] for given in calls] == [True, True]
    load(bundle, threads=1, verify="never")
    assert len(calls) == 2
    shutil.rmtree(trust_records.find_folder())
    load(bundle, threads=1, verify="never")
    assert len(calls) == 2 and not trust_records.find_folder().exists()


def test_an_engine_that_fails_is_refused_with_the_engine_that_passes(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_faults.put_graph(
        bundle, engine_faults.change_graph(GRAPH, {"layers.5.down_proj.weight": engine_faults.scale()}), "ort-int8"
    )
    for _ in range(2):  # what is refused is not remembered
        told = refusal(lambda: load(bundle, threads=1))
        assert "engine ort-int8 of" in told and "use --engine ort-fp32, which passes here" in told
        assert "(top_log_prob: mean log p of the top tokens, nats: off by" in told
    passing, insisted = load(bundle, threads=1, engine="ort-fp32"), load(bundle, threads=1, verify="never")
    assert (passing.engine, passing.proved, insisted.engine, insisted.proved) == ("ort-fp32", True, "ort-int8", False)
    assert load(GOLDEN / "ort.bundle").proved is None
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["engines"][1]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    # Where no process of its own is started, as in the C library, whoever loads it proves it.
    monkeypatch.setattr(load_check, "attempt", lambda *given: False)
    assert "export it again with --precision fp32: blockstep export onnx" in refusal(lambda: load(bundle, threads=1))


def test_another_model_among_the_same_files_is_another_proof() -> None:
    engine = replace(MADE.find_engine(), files={"a.onnx": "1" * 64, "b.onnx": "2" * 64}, model="a.onnx")
    assert first_load.make_key(engine, "cpu") != first_load.make_key(replace(engine, model="b.onnx"), "cpu")


def test_only_three_ways_to_verify_are_known() -> None:
    assert refusal(lambda: load(SAMPLE, verify="sometimes")) == (
        "verify is 'sometimes'; expected first, always or never"
    )


COLUMNS = {"q": slice(0, 192), "k": slice(192, 256), "v": slice(256, 320)}
SCALED = [
    "embedding",
    *(f"layers.{layer}.self_attn.qkv_proj.weight:{part}" for layer in (0, 5) for part in COLUMNS),
    *(f"layers.{layer}.{name}.weight" for layer in (2, 5) for name in ("self_attn.o_proj", "gate_proj", "down_proj")),
]


@pytest.mark.parametrize("name", SCALED)
def test_a_matrix_scaled_by_1_02_is_caught(name: str, tmp_path: Path) -> None:
    matrix, _, part = name.partition(":")
    wrong = engine_faults.change_graph(GRAPH, {matrix: engine_faults.scale(COLUMNS.get(part, slice(None)))})
    assert caught(engine(wrong, tmp_path))


def caught(backend: Any) -> list[str]:
    """The checks of a first load that a backend fails."""
    recorded = MADE.find_engine().reference
    forwards = REFERENCE.forwards[: recorded.first_load]
    return [check.name for check in prove(backend, forwards, recorded.first_load_bounds) if not check.ok]


TABLES = {"cos": engine_faults.other_base(np.cos), "sin": engine_faults.other_base(np.sin)}


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("stale", "keys"), ("shifted in layer 0", "keys"), ("shifted in layer 5", "top_log_prob"),
        ("mask one less", "keys"), ("mask one more", "keys"), ("RoPE base", "keys"), ("TF32", "largest_log_prob"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_caught(fault: str, seen: str, tmp_path: Path) -> None:
    wrong: dict[str, Callable[[], Any]] = {
        "stale": lambda: engine_faults.Stale(engine()),
        "shifted in layer 0": lambda: engine_faults.Shifted(engine(), 0),
        "shifted in layer 5": lambda: engine_faults.Shifted(engine(), 5),
        "mask one less": lambda: engine_faults.Masked(engine(), -1),
        "mask one more": lambda: engine_faults.Masked(engine(), 1),
        "RoPE base": lambda: engine(engine_faults.change_graph(GRAPH, TABLES), tmp_path),
        "TF32": lambda: engine(engine_faults.round_products(GRAPH), tmp_path),
    }
    assert seen in caught(wrong[fault]())


def test_numbers_that_are_none_keep_no_bound() -> None:
    replayed = replay(engine(), REFERENCE.forwards[:3])
    bounds = MADE.find_engine().reference.bounds
    assert all(check.ok for check in judge(REFERENCE.forwards[:3], replayed, dict.fromkeys(bounds, 1.0)))
    spoiled = replace(replayed, norms=replayed.norms * np.nan, log_prob=replayed.log_prob * np.nan)
    wrong = [c.name for c in judge(REFERENCE.forwards[:3], spoiled, dict.fromkeys(bounds, 1.0)) if not c.ok]
    assert wrong == ["keys", "values", "log_prob", "largest_log_prob"]


def test_a_gpu_is_described_by_its_driver_and_model(tmp_path: Path) -> None:
    (tmp_path / "gpus" / "0000:01").mkdir(parents=True)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX  580.1\nGCC version: 12\n")
    (tmp_path / "gpus" / "0000:01" / "information").write_text("Model: \t NVIDIA H200\nIRQ: 12\n")
    assert first_load.read_gpu_description(tmp_path) == ["Model: NVIDIA H200", "NVRM version: NVIDIA UNIX 580.1"]
    assert first_load.read_gpu_description(tmp_path / "none") == [] and first_load.read_cpu_features()
