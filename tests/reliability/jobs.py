"""The commands that leave something behind, each small and over what an earlier run left: what faults are tried on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pupils import LINES, make_teacher

from runtime.bundle.store import hash_file, read, verify_files
from train.data.trajectories import count_right
from train.open_checkpoint import load
from train.storage.student_pt import save

FEW = "--count 8 --shard 4 --batch 4 --temperatures 0 --no-bf16"
SHORT = "--no-only-right --steps 3 --save-every 2 --batch 2 --no-bf16 --learning-rate 1e-2"
BUNDLE = "student.bundle"


@dataclass(frozen=True, slots=True)
class Job:
    """A command in a folder.

    before: fills the folder with what an earlier run left; main: runs the command, returns its exit code; whole: what
    stands there of each artefact, in a few words by name, and raises for one that is damaged.
    """

    name: str
    before: Callable[[Path], object]
    main: Callable[[Path], int]
    whole: Callable[[Path], dict[str, str]]


def jobs(given: Path) -> dict[str, Job]:
    """All of them; `given` is a folder with what they read, see `prepare`."""
    student, older = given / "student.pt", given / "older.pt"
    return {
        "collect": Job("train.collect", lambda f: collect(given, f, 1), lambda f: collect(given, f), shards),
        "distil": Job(
            "train.distill to a file",
            lambda f: save(make_teacher(16, 1), f / "student.pt"),
            lambda f: distill(given, f / "student.pt", 0),
            lambda f: checkpoint(f / "student.pt"),
        ),
        "directory": Job(
            "train.distill to a directory",
            lambda f: distill(given, f / "student", 1),
            lambda f: distill(given, f / "student", 0),
            lambda f: checkpoint(f / "student"),
        ),
        "export": Job("export.onnx", lambda f: export(older, f), lambda f: export(student, f), bundle),
        "engine": Job("export.trt", lambda f: engine(student, f, 86), lambda f: engine(student, f, 89), bundle),
    }


def prepare(given: Path) -> None:
    """Fills a folder with data, an untrained teacher, two students and trajectories, all of a few kilobytes."""
    (given / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    save(make_teacher(16, 0), given / "teacher.pt")
    for name, seed in (("student", 2), ("older", 3)):
        how = {"attention": "block_causal", "gate": {"threshold": 0.9}, "shift": False}
        save(make_teacher(16, seed, **how), given / f"{name}.pt")
    (given / "trajectories").mkdir()
    collect(given, given / "trajectories")


def collect(given: Path, folder: Path, keep: int | None = None) -> int:
    """All shards, or the first ones, as a run leaves them that was stopped."""
    from train import collect

    words = f"--ckpt {given}/teacher.pt --data {given}/own.jsonl {FEW} --out {folder}"
    code = collect.main(words.split())
    for path in sorted(folder.glob("shard-*"))[keep:] if keep else []:
        path.unlink()
    return code


def distill(given: Path, out: Path, seed: int) -> int:
    from train import distill

    words = f"--teacher {given}/teacher.pt --trajectories {given}/trajectories --data {given}/own.jsonl {SHORT}"
    return distill.main([*words.split(), "--seed", str(seed), "--out", str(out)])


def export(ckpt: Path, folder: Path, *options: str) -> int:
    from export import onnx

    return onnx.main(["--ckpt", str(ckpt), "--out", str(folder / BUNDLE), *options])


def engine(ckpt: Path, folder: Path, capability: int) -> int:
    from export import trt

    words = f"--ckpt {ckpt} --out {folder / BUNDLE} --flavor rtx --compute-capability {capability}"
    return trt.main(words.split())


def shards(folder: Path) -> dict[str, str]:
    found = sorted(folder.glob("shard-*.safetensors"))
    return {path.name: f"{count_right(path)[1]} trajectories, {hash_file(path)}" for path in found}


def checkpoint(path: Path) -> dict[str, str]:
    made = load(path)
    digest = hashlib.sha256(repr(made.decoding).encode())
    for name in sorted(made.weights):
        digest.update(made.weights[name].float().numpy().tobytes())
    return {path.name: digest.hexdigest()}


def bundle(folder: Path) -> dict[str, str]:
    made = read(folder / BUNDLE)
    for engine in made.engines:
        verify_files(made, engine, "always")
    engines = sorted(f"{engine.name} for {engine.target}" for engine in made.engines)
    return {BUNDLE: f"{', '.join(engines)}, of {made.provenance['checkpoint_sha256']}"}
