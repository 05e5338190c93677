"""student.pt with damage in its bytes, pickle or values, or a payload in its pickle: read, built and asked."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import GOLDEN, PROMPT, TOKENS, sound
from mutants import ODD, of_bytes
from section import Section
from tally import tallied

from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from train.checkpoint import Checkpoint
from train.open_checkpoint import load
from train.storage.safe_torch_load import read
from train.torch_backend import TorchBackend, derive_contract

FULL = 4000
SEEDS = ("student.pt", "student-without-rope-scaling.pt")
KINDS = (
    "bytes changed",
    "pickle changed",
    "values changed",
    "tensors changed",
    "pickle changed",
    "a payload in its pickle",
)


def run(scale: float) -> Section:
    return tallied("Checkpoints (student.pt)", "checkpoints", int(FULL * scale))


def kind(number: int) -> str:
    return KINDS[number % len(KINDS)]


def make(number: int, folder: Path) -> Path:
    rng, what = random.Random(f"checkpoint {number}"), kind(number)
    source, file = GOLDEN / SEEDS[rng.randrange(2)], folder / "student.pt"
    if what.startswith("bytes"):
        file.write_bytes(of_bytes(rng, source.read_bytes(), front=4000))
    elif what.startswith("pickle"):
        packed(source, file, lambda content: of_bytes(rng, content))
    elif what.startswith("a payload"):
        state = read(source)
        planted(rng, state, Payload(rng, folder / "marker"))
        torch.save(state, file)
    else:
        state = read(source)
        (change_values if what.startswith("values") else change_tensors)(rng, state)
        torch.save(state, file)
    return file


def packed(source: Path, target: Path, change: Any) -> None:
    """A copy with its pickle changed, its checksums right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for part in old.infolist():
            content = old.read(part)
            new.writestr(part.filename, change(content) if part.filename.endswith("data.pkl") else content)


class Payload:
    """Unpickled without care, it calls something that leaves a file behind."""

    def __init__(self, rng: random.Random, marker: Path) -> None:
        self.call = rng.choice(
            (
                (os.system, (f"touch {marker}",)), (Path.touch, (marker,)), (os.mkdir, (str(marker),)),
                (exec, (f"open({str(marker)!r}, 'w')",)), (eval, (f"open({str(marker)!r}, 'w')",)),
                (open, (str(marker), "w")), (io.open, (str(marker), "w")), (os.open, (str(marker), os.O_CREAT)),
                (torch.load, (str(marker),)), (torch.save, ([], str(marker))), (pickle.loads, (b"cos\nsystem\n.",)),
                (__import__, ("antigravity",)), (getattr, ("", "join")), (np.save, (str(marker), 0)),
                (torch.storage._load_from_bytes, (pickle.dumps([]),)), (torch.jit.load, (str(marker),)),
            )
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def planted(rng: random.Random, state: dict[str, Any], payload: Payload) -> None:
    """Puts it somewhere among a checkpoint's values."""
    holder = rng.choice((state, state["config"], state["model"]))
    holder[rng.choice([*holder, "more"])] = rng.choice((payload, [payload], {"a": payload}))


def change_values(rng: random.Random, state: dict[str, Any]) -> None:
    for _ in range(rng.choice((1, 1, 2))):
        config = state.get("config")
        holder = rng.choice((state, config, config, config))
        if not isinstance(holder, dict) or not holder:
            return
        name, value = rng.choice(list(holder)), rng.choice(ODD)
        if rng.random() < 0.15:
            del holder[name]
        elif isinstance(holder[name], int | float) and not isinstance(holder[name], bool) and rng.random() < 0.6:
            holder[name] = holder[name] * rng.choice((2, -1, 0.5, 1.5)) + rng.choice((0, 1, -1))
        else:
            holder[rng.choice((name, name, "more"))] = value
        if rng.random() < 0.05:  # small on disk, and without end when it is written out
            nested: list[Any] = ["x"]
            for _ in range(40):
                nested = [nested, nested]
            holder[name] = nested


def change_tensors(rng: random.Random, state: dict[str, Any]) -> None:
    weights = state["model"]
    name = rng.choice(list(weights))
    old, other = weights[name], weights[rng.choice(list(weights))]
    weights[name] = rng.choice(
        (
            lambda: old.to(torch.float16), lambda: old.to(torch.int8), lambda: old.to(torch.complex64),
            lambda: old.to_sparse(), lambda: old[:1].expand(2**20, *old.shape[1:]),
            lambda: torch.zeros(1).expand(2**40), lambda: old.flatten(), lambda: old[..., :-1], lambda: other,
            lambda: old.t() if old.dim() == 2 else old[::2],
            lambda: old * float("nan"), lambda: old * float("inf"), lambda: torch.empty(old.shape, device="meta"),
            lambda: torch.nn.Parameter(old), lambda: old.double(), lambda: torch.zeros(0), lambda: old.tolist(),
            lambda: torch.quantize_per_tensor(old, 0.1, 0, torch.quint8), lambda: old.to(torch.float8_e4m3fn),
        )
    )()  # fmt: skip
    if rng.random() < 0.2:
        weights[rng.choice(("more", "layers.9.mlp.up_proj.weight", ""))] = weights.pop(name)


def attempt(number: int, folder: Path) -> str:
    file = make(number, folder)
    marker = folder / "marker"
    if not kind(number).startswith("a payload"):
        return asked(load(file))
    try:
        made = load(file)
    finally:
        assert not marker.exists(), "the payload ran"
    return asked(made)


def asked(made: Checkpoint) -> str:
    """What a checkpoint answers; where all that decides it is as it was, the answer has to be too."""
    backend = TorchBackend(made.build(), derive_contract(made))
    ids = made.read_tokenizer().encode(PROMPT, add_special_tokens=False).ids
    answer = generate(backend, Request(np.array(ids, np.int64), DecodeOptions(TOKENS)))
    sound(backend.contract, answer.token_ids, answer.finish, answer.steps)
    older, expected = original()
    same = made.weights.keys() == older.weights.keys() and all(
        torch.equal(made.weights[name], older.weights[name]) for name in older.weights
    )
    if not same or (made.model, made.decoding, made.tokenizer) != (older.model, older.decoding, older.tokenizer):
        return "answered as another model"
    assert answer.token_ids == expected, f"{answer.token_ids}, expected {expected}"
    return "the same answer"


@cache
def original() -> tuple[Checkpoint, tuple[int, ...]]:
    made = load(GOLDEN / "student.pt")
    ids = made.read_tokenizer().encode(PROMPT, add_special_tokens=False).ids
    backend = TorchBackend(made.build(), derive_contract(made))
    return made, generate(backend, Request(np.array(ids, np.int64), DecodeOptions(TOKENS))).token_ids
