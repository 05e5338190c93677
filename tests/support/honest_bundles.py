"""Writes the bundles that honest_loads.py opens: python tests/support/honest_bundles.py DIR [OPERATIONS]

Three models in every precision of ONNX Runtime's CPU, each engine with the reference that an export records. The other
checks of an export are left out, and a first load replays OPERATIONS floating-point operations (default: the export's
2e10, which takes an emulated CPU minutes), but two forward passes at least.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import tiny

from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import ORT_PRECISIONS, write_ort_graph
from export.proof import record
from export.proof.held_out import make_recorded_requests
from export.provenance import derive_shape
from export.quantization.ort_formats import choose_formats
from runtime.bundle.manifest import Engine
from runtime.bundle.store import write
from runtime.contract import Contract
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_backend import OrtBackend
from train import open_checkpoint
from train.checkpoint import Checkpoint
from train.torch_backend import limit_threads
from train.transformer.network import ModelConfig

SAMPLES = Path(__file__).parents[2] / "samples"
# Of a model with full attention, whose forward passes are over the prompt and the canvas: positions, prompts, tokens.
FULL_CANVAS, FULL_PROMPTS, FULL_ANSWER = 32, 3, 16
TOP_K = 32  # at most; the random model has fewer tokens
# Of another family: untied head, biases and norms of queries and keys, blocks from the first token on; four layers,
# since int4 leaves the first and last to int8.
OTHER = ModelConfig(tiny.VOCAB, 64, 4, 4, 2, 16, 96, qk_norm=True, qkv_bias=True, tied=False)


def models() -> Iterator[tuple[str, Checkpoint]]:
    """Yields names and checkpoints: block-causal, full attention, random weights of another family."""
    yield "student", open_checkpoint.load(SAMPLES / "student.pt")
    teacher = open_checkpoint.load(SAMPLES / "teacher.pt")
    yield "teacher", replace(teacher, decoding=replace(teacher.decoding, canvas=FULL_CANVAS))
    yield "random", tiny.checkpoint(3, OTHER, alignment="absolute")


def add_engine(source: Checkpoint, contract: Contract, precision: str, path: Path) -> str:
    """Adds an engine with its recorded reference to the bundle at a path. Returns what was recorded."""
    formats, name = choose_formats("ort", precision), f"ort-{precision}"
    origin = {"checkpoint_sha256": path.stem, "shape": asdict(derive_shape(source.model))}
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        files = write_ort_graph(source, contract, precision, Path(place))
        engine = Engine(name, "ort", precision, "cpu", None, files[0].name, {}, {})
        requests = make_recorded_requests(source, contract, None, None)
        if not contract.has_cache:
            requests = [Request(each.prompt, DecodeOptions(FULL_ANSWER)) for each in requests[:FULL_PROMPTS]]
        backend = OrtBackend(files[0], contract, threads=1)
        made = record.record_reference(source, contract, engine, backend, requests, formats, Path(place))
        engine = replace(engine, reference=made.entry)
        write(path, contract, engine, [*files, made.file], source.tokenizer, source.chat_template, origin)
    return f"first load {made.entry.first_load}; {made.check}"


def main(folder: Path, operations: float) -> int:
    """Writes every bundle and returns the exit code: 1 if an engine is off by more than an export allows."""
    record.FIRST_LOAD = operations
    limit_threads()
    failed = 0
    for name, source in models():
        contract = make_export_contract(source, None, min(TOP_K, source.model.vocab - 8))
        for precision in ORT_PRECISIONS:
            started = time.perf_counter()
            found = add_engine(source, contract, precision, folder / f"{name}.bundle")
            failed += "[x]" in found
            print(f"{name} {precision}: {found}, {time.perf_counter() - started:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else record.FIRST_LOAD))
