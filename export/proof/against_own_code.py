"""Compares an exported graph with a Hugging Face directory's own modelling code, which runs in a process of its own.

The logits of the forward passes that decode a prompt are compared. Each pass is turned into one without a KV cache, by
adding the tokens and attention prefix lengths of the cached positions. So it does not matter how a family's own code
generates.
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

BLOCKS = 2  # maximum of blocks per answer
QUIET = {  # the process's environment: it reads only local files and sends no telemetry
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DecodedAnswer:
    """Holds the exported graph's answer to a prompt of `prompt` tokens. inputs: numbers of the recorded files."""

    prompt: int
    tokens: tuple[int, ...]
    finish: str
    forwards: int
    inputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Holds how far two sets of logits are apart.

    Args:
        inputs, rows: how many were compared.
        tokens: how often the top-1 token differs.
        margin: the largest lead, in probability, of the own code's top-1 token over the graph's.
        log_prob: the largest difference of the top-1 token's log-probability, nats.
        every_log_prob: the same over every token above NOTICED on either side, nats.
    """

    inputs: int = 0
    rows: int = 0
    tokens: int = 0
    margin: float = 0.0
    log_prob: float = 0.0
    every_log_prob: float = 0.0


class InputWriter:
    """Runs a backend, and writes the inputs of its forward passes 0, 1, 3, 7, ... as if they had no KV cache.

    A file is `NNN.npz` with ids and visible [length], rows [n] and the graph's logits fp32 [n, vocab].
    """

    def __init__(self, inner: OrtBackend, folder: Path) -> None:
        self.inner, self.folder, self.contract, self.name = inner, folder, inner.contract, inner.name
        self.written: list[int] = []
        self._count, self._next = 0, 0
        self._ids = self._visible = np.zeros(0, np.int64)  # per position, as in its last forward pass

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
) -> list[DecodedAnswer]:
    """Answers requests with the graph in a bundle's folder; loads only its instrumented graph."""
    graph = onnx.load(folder / engine.model, load_external_data=False)
    add_logits(graph, contract.vocab)
    onnx.save(graph, file := folder / "instrumented.onnx")
    writer, decoded = InputWriter(OrtBackend(file, contract), inputs), []
    for request in requests:
        wanted = min(request.options.max_new_tokens or contract.block, BLOCKS * contract.block)
        limited = replace(request, options=replace(request.options, max_new_tokens=wanted))
        result = generate(writer, limited, gate=engine.gate)
        done = (len(request.prompt), tuple(result.token_ids), result.finish, result.forwards)
        decoded.append(DecodedAnswer(*done, tuple(writer.written)))
    return decoded


def run_own_code(python: str, directory: Path, inputs: Path, trust: bool) -> dict[str, Any]:
    """Runs the directory's code over the inputs; returns what `own_code` reports.

    Without `trust`, no file of the directory is run, only a class of transformers.
    """
    program = shutil.copy(own_code.__file__, inputs / "own_code.py")  # Python imports from its folder first
    environment = {**os.environ, **QUIET, "HF_MODULES_CACHE": str(inputs / "modules")}
    words = [python, str(program), str(directory.resolve()), str(inputs), str(int(trust))]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace", check=False)
    try:
        found: dict[str, Any] = json.loads((inputs / "own.json").read_text())
        return found
    except (OSError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]
        return {"refused": f"its process ended with exit code {done.returncode}: {last}"}


def measure_agreement(inputs: Path, numbers: Sequence[int], contract: Contract, barred: Sequence[int]) -> Agreement:
    """Compares the logits of some inputs; tokens that are never proposed are left out."""
    found, never = Agreement(), [contract.mask_id, *barred]
    for number in numbers:
        ours = log_probs(np.load(inputs / f"{number:03}.npz")["logits"], never)
        theirs = log_probs(np.load(inputs / f"{number:03}.own.npy")[:, : contract.vocab], never)
        best, rows = theirs.argmax(-1), np.arange(len(theirs))
        other = ours.argmax(-1)
        lead = np.exp(theirs[rows, best]) - np.exp(theirs[rows, other])  # 0 if they are the same
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
    """Returns log-probabilities [n, vocab]; those of the tokens in `never` are a number below NOTICED."""
    scores = logits.astype(np.float64)
    scores[:, list(never)] = -np.inf
    scores -= scores.max(-1, keepdims=True)
    out: NDArray[np.float64] = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    out[:, list(never)] = 2 * NOTICED
    return out
