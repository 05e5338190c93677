"""Bundles of links, as caches, volumes and stores lay them out: read, tried, compared, and never written through."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import foreign
import onnx
import pytest
import torch
from test_export_onnx import student

from export import onnx as onnx_export
from export import verify
from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import write_ort_graph
from runtime.bundle import store, trust_records
from runtime.contract import GateSpec
from runtime.errors import UserError
from runtime.open_bundle import load
from train import open_checkpoint
from train.storage import student_pt

Layout = Callable[[Path, Path], Path]


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of another test is known, so each is hashed and tried in a child process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student.pt and its bundle, whose weights are in a file of their own."""
    folder, source = tmp_path_factory.mktemp("made"), student()
    student_pt.save(source, folder / "student.pt")
    contract = make_export_contract(source, None)
    files = write_ort_graph(source, contract, "fp32", folder, external=1000)
    engine = store.Engine("ort-fp32", "ort", "fp32", "cpu", None, files[0].name, {}, {})
    origin = {"checkpoint_sha256": store.hash_file(folder / "student.pt")}
    store.write(folder / "student.bundle", contract, engine, files, source.tokenizer, None, origin)
    return folder


def link(target: str | Path, at: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(target)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def in_a_hugging_face_cache(plain: Path, root: Path) -> Path:
    for file in plain.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        copy(file, root / "blobs" / digest)
        link(Path("../../blobs") / digest, root / "snapshots" / "abc" / file.name)
    return root / "snapshots" / "abc"


def in_a_kubernetes_volume(plain: Path, root: Path) -> Path:
    for file in plain.iterdir():
        copy(file, root / "..2026_01" / file.name)
        link(Path("..data") / file.name, root / file.name)
    link("..2026_01", root / "..data")
    return root


def in_a_store_with_a_folder_per_file(plain: Path, root: Path) -> Path:
    """As Nix, Bazel, DVC and git-annex have them."""
    for number, file in enumerate(sorted(plain.iterdir())):
        copy(file, root / "store" / str(number) / file.name)
        link(root / "store" / str(number) / file.name, root / "tree" / file.name)
    return root / "tree"


def with_weights_elsewhere(plain: Path, root: Path) -> Path:
    for file in plain.iterdir():
        copy(file, root / ("large" if file.suffix == ".data" else "tree") / file.name)
        if file.suffix == ".data":
            link(Path("../large") / file.name, root / "tree" / file.name)
    return root / "tree"


LAYOUTS = [
    in_a_hugging_face_cache, in_a_kubernetes_volume, in_a_store_with_a_folder_per_file, with_weights_elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_linked_bundle_with_external_weights_generates_and_verifies(
    layout: Layout, made: Path, tmp_path: Path
) -> None:
    plain = made / "student.bundle"
    linked = layout(plain, tmp_path / "linked")
    wanted = load(plain).generate([5, 6, 7], max_new_tokens=8)
    found = load(linked).generate([5, 6, 7], max_new_tokens=8)
    assert (found.result.token_ids, found.result.forwards) == (wanted.result.token_ids, wanted.result.forwards)
    read = store.read(linked)
    assert set(trust_records.read_seen()) >= {
        str((linked / name).resolve()) for name in (*read.find_engine().files, *read.texts)
    }
    words = [str(linked), "--ckpt", str(made / "student.pt"), "--prompts", "1", "--task", "math"]
    assert verify.main(words) == 0


def test_a_volume_that_is_swapped_is_hashed_again(made: Path, tmp_path: Path) -> None:
    linked = in_a_kubernetes_volume(made / "student.bundle", tmp_path / "volume")
    load(linked)
    shutil.copytree(linked / "..2026_01", linked / "..2026_02")
    data = next((linked / "..2026_02").glob("*.data"))
    data.write_bytes(bytes(data.stat().st_size))
    link("..2026_02", linked / "..new")
    os.replace(linked / "..new", linked / "..data")
    with pytest.raises(UserError, match=f"{data.name} is damaged"):
        load(linked)


def test_a_linked_graph_reads_no_file_that_its_manifest_does_not_name(made: Path, tmp_path: Path) -> None:
    linked = in_a_hugging_face_cache(made / "student.bundle", tmp_path / "hub")
    values = json.loads((linked / "manifest.json").read_text())
    engine = values["engines"][0]
    graph = onnx.load(linked / engine["model"], load_external_data=False)
    shutil.copyfile(next(linked.glob("*.data")), linked.parent.parent / "blobs" / "secret")
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "secret" if entry.key == "location" else entry.value
    target = (linked / engine["model"]).resolve()
    target.write_bytes(graph.SerializeToString())
    engine["files"][engine["model"]] = store.hash_file(target)
    (linked / "manifest.json").resolve().write_text(json.dumps(values))
    with pytest.raises(UserError, match="secret not found"):
        load(linked)
    engine["files"] = {engine["model"]: engine["files"][engine["model"]]}
    (linked / "manifest.json").resolve().write_text(json.dumps(values))
    with pytest.raises(UserError, match="External data path does not exist"):
        load(linked)


@pytest.mark.parametrize("name", ["manifest.json", "model", "tokenizer"])
@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nowhere", "is a link that leads nowhere"), ("itself", "is a link that leads nowhere"),
        ("/dev/zero", "is not a plain file"), ("pipe", "is not a plain file"), (".", "is not a plain file"),
    ],
)  # fmt: skip
def test_a_link_to_anything_but_a_file_is_refused(
    name: str, target: str, told: str, made: Path, tmp_path: Path
) -> None:
    there = Path(shutil.copytree(made / "student.bundle", tmp_path / "a.bundle"))
    read = store.read(there)
    file = there / {"model": read.find_engine().model, "tokenizer": read.tokenizer.name}.get(name, name)
    os.mkfifo(tmp_path / "pipe")
    file.unlink()
    file.symlink_to({"itself": file.name, "pipe": "../pipe"}.get(target, target))
    for policy in ("first", "never") if "plain" in told else ("first",):
        with pytest.raises(UserError, match=told):
            load(there, verify=policy)


