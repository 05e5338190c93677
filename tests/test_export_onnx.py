"""The export and verify commands: what they write, what they refuse, and that a failed check changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from export import calibration, contract_from_checkpoint, verify
from export import onnx as command
from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import write_ort_graph
from export.proof import held_out
from export.proof.compare import Distance, Parity, find_worst
from export.proof.prove import prove, sample_requests
from runtime.bundle import store
from runtime.contract import MODES, GateSpec
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.data import prompts
from train.storage.student_pt import save
from train.torch_backend import TorchBackend, derive_contract
from train.transformer.network import Transformer, initialize

SEED = 11


def student(seed: int = SEED, **decoding: Any) -> Checkpoint:
    """A tiny checkpoint whose vocabulary is its tokenizer's, so that texts can be answered."""
    source = tiny.checkpoint(seed, context=512, canvas=8, **decoding)
    shape = replace(source.model, vocab=source.read_tokenizer().get_vocab_size())
    weights = {
        name: weight * 6 if weight.dim() == 2 else weight
        for name, weight in initialize(Transformer(shape), seed).state_dict().items()
    }
    return replace(source, model=shape, weights=weights)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student.pt and its bundle; copied before a test changes it."""
    folder = tmp_path_factory.mktemp("made")
    save(student(), folder / "student.pt")
    assert command.main(["--ckpt", str(folder / "student.pt")]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def listing(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_export_writes_a_bundle_beside_the_checkpoint_and_says_what_it_checked(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "student.bundle")
    assert command.main(["--ckpt", str(copy / "student.pt"), "--capacity", "64"]) == 0
    out, err = capsys.readouterr()
    names = ["graph", "steps", "answers", "reference"]
    assert [line.split(":")[0] for line in out.splitlines()[:4]] == [f"[ok] {name}" for name in names]
    assert out.splitlines()[4] == f"wrote {copy / 'student.bundle'}" and err == ""
    read = store.read(copy / "student.bundle")
    store.verify_files(read, read.find_engine(), "always")
    assert read.contract == replace(derive_contract(student()), capacity=64)
    assert read.provenance["checkpoint_sha256"] == store.hash_file(copy / "student.pt")
    assert read.provenance["context"] == student().decoding.context
    assert read.tokenizer.read_text() == student().tokenizer and read.chat_template is None
    assert sorted(file.name.split("-")[0] for file in (copy / "student.bundle").iterdir()) == [
        "manifest.json",
        "ort",
        "ort",
        "tokenizer",
    ]


def test_the_same_checkpoint_gives_the_same_graph_file(made: Path, tmp_path: Path) -> None:
    engine = store.read(made / "student.bundle").find_engine()
    source = student()
    assert write_ort_graph(source, make_export_contract(source, None), "fp32", tmp_path)[0].name == engine.model


def test_a_calibration_stays_for_the_same_checkpoint_and_its_loss_with_another_is_reported(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, words = copy / "student.bundle", ["--ckpt", str(copy / "student.pt")]
    gate = GateSpec(threshold=0.625)
    store.set_gate(made, "ort-fp32", gate)
    store.set_decision_temperature(made, "ort-fp32", 1.75)
    assert command.main(words) == 0
    engine = store.read(made).find_engine()
    assert (engine.gate, engine.decision_temperature) == (gate, 1.75)
    kept = "ort-fp32 keeps the calibrated gate's threshold 0.625 and temperature of decisions 1.75: the checkpoint is "
    assert kept in capsys.readouterr().out
    save(student(SEED + 1), copy / "student.pt")
    assert command.main(words) == 0
    engine, out = store.read(made).find_engine(), capsys.readouterr().out
    assert (engine.gate, engine.decision_temperature) == (None, 1)
    for what, flag in (("gate", ""), ("temperature of decisions", " --decisions")):
        lost = f"the calibrated {what} of ort-fp32 was another checkpoint's and is gone; calibrate: blockstep train "
        assert f"{lost}calibrate{flag} --bundle {made} --engine ort-fp32\n" in out


def test_a_calibrated_default_mode_does_not_keep_other_engines_out_and_a_new_gate_is_not_overridden(
    tmp_path: Path,
) -> None:
    spec = tiny.contract(attention="causal_context", shift=True, modes=list(MODES))
    (tmp_path / "graph-2cf24dba.onnx").write_text("hello")  # named by its sha256
    engine = store.Engine("ort-fp32", "ort", "fp32", "cpu", None, "graph-2cf24dba.onnx", {}, {})
    origin = {"checkpoint_sha256": "a"}
    made = tmp_path / "a.bundle"
    store.write(made, spec, engine, [tmp_path / engine.model], student().tokenizer, None, origin)
    there = store.set_gate(made, "ort-fp32", GateSpec(threshold=0.625), "speculative")
    assert there.contract.modes[0] == "speculative" and spec.modes[0] == "block"
    assert calibration.keep_mode_order(there, spec) == there.contract
    assert calibration.keep_mode_order(None, spec) == spec
    assert calibration.apply_calibration(there, spec, engine).gate == GateSpec(threshold=0.625)
    other = replace(spec, gate=GateSpec(threshold=0.25))
    assert calibration.apply_calibration(there, other, engine) == engine
    assert calibration.keep_mode_order(there, other) == other  # a new gate is used: it is not that of speculative
    (line,) = calibration.describe_lost_calibration(made, engine, origin)
    said = "the calibrated gate of ort-fp32 was for another gate or decoding and is gone; calibrate: blockstep"
    assert line.startswith(said) and line.endswith("--engine ort-fp32")
    assert calibration.describe_lost_calibration(tmp_path / "none.bundle", engine, origin) == []
    replaced = replace(engine, name="ort-int8", precision="int8")
    (line,) = calibration.describe_lost_calibration(made, replaced, {"checkpoint_sha256": "b"})
    assert "of ort-fp32 was another checkpoint's" in line and line.endswith("--engine ort-int8")
    removed = [f"ort-fp32 of another checkpoint gone from {made}; give --out another path to keep both"]
    assert calibration.describe_removed_engines(made, replaced, {"checkpoint_sha256": "b"}) == removed
    assert calibration.describe_removed_engines(made, engine, {"checkpoint_sha256": "b"}) == []  # replaced, as wanted
    assert calibration.describe_removed_engines(made, replaced, origin) == []
    assert calibration.describe_removed_engines(tmp_path / "none.bundle", engine, origin) == []


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"capacity": 32, "top_k": 4, "candidates": 8, "dtype": "float16"}, True), ({"block": 2}, False),
        ({"attention": "full"}, False), ({"shift": True}, False), ({"eos_ids": (5,)}, False),
    ],
)  # fmt: skip
def test_a_calibration_is_kept_only_for_the_same_decoding(change: dict[str, Any], kept: bool, tmp_path: Path) -> None:
    spec = tiny.contract()
    engine = store.Engine("ort-fp32", "ort", "fp32", "cpu", None, "graph-2cf24dba.onnx", {}, {})
    (tmp_path / engine.model).write_text("hello")
    origin = {"checkpoint_sha256": "a"}
    made = tmp_path / "a.bundle"
    store.write(made, spec, engine, [tmp_path / engine.model], student().tokenizer, None, origin)
    store.set_decision_temperature(made, "ort-fp32", 1.5)
    there = store.set_gate(made, "ort-fp32", GateSpec(threshold=0.625))
    after = calibration.apply_calibration(there, replace(spec, **change), engine)
    assert (after.gate, after.decision_temperature) == ((GateSpec(threshold=0.625), 1.5) if kept else (None, 1))
    assert len(calibration.describe_kept_calibration(engine, after)) == kept
    assert len(calibration.describe_lost_calibration(made, after, origin)) == 2 * (not kept)
    warm = replace(engine, decision_temperature=2.0)  # the checkpoint's own; 1 in a bundle is none of its own
    cold = store.set_decision_temperature(made, "ort-fp32", 1)
    assert calibration.apply_calibration(cold, spec, warm).decision_temperature == 2


def test_json_is_one_object_and_the_checks_go_to_stderr(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--ckpt", str(copy / "student.pt"), "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["bundle"] == str(copy / "student.bundle") and all(check["ok"] for check in told["checks"])
    assert out.count("\n") == 1 and err.count("[ok]") == 4


def test_a_graph_that_differs_from_pytorch_is_not_kept(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head whose scores share an offset so large that fp32 has no digits left for what tells the tokens apart."""
    source = student()
    weights = {**source.weights, "lm_head.weight": source.weights["embed_tokens.weight"] + 1e4}
    save(replace(source, model=replace(source.model, tied=False), weights=weights), copy / "student.pt")
    before = listing(copy / "student.bundle")
    assert command.main(["--ckpt", str(copy / "student.pt")]) == 1
    out, _ = capsys.readouterr()
    assert "[ok] graph" in out and "[x] steps" in out and "nothing was written" in out
    assert listing(copy / "student.bundle") == before
    assert sorted(file.name for file in copy.iterdir()) == ["student.bundle", "student.pt"]


