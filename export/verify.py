"""Compares a bundle with PyTorch on held-out prompts: python -m export.verify student.bundle --ckpt student.pt"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from tqdm import tqdm

from runtime.backend import Backend, Inspectable
from runtime.bundle.store import Bundle, Engine, read, verify_files
from runtime.cli import DONE, FAILED, make_cli_parser, option, print_json, run
from runtime.contract import Contract
from runtime.decoding.options import Request
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.registry import DEVICES, OpenOptions, choose_engines
from runtime.engines.trt.cuda import load_cuda
from runtime.errors import DeviceError, UserError
from train import open_checkpoint
from train.checkpoint import Checkpoint
from train.cli_options import RAW_OPTION, add_directory_options, make_overrides
from train.data import prompts
from train.huggingface.families import Overrides
from train.torch_backend import TorchBackend, limit_threads

from .graph.ort_graph import ComparedWith, choose_comparison
from .precisions import PRECISIONS
from .proof.compare import EXACT, Parity, compare
from .proof.held_out import DATA_HELP, make_held_out_requests, take_held_out_texts
from .proof.instrumented import load_instrumented
from .proof.log_prob_gaps import NOTICED
from .proof.quantized_reference import QuantizedBackend, compute_whole_bound
from .quantization.ort_formats import ORT_FORMATS, choose_formats


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: verify(parse_options(argv)))


OPTIONS = (
    option("bundle", type=Path, metavar="BUNDLE", help="bundle, a folder that blockstep export wrote"),
    option(
        "--ckpt",
        type=Path,
        required=True,
        help="checkpoint that the bundle was exported from: a .pt file or a Hugging Face directory",
    ),
    option(
        "--engine", help="name of an engine in the bundle (default: the first of ONNX Runtime that runs on the device)"
    ),
    option("--device", choices=DEVICES, default="cpu", help="device of an ONNX Runtime engine (default: cpu)"),
    option(
        "--prompts",
        type=int,
        default=200,
        help="number of held-out prompts, at most the lines of --data (default: 200)",
    ),
    option("--task", default="math,code", help="sample tasks of the prompts, with commas (default: math,code)"),
    option("--data", type=Path, help=DATA_HELP),
    option(
        "--trust-engine",
        action="store_true",
        help="load a TensorRT engine that this machine did not build (default: refuse it)",
    ),
    option("--json", action="store_true", help="print one JSON object; the checks go to stderr"),
    RAW_OPTION,
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = (
        "Compares a bundle's engine with PyTorch, step by step and answer by answer. `blockstep verify` does so "
        "without PyTorch, with what was recorded at the export. "
    )
    bounds = ", ".join(f"{each.log_prob:g} in {each.name}" for each in PRECISIONS.values())
    entropies = ", ".join(f"{row.entropy:g} in {row.name}" for row in PRECISIONS.values() if row.entropy < math.inf)
    bounds = (
        f"Exit 1 if the top-1 token's log-probability differs by more nats than {bounds} (for ONNX Runtime's "
        f"{' and '.join(ORT_FORMATS)}: by more than twice what that arithmetic loses in PyTorch, or in the dialect "
        "standard by more than in fp16, compared with the numbers that it stores), or the entropy by more than "
        f"{entropies}; in fp32 also if the log-probability of any token above e^{NOTICED:g} differs by more than "
        f"{EXACT:g}, keys or values by more than {EXACT:g} of their root mean square (or of 1), another token is the "
        "top-1 token, or any answer differs. A NaN always fails. Tokens other than the top-1 are compared in the "
        "instrumented graph, which has the logits as one more output and has to equal the shipped one otherwise."
    )
    p = make_cli_parser("export.verify", what + bounds, OPTIONS)
    add_directory_options(p)
    return p.parse_args(argv)


def verify(args: argparse.Namespace) -> int:
    """Answers the prompts with the engine and with PyTorch, and reports how far they are apart."""
    started, stream = time.perf_counter(), sys.stderr if args.json else sys.stdout
    made = read(args.bundle)
    overrides = complete_overrides(args, made.contract)
    engine = choose_engines(made, args.engine, args.device)[0]
    engine.kind.import_library(args.device)
    source = open_checkpoint.load(args.ckpt, overrides)
    if args.template_args is None:
        source = replace(source, chat_template=made.chat_template)  # with the export's arguments
    check_origin(made, args.ckpt, open_checkpoint.compute_fingerprint(args.ckpt, overrides))
    verify_files(made, engine, "always")
    candidate = open_candidate(made, engine, args.trust_engine, args.device)
    contract = candidate.contract
    problems = take_held_out_texts(args.task, args.data, args.prompts)
    encode, lines = prompts.make_encoder(source, args.raw), [problem.line for problem in problems]
    requests = make_held_out_requests(encode, contract, [problem.prompt for problem in problems], lines)
    if engine.kind.native_code or args.device != "cpu":
        print(f"{engine.name}: {candidate.name}", file=sys.stderr)
    other = choose_comparison(source, engine.dialect, engine.precision)
    arithmetic = make_arithmetic_backend(source, engine, contract, other)
    with report_ort_failure(engine):
        compared = compare_with_pytorch(made, engine, other.source, candidate, requests, arithmetic)
        *_, parity = tqdm(compared, total=len(requests), unit="prompt", disable=None)
    bound = compute_whole_bound(parity.lost) if isinstance(arithmetic, QuantizedBackend) else None
    checks = [other.add_note(check) for check in parity.make_checks(precision=other.precision, bound=bound)]
    if other.note:
        stored = f"; those numbers are up to {parity.lost:.1e} nats from the checkpoint's (no bound)"
        checks[0] = replace(checks[0], detail=checks[0].detail + stored)
    for check in checks:
        print(check, file=stream)
    if args.json:
        summary = {"bundle": str(made.path), "engine": engine.name, "prompts": len(requests), "answers": parity.answers}
        summary |= {"max": asdict(parity.distance), "differing": [asdict(each) for each in parity.differing]}
        summary |= {"checks": [asdict(check) for check in checks], "seconds": round(time.perf_counter() - started, 3)}
        print_json(summary)
    return DONE if all(check.ok for check in checks) else FAILED


def compare_with_pytorch(
    made: Bundle,
    engine: Engine,
    source: Checkpoint,
    candidate: Inspectable,
    requests: Sequence[Request],
    arithmetic: Backend | None,
) -> Iterator[Parity]:
    """Compares the engine with a checkpoint in PyTorch, see `compare`."""
    contract, model = candidate.contract, source.build()
    limit_threads(parameters=sum(each.numel() for each in model.parameters()))
    reference = TorchBackend(model, contract, barred=source.list_missing_ids())
    instrumented = load_instrumented(made.path / engine.graph, candidate) if isinstance(candidate, OrtBackend) else None
    return compare(reference, candidate, requests, gate=engine.gate, instrumented=instrumented, arithmetic=arithmetic)


def make_arithmetic_backend(
    source: Checkpoint, engine: Engine, contract: Contract, other: ComparedWith
) -> Backend | None:
    """Returns one more backend to run, which measures `Parity.lost`, or None.

    It has the engine's own arithmetic in PyTorch, or the checkpoint if that is not what the engine is compared with.
    """
    if formats := choose_formats(engine.dialect, engine.precision, source):
        return QuantizedBackend(source, contract, formats)
    return TorchBackend(source.build(), contract, barred=source.list_missing_ids()) if other.note else None


def open_candidate(made: Bundle, engine: Engine, trust: bool, device: str = "cpu") -> Inspectable:
    """Opens the engine or, for a TensorRT engine without a GPU, its graph in ONNX Runtime on the CPU."""
    if engine.build is None or has_gpu():
        spinning = engine.kind.native_code  # ONNX Runtime's threads must not spin: PyTorch and the engine take turns
        options = OpenOptions(device, trust_engine=trust, allow_spinning=spinning)
        _, backend = engine.kind.open(made, [engine], options)
        return cast(Inspectable, backend)
    if not (runs := PRECISIONS[engine.precision].on_cpu) or engine.batch > 1:
        what = f"batches of {engine.batch}" if runs else f"graphs of {engine.precision}"
        raise UserError(
            f"{engine.name} cannot be compared here: ONNX Runtime's CPU does not run {what}; verify it on the GPU"
        )
    contract = replace(made.contract, capacity=engine.build.capacity)
    return OrtBackend(made.path / engine.graph, contract, files=engine.files, allow_spinning=False)


@contextmanager
def report_ort_failure(engine: Engine) -> Iterator[None]:
    """Raises UserError if ONNX Runtime's CPU fails at a TensorRT engine's graph: the engine itself may be right."""
    try:
        yield
    except DeviceError as error:
        if engine.build is None or has_gpu():
            raise
        raise UserError(f"{engine.name} cannot be compared here: {error}; verify it on the GPU") from None


def has_gpu() -> bool:
    """Returns whether there is a GPU, and cuda-python to reach it."""
    try:
        return load_cuda().find_gpu() is not None
    except UserError:
        return False


def complete_overrides(args: argparse.Namespace, contract: Contract) -> Overrides:
    """Returns the given overrides; for a directory, the others are taken from the bundle's contract."""
    given = make_overrides(args)
    if not args.ckpt.is_dir():
        return given
    names = ("block", "canvas", "alignment", "attention", "mask_id", "eos_ids", "shift")
    return replace(given, **{name: getattr(contract, name) for name in names if getattr(given, name) is None})


def check_origin(made: Bundle, ckpt: Path, fingerprint: str) -> None:
    """Raises UserError if the bundle came from another checkpoint."""
    if made.provenance.get("checkpoint_sha256") != fingerprint:
        raise UserError(f"{made.path} was not exported from {ckpt}; give the checkpoint it is from, or export again")


if __name__ == "__main__":
    sys.exit(main())