@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_link_that_leads_nowhere_is_told_before_an_export(
    target: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link(target, tmp_path / "itself")
    assert onnx_export.main(["--ckpt", str(made / "student.pt"), "--out", str(tmp_path / "itself")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "is a link that leads nowhere; remove it" in err
    assert os.listdir(tmp_path) == ["itself"]


def test_a_new_gate_replaces_the_link_and_not_what_is_in_the_cache(made: Path, tmp_path: Path) -> None:
    linked = in_a_hugging_face_cache(made / "student.bundle", tmp_path / "hub")
    blob = (linked / "manifest.json").resolve()
    before = blob.read_bytes()
    store.set_gate(linked, "ort-fp32", GateSpec(threshold=0.75))
    assert blob.read_bytes() == before and not (linked / "manifest.json").is_symlink()
    assert store.read(linked).find_engine().gate == GateSpec(threshold=0.75)


def test_a_checkpoint_is_the_same_behind_a_link_and_writing_there_replaces_the_link(made: Path, tmp_path: Path) -> None:
    target = Path(shutil.copyfile(made / "student.pt", tmp_path / "blob"))
    link("blob", tmp_path / "student.pt")
    before = target.read_bytes()
    assert open_checkpoint.compute_fingerprint(tmp_path / "student.pt") == open_checkpoint.compute_fingerprint(
        made / "student.pt"
    )
    student_pt.set_gate(tmp_path / "student.pt", {**student().decoding.gate, "threshold": 0.25})
    assert target.read_bytes() == before and not (tmp_path / "student.pt").is_symlink()
    assert open_checkpoint.load(tmp_path / "student.pt").decoding.gate["threshold"] == 0.25


def test_a_hugging_face_checkpoint_is_the_same_in_its_cache(tmp_path: Path) -> None:
    foreign.write(tmp_path / "plain", "dream")
    foreign.shard(tmp_path / "plain")
    linked = in_a_hugging_face_cache(tmp_path / "plain", tmp_path / "models--org--dream")
    found, wanted = open_checkpoint.load(linked), open_checkpoint.load(tmp_path / "plain")
    assert open_checkpoint.compute_fingerprint(linked) == open_checkpoint.compute_fingerprint(tmp_path / "plain")
    assert (found.model, found.decoding, found.tokenizer) == (wanted.model, wanted.decoding, wanted.tokenizer)
    assert all(torch.equal(found.weights[name], weight) for name, weight in wanted.weights.items())
