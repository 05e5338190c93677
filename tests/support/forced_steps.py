"""Writes what emulated.py needs: the sample in every precision, forward passes, PyTorch's keys and values.

python tests/support/forced_steps.py DIR. The references are PyTorch's own arithmetic of each precision, which no CPU's
int8 kernels reach: right on every machine.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from emulated import compute_mean_norms
from numpy.typing import NDArray

from export.graph.ort_graph import write_ort_graph
from export.proof.quantized_reference import QuantizedBackend
from export.quantization.ort_formats import choose_formats
from runtime.backend import Backend, Floats, Forward, Proposal
from runtime.bundle.store import Bundle, read, write
from runtime.contract import Contract
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.text.tokenizer import Tokenizer
from train import open_checkpoint
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend

SAMPLES = Path(__file__).parents[2] / "samples"
PROMPTS = ("math", "code")
FIRST_LOAD = 7  # forward passes, a sixth of the operations of the whole reference
PRECISIONS = ("fp16", "int8", "int4")  # besides the sample's own fp32


class Recorder:
    """A backend that keeps every forward pass, by answer."""

    name = "recorder"

    def __init__(self, backend: Backend) -> None:
        self._backend, self.answers = backend, list[list[Forward]]()

    @property
    def contract(self) -> Contract:
        return self._backend.contract

    def open(self, batch: int, capacity: int) -> None:
        self._backend.open(batch, capacity)
        self.answers.append([])

    def forward(self, forward: Forward) -> Proposal:
        kept = (forward.input_ids, forward.past_length, forward.visible, forward.rows)
        self.answers[-1].append(Forward(*(part.copy() for part in kept)))  # the decode loop writes into its own
        return self._backend.forward(forward)

    def keep(self, rows: NDArray[np.int64]) -> None:
        self._backend.keep(rows)


def write_sample(folder: Path) -> None:
    """Writes `student.bundle` and `steps.json` into a folder that is made."""
    source = open_checkpoint.load(SAMPLES / "student.pt")
    bundle = write_bundle(source, folder / "student.bundle")
    reference = TorchBackend(source.build(), bundle.contract, barred=source.list_missing_ids())
    answers = record_answers(reference, bundle)
    norms = {"fp32": compute_mean_norms(reference, lambda: stack_cache(reference), answers)}
    norms["fp16"] = norms["fp32"]
    for precision in ("int8", "int4"):
        formats = choose_formats("ort", precision)
        assert formats is not None
        arithmetic = QuantizedBackend(source, bundle.contract, formats)
        norms[precision] = compute_mean_norms(arithmetic, arithmetic.read_cache, answers)
    passes = [
        [[part.tolist() for part in (each.input_ids, each.past_length, each.visible, each.rows)] for each in answer]
        for answer in answers
    ]
    text = json.dumps({"answers": passes, "norms": {name: each.tolist() for name, each in norms.items()}})
    (folder / "steps.json").write_text(text, encoding="utf-8")


def write_bundle(source: Checkpoint, path: Path) -> Bundle:
    """Writes a copy of the sample's bundle with an engine in every precision, without the export's own checks."""
    shutil.copytree(SAMPLES / "student.bundle", path)
    bundle = shorten_first_load(path)
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            files = write_ort_graph(source, bundle.contract, precision, Path(place))
            base = replace(bundle.find_engine("ort"), reference=None)
            engine = replace(base, name=f"ort-{precision}", precision=precision, model=files[0].name)
            write(path, bundle.contract, engine, files, source.tokenizer, source.chat_template, bundle.provenance)
    return read(path)


def shorten_first_load(path: Path) -> Bundle:
    """Lets a first load replay the reference's first sequence alone: all of it takes an emulated Haswell minutes.

    10^9 operations in fp32 take it 11 s, with fused multiply-adds, 8 s without these, and a Nehalem, with SSE, 5 s.
    """
    manifest = path / "manifest.json"
    values = json.loads(manifest.read_text(encoding="utf-8"))
    values["engines"][0]["reference"]["first_load"] = FIRST_LOAD
    manifest.write_text(json.dumps(values), encoding="utf-8")
    return read(path)


def record_answers(reference: TorchBackend, bundle: Bundle) -> list[list[Forward]]:
    """Returns the forward passes of the sample prompts' answers in fp32."""
    recorder, tokenizer = Recorder(reference), Tokenizer(bundle.tokenizer, bundle.chat_template)
    for name in PROMPTS:
        text = (SAMPLES / f"prompt_{name}.txt").read_text(encoding="utf-8").rstrip()
        generate(
            recorder, Request(tokenizer.encode(text), DecodeOptions(bundle.contract.canvas)), gate=bundle.contract.gate
        )
    return recorder.answers


def stack_cache(backend: TorchBackend) -> Floats:
    """Returns PyTorch's KV cache as an engine has it, [2 * layers, 1, kv_heads, capacity, head_dim]."""
    assert backend.cache is not None
    pairs = zip(backend.cache.keys, backend.cache.values, strict=True)
    return np.stack([part.numpy() for pair in pairs for part in pair])


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]))
