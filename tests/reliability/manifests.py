"""Manifests with damage in their values or bytes: read, and where that succeeds loaded and asked."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from corpus import GOLDEN, PROMPT, TOKENS, copied, manifest, sound, untried
from mutants import of_bytes, of_json
from section import Section
from tally import tallied

from runtime.bundle.manifest import Bundle, read

SEEDS = ("ort.bundle", "before-build.bundle", "trt.bundle")
FULL = 6000


def run(scale: float) -> Section:
    return tallied("Manifests", "manifests", int(FULL * scale))


def kind(number: int) -> str:
    return "bytes changed" if number % 4 == 0 else "values changed"


def make(number: int, folder: Path) -> Path:
    rng = random.Random(f"manifest {number}")
    bundle = copied(SEEDS[number % len(SEEDS)], folder)
    file = bundle / "manifest.json"
    if kind(number) == "bytes changed":
        file.write_bytes(of_bytes(rng, file.read_bytes()))
    else:
        file.write_bytes(of_json(rng, manifest(bundle)).encode("utf-8", "surrogateescape"))
    return bundle


def attempt(number: int, folder: Path) -> str:
    bundle = make(number, folder)
    made, older = read(bundle), original(bundle.name)
    flat(made)
    if bundle.name == "trt.bundle":
        return "read" if made.find_engines("trt") else ""
    model = untried(bundle)
    answer = model.generate(PROMPT, max_new_tokens=TOKENS, raw=True)
    sound(model.contract, answer.result.token_ids, answer.result.finish, answer.result.steps)
    if (made.contract, made.engines[0].gate) != (older.contract, older.engines[0].gate):
        return "answered by its changed contract"
    expected = answer_of(bundle.name)
    assert answer.result.token_ids == expected, f"{answer.result.token_ids}, expected {expected}"
    return "the same answer"


def flat(made: Bundle) -> None:
    """No name of a file leads out of the bundle."""
    names = [*made.texts, made.tokenizer.name, *(name for engine in made.engines for name in engine.files)]
    assert all(Path(name).name == name and not name.startswith(".") for name in names), names


@cache
def original(name: str) -> Bundle:
    return read(GOLDEN / name)


@cache
def answer_of(name: str) -> tuple[int, ...]:
    return untried(GOLDEN / name).generate(PROMPT, max_new_tokens=TOKENS, raw=True).result.token_ids
