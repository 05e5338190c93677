"""The sound files that damage starts from, all of them in tests/golden, and bundles made of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from runtime import load_check
from runtime.contract import Contract
from runtime.model import Model
from runtime.open_bundle import load

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
PROMPT, TOKENS = "Ana has apples.", 8


def copied(name: str, folder: Path) -> Path:
    """A golden file or folder in a folder of its own."""
    source, target = GOLDEN / name, folder / name
    return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target))


def manifest(bundle: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return values


def write_manifest(bundle: Path, values: dict[str, Any]) -> None:
    (bundle / "manifest.json").write_text(json.dumps(values), encoding="utf-8")


def rehash(bundle: Path) -> None:
    """Makes the manifest's hashes those of its files, as whoever tampers with a bundle would."""
    values = manifest(bundle)
    for engine in values["engines"]:
        engine["files"] = {name: digest(bundle / name) for name in engine["files"]}
    for part in ("tokenizer", "chat_template"):
        if values[part]:
            values[part]["sha256"] = digest(bundle / values[part]["file"])
    write_manifest(bundle, values)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def model_file(bundle: Path) -> Path:
    return bundle / str(manifest(bundle)["engines"][0]["model"])


def text_file(bundle: Path, part: str) -> Path:
    return bundle / str(manifest(bundle)[part]["file"])


def untried(bundle: Path) -> Model:
    """The model of a bundle, loaded in this process though nobody knows its files: for a process that may end."""
    known, load_check.attempt = load_check.attempt, lambda *given: None
    try:
        return load(bundle, threads=1, verify="always")
    finally:
        load_check.attempt = known


def sound(contract: Contract, ids: tuple[int, ...], finish: str, steps: int) -> None:
    """What is true of every answer to a request of TOKENS tokens, whatever the model."""
    assert 0 < len(ids) <= TOKENS and finish in ("eos", "length"), (ids, finish)
    assert all(0 <= token < contract.vocab and token != contract.mask_id for token in ids), ids
    blocks = -(-(TOKENS + contract.block) // contract.block)
    assert steps <= contract.block * blocks, steps
    assert (finish == "eos") == (ids[-1] in contract.eos_ids) or len(ids) == TOKENS, (ids, finish)
