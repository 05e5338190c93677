"""Compares an exported graph with a Hugging Face directory's own modelling code, which runs in a process of its own.

What is compared are logits of the same inputs: those of the forward passes that decode a prompt, whose tokens and
attention prefixes are put together from the KV cache's history to one pass without a KV cache. So it does not matter
how a family's own code generates.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from runtime.backend import Forward, Proposal
from runtime.bundle.manifest import Engine
from runtime.contract import Contract
from runtime.decoding.loop import generate
from runtime.decoding.options import Request
from runtime.engines.ort.ort_backend import OrtBackend

from . import own_code
from .instrumented import add_logits
from .log_prob_gaps import NOTICED

BLOCKS = 2  # that an answer is long at most
QUIET = {  # of the process: it reads what is here, reports to nobody, and leaves no copy of the code
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decoded:
    """A prompt's answer by the exported graph, and the numbers of the inputs that were recorded of it."""

    prompt: int
    tokens: tuple[int, ...]
    finish: str
    forwards: int
    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two sets of logits are apart.

    Args:
        inputs, rows: how many were compared.
        tokens: how often the best token differs.
        margin: by how much probability the own code prefers its own there, at most.
        log_prob: the largest difference of the best token's log-probability, nats.
        every_log_prob: of any token's above NOTICED on either side.
    """

    inputs: int = 0
    rows: int = 0
    tokens: int = 0
    margin: float = 0.0
    log_prob: float = 0.0
    every_log_prob: float = 0.0


class Recorder:
    """A backend that writes the inputs of some forward passes, the first and later ones ever more rarely, as if they
    had no KV cache: `NNN.npz` with ids and visible [length], rows [n] and the graph's logits fp32 [n, vocab]."""

    def __init__(self, inner: OrtBackend, folder: Path) -> None:
        self.inner, self.folder, self.contract, self.name = inner, folder, inner.contract, inner.name
        self.written: list[int] = []
        self._count, self._next = 0, 0
        self._ids = self._visible = np.zeros(0, np.int64)  # of every position, as last run

    def open(self, batch: int, capacity: int) -> None:
        self.inner.open(batch, capacity)
        self._ids, self._visible = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self._count, self.written = 0, []

    def forward(self, forward: Forward) -> Proposal:
        out = self.inner.forward(forward)
        past = int(forward.past_length[0])
        end = past + forward.input_ids.shape[1]
        self._ids[past:end], self._visible[past:end] = forward.input_ids[0], forward.visible[0]
        if self._count & (self._count + 1) == 0:  # forward passes 0, 1, 3, 7, ...
            arrays = {"ids": self._ids[:end], "visible": self._visible[:end], "rows": past + forward.rows[0]}
            np.savez(self.folder / f"{self._next:03}.npz", **arrays, logits=self.inner.last_logits[0])
            self.written.append(self._next)
            self._next += 1
        self._count += 1
        return out

    def keep(self, rows: NDArray[Any]) -> None:
        self.inner.keep(rows)


def decode(
    folder: Path, engine: Engine, contract: Contract, requests: Sequence[Request], inputs: Path
) -> list[Decoded]:
    """Answers the requests with the graph of a bundle's folder, of which only its instrumented form is loaded."""
    graph = onnx.load(folder / engine.model, load_external_data=False)
    add_logits(graph, contract.vocab)
    onnx.save(graph, file := folder / "instrumented.onnx")
    recorder, decoded = Recorder(OrtBackend(file, contract), inputs), []
    for request in requests:
        wanted = min(request.options.max_new_tokens or contract.block, BLOCKS * contract.block)
        asked = replace(request, options=replace(request.options, max_new_tokens=wanted))
        result = generate(recorder, asked, gate=engine.gate)
        done = (len(request.prompt), tuple(result.token_ids), result.finish, result.forwards)
        decoded.append(Decoded(*done, tuple(recorder.written)))
    return decoded


def run_own_code(python: str, directory: Path, inputs: Path, trust: bool) -> dict[str, Any]:
    """Runs the directory's code over the inputs; returns what `own_code` reports of it.

    Without `trust` no file of the directory is run: only a class of transformers is.
    """
    program = shutil.copy(own_code.__file__, inputs / "own_code.py")  # its folder is where Python looks first
    environment = {**os.environ, **QUIET, "HF_MODULES_CACHE": str(inputs / "modules")}
    words = [python, str(program), str(directory.resolve()), str(inputs), str(int(trust))]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace", check=False)
    try:
        found: dict[str, Any] = json.loads((inputs / "own.json").read_text())
        return found
    except (OSError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
        return {"refused": f"its process ended with exit code {done.returncode}: {last}"}


def agreement(inputs: Path, numbers: Sequence[int], contract: Contract, barred: Sequence[int]) -> Agreement:
    """Compares the logits of some inputs, tokens that are never proposed left out."""
    found, never = Agreement(), [contract.mask_id, *barred]
    for number in numbers:
        ours = log_probs(np.load(inputs / f"{number:03}.npz")["logits"], never)
        theirs = log_probs(np.load(inputs / f"{number:03}.own.npy")[:, : contract.vocab], never)
        best, rows = theirs.argmax(-1), np.arange(len(theirs))
        other = ours.argmax(-1)
        lead = np.exp(theirs[rows, best]) - np.exp(theirs[rows, other])  # 0 where they are the same
        apart = np.where((ours < NOTICED) & (theirs < NOTICED), 0.0, np.abs(ours - theirs))
        found = Agreement(
            found.inputs + 1,
            found.rows + len(rows),
            found.tokens + int((best != other).sum()),
            float(np.max([found.margin, lead.max()])),
            float(np.max([found.log_prob, apart[rows, best].max()])),
            float(np.max([found.every_log_prob, apart.max()])),
        )
    return found


def log_probs(logits: NDArray[np.float32], never: Sequence[int]) -> NDArray[np.float64]:
    """Returns log-probabilities [n, vocab] without some tokens, whose own are a number below NOTICED."""
    scores = logits.astype(np.float64)
    scores[:, list(never)] = -np.inf
    scores -= scores.max(-1, keepdims=True)
    out: NDArray[np.float64] = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    out[:, list(never)] = 2 * NOTICED
    return out