def test_weights_that_are_no_numbers_are_not_exported(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = student()
    weights = {**source.weights, "norm.weight": source.weights["norm.weight"] * np.nan}
    save(replace(source, weights=weights), copy / "student.pt")
    before = listing(copy / "student.bundle")
    assert command.main(["--ckpt", str(copy / "student.pt")]) == 1
    assert "error: the model's scores are not finite numbers" in capsys.readouterr().err
    assert listing(copy / "student.bundle") == before


def _code(path: Path) -> None:
    torch.save({"format": 1, "config": Path("x")}, path)  # a class: reading it would run code


def _changed(**changes: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save(student(), path)
        state = torch.load(path, weights_only=True)
        for name, value in changes.items():
            state[name] = {**state[name], **value} if isinstance(value, dict) else value
        torch.save(state, path)

    return write


@pytest.mark.parametrize(
    ("write", "extra", "told"),
    [
        (lambda path: None, [], "no checkpoint at"),
        (lambda path: path.write_text("hello"), [], "not a"),
        (lambda path: path.write_bytes(b""), [], "not a checkpoint"),
        (_code, [], "would run code"),
        (lambda path: torch.save({"weights": 1}, path), [], "not a blockstep checkpoint"),
        (_changed(format=2), [], "format 2"),
        (_changed(config={"colour": "red"}), [], "unknown config keys colour"),
        (_changed(model={"norm.weight": torch.ones(64)}), [], "do not fit its config"),
        (_changed(config={"alignment": "left"}), [], "contract.alignment is 'left'"),
        (_changed(), ["--capacity", "513"], "--capacity is 513; expected 1 to 512"),
        (_changed(), ["--capacity", "0"], "--capacity is 0; expected 1 to 512"),
        (_changed(), ["--capacity", "abc"], "got 'abc'; expected a whole number"),
        (_changed(), ["--capacity", "4"], "no room for an answer; expected at least 5"),
        (_changed(), ["--precision", "fp64"], "--precision"),
        (_changed(), ["--out", "/dev/null/student.bundle"], "/dev/null/student.bundle cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    write: Callable[[Path], None], extra: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "student.pt"
    write(path)
    before = sorted(tmp_path.iterdir())
    assert command.main(["--ckpt", str(path), *extra]) == 2
    out, err = capsys.readouterr()
    assert "wrote" not in out and err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_head_size_that_the_operator_does_not_take_is_refused(tmp_path: Path) -> None:
    source = student()
    shape = replace(source.model, head_dim=12)
    source = replace(source, model=shape, weights=dict(Transformer(shape).state_dict()))
    with pytest.raises(UserError, match="head_dim is 12"):
        write_ort_graph(source, make_export_contract(source, None), "fp32", tmp_path)


def test_large_weights_lie_in_a_file_of_their_own_that_works_from_the_bundle(tmp_path: Path) -> None:
    source = student()
    contract = make_export_contract(source, 64)
    (tmp_path / "traced").mkdir()
    files = write_ort_graph(source, contract, "fp32", tmp_path / "traced", external=1000)
    assert [file.suffix for file in files] == [".onnx", ".data"]
    assert files[1].stat().st_size > 50_000
    engine = store.Engine("ort-fp32", "ort", "fp32", "cpu", None, files[0].name, {}, {})
    made = store.write(tmp_path / "out.bundle", contract, engine, files, source.tokenizer, None, {})
    shutil.rmtree(tmp_path / "traced")
    request = Request(np.array([5, 6, 7]), DecodeOptions(6))
    ours = generate(TorchBackend(source.build(), contract), request).token_ids
    assert generate(OrtBackend(made.path / made.find_engine().model, contract), request).token_ids == ours


@pytest.mark.long
def test_ids_that_the_tokenizer_lacks_are_never_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An embedding padded by 8 rows, as published ones are, whose padding the head likes best."""
    source = student()
    known, width = source.model.vocab, source.model.width
    embedding = source.weights["embed_tokens.weight"]
    liked = 5 * torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    weights = {**source.weights, "embed_tokens.weight": torch.cat((embedding, torch.zeros(8, width)))}
    weights["lm_head.weight"] = torch.cat((embedding, liked))
    padded = replace(source, model=replace(source.model, vocab=known + 8, tied=False), weights=weights)
    model, ids = padded.build(), torch.arange(3, 40)[None]
    assert (model.logits(model(ids, torch.full_like(ids, 37))).argmax(-1) >= known).float().mean() > 0.9
    contract = derive_contract(padded)
    assert contract.vocab == known
    request = Request(np.arange(3, 40), DecodeOptions(20))
    assert max(generate(TorchBackend(model, contract), request).token_ids) < known
    save(padded, tmp_path / "student.pt")
    assert command.main(["--ckpt", str(tmp_path / "student.pt")]) == 0  # which compares both engines
    assert capsys.readouterr().out.count("[ok]") == 4
    at = store.read(tmp_path / "student.bundle")
    assert max(generate(OrtBackend(at.path / at.find_engine().model, at.contract), request).token_ids) < known


def test_gaps_in_a_tokenizers_ids_are_never_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two ids that are no token, whose rows the head likes best."""
    source = student()
    known, gap = source.model.vocab, [50, 51]
    names = {f"t{i}": i for i in range(known) if i not in gap}
    head = source.weights["embed_tokens.weight"].clone()
    head[gap] = 5 * torch.randn(2, source.model.width, generator=torch.Generator().manual_seed(0))
    weights = {**source.weights, "lm_head.weight": head}
    holed = replace(source, model=replace(source.model, tied=False), weights=weights)
    holed = replace(holed, tokenizer=Tokenizer(BPE(names, [])).to_str())
    contract, request = derive_contract(holed), Request(np.arange(3, 40), DecodeOptions(20))
    assert holed.list_missing_ids() == gap and contract.vocab == known
    assert set(gap) & set(generate(TorchBackend(holed.build(), contract), request).token_ids)  # nothing barred
    save(holed, tmp_path / "student.pt")
    assert command.main(["--ckpt", str(tmp_path / "student.pt")]) == 0  # which compares both engines
    assert capsys.readouterr().out.count("[ok]") == 4
    at = store.read(tmp_path / "student.bundle")
    assert not set(gap) & set(generate(OrtBackend(at.path / at.find_engine().model, at.contract), request).token_ids)


def test_verify_answers_held_out_prompts_alike(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [str(copy / "student.bundle"), "--ckpt", str(copy / "student.pt")]
    assert verify.main([*where, "--prompts", "3", "--task", "math", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompts"] == 3 and told["answers"] == 4 and told["differing"] == []
    assert 0 < told["max"]["log_prob"] <= told["max"]["every_log_prob"] <= 1e-4 and told["max"]["twin"] <= 1e-6
    assert told["max"]["forwards"] > 3 and told["max"]["tokens"] == 0


@pytest.mark.long
def test_an_export_looks_at_every_token_of_a_student_that_is_always_sure(tmp_path: Path) -> None:
    sure = tiny.certain(SEED, token=7, lead=3.0)
    contract = make_export_contract(sure, None)
    model = write_ort_graph(sure, contract, "fp32", tmp_path)[0]
    right = {check.name: check for check in prove(sure, contract, model)}
    assert all(check.ok for check in right.values()) and "of every token above e^-20" in right["steps"].detail
    sure.weights["lm_head.weight"][9] *= 1.5  # of a token that is never the best
    assert [check.ok for check in prove(sure, contract, model)] == [True, False, True]


def test_verify_tells_a_bundle_whose_graph_is_another_models(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, at = student(SEED + 1), store.read(copy / "student.bundle")
    files = write_ort_graph(other, at.contract, "fp32", copy)
    engine = replace(at.find_engine(), model=files[0].name, reference=None)
    store.write(at.path, at.contract, engine, files, other.tokenizer, None, at.provenance)
    assert verify.main([str(at.path), "--ckpt", str(copy / "student.pt"), "--prompts", "2", "--task", "math"]) == 1
    out = capsys.readouterr().out
    assert "[x] steps" in out and "[x] answers: 3 of 3 differ from PyTorch; first request 0, step" in out


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--prompts", "0"], "--prompts is 0"),
        (["--task", "poetry"], "unknown task 'poetry'"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--engine", "trt-fp16"], "no engine 'trt-fp16'; it has ort-fp32"),
    ],
)
def test_verify_refuses_in_one_line(
    extra: list[str], told: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(made / "student.bundle"), "--ckpt", str(made / "student.pt"), *extra]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and told in err


def test_verify_refuses_another_checkpoint_and_prompts_without_room(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(student(SEED + 1), copy / "other.pt")
    assert verify.main([str(copy / "student.bundle"), "--ckpt", str(copy / "other.pt")]) == 2
    assert "was not exported from" in capsys.readouterr().err
    with pytest.raises(UserError, match="leave no room in a KV-cache capacity of 16"):
        contract = replace(derive_contract(student()), capacity=16)
        held_out.make_held_out_requests(prompts.make_encoder(student(), raw=True), contract, ["a long prompt " * 9])


def test_a_nan_is_never_a_small_difference() -> None:
    nan = find_worst(0.0, np.array([0.1, np.nan]))
    assert np.isnan(find_worst(nan, np.array([0.0])))
    assert not Parity(Distance(log_prob=nan), 1).make_checks()[0].ok
    assert Parity(Distance(log_prob=1e-4), 1).make_checks()[0].ok


def test_the_quick_set_has_every_length_that_fits() -> None:
    contract = make_export_contract(student(), 16)
    assert [len(request.prompt) for request in sample_requests(contract)] == [1, 3, 4, 5]
    assert all(tiny.MASK not in request.prompt for request in sample_requests(contract))


def test_the_graph_names_no_folder_of_the_machine_that_exported_it(made: Path) -> None:
    model = next((made / "student.bundle").glob("*.onnx")).read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in model and b"stack_trace" not in model


HUB = "hub/models--org--SDAR-1.7B/snapshots"


@pytest.mark.parametrize(
    ("ckpt", "out"),
    [
        ("work/model-1.7B", "work/model-1.7B.bundle"), ("work/model-1.7B/", "work/model-1.7B.bundle"),
        (".", "{root}.bundle"), ("work/model-1.7B/..", "{root}/work.bundle"),
        ("work/student.pt", "work/student.bundle"),
        (f"{HUB}/0a1b", "SDAR-1.7B.bundle"), (f"{HUB}/0a1b/teacher", "teacher.bundle"),
        (f"{HUB}/0a1b/student.pt", "student.bundle"), (".cache/modelscope/model", "model.bundle"),
        ("linked", "linked.bundle"),
    ],
)  # fmt: skip
def test_a_bundle_is_written_where_a_user_looks(
    ckpt: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("work/model-1.7B", f"{HUB}/0a1b/teacher", ".cache/modelscope/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "linked").symlink_to(f"{HUB}/0a1b")
    monkeypatch.chdir(tmp_path)
    assert str(contract_from_checkpoint.choose_default_out(Path(ckpt))) == out.format(root=tmp_path.resolve())
