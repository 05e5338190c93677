"""Proves a bundle's engine on this machine, without PyTorch: python -m runtime.verify student.bundle"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from .backend import Inspectable
from .bundle.manifest import Bundle, Engine, RecordedReference, read
from .bundle.reference import read_reference
from .bundle.store import verify_files
from .cli import DONE, ENGINE_OPTIONS, FAILED, command_parser, option, print_json, run
from .engines.registry import OpenOptions, choose_engines
from .errors import UserError
from .proof.judge import judge, judge_answers, measure
from .proof.replay import replay


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: verify(options(argv)))


OPTIONS = (
    option("bundle", type=Path, metavar="BUNDLE", help="folder that export.onnx wrote"),
    option("--json", action="store_true", help="print one JSON object; the checks go to stderr"),
    *(each for each in ENGINE_OPTIONS if each[0] != "--verify"),
)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = (
        "Replays the forward passes and answers that PyTorch computed when the bundle was exported, and compares. It "
        "needs numpy and the engine, neither PyTorch nor the checkpoint, so it runs wherever the bundle does; "
        "`export verify` compares next to PyTorch, on any prompts and in every token's probability. Exit 1 if a bound "
        "is missed, 2 for a bundle without a recorded reference."
    )
    args = command_parser(f"{__package__}.verify", what, OPTIONS).parse_args(argv)
    if args.threads is not None and args.threads < 1:
        raise UserError(f"threads is {args.threads}; expected at least 1")
    return args


def verify(args: argparse.Namespace) -> int:
    """Opens the engine without the proof of a first load, replays the whole reference and prints what was found."""
    started, stream = time.perf_counter(), sys.stderr if args.json else sys.stdout
    bundle = read(args.bundle)
    engines = choose_engines(bundle, args.engine, args.device)
    kind = engines[0].kind
    reference_of(bundle, next((engine for engine in engines if engine.reference), engines[0]))
    kind.import_library(args.device)
    verify_files(bundle, replace(engines[0], files={}) if kind.native_code else engines[0], "always")
    engine, backend = kind.open(bundle, engines, OpenOptions(args.device, args.threads, args.trust_engine))
    recorded = reference_of(bundle, engine)
    reference = read_reference(bundle.path, recorded, bundle.contract)
    replayed = replay(cast(Inspectable, backend), reference.forwards)
    checks = judge(reference.forwards, replayed, recorded.bounds)
    checks += judge_answers(backend, reference.answers, bundle.contract.gate, recorded.bounds)
    rows, seconds = len(replayed.token), time.perf_counter() - started
    for check in checks:
        print(check, file=stream)
    what = f"{len(reference.forwards)} forward passes, {rows} logits rows"
    print(f"{engine.name} on {backend.name}: {what}, {seconds:.1f} s", file=stream)
    if args.json:
        figures = {name: asdict(figure) for name, figure in measure(reference.forwards, replayed).items()}
        values: dict[str, Any] = {"bundle": str(args.bundle), "engine": engine.name, "backend": backend.name}
        values |= {"forwards": len(reference.forwards), "rows": rows, "answers": len(reference.answers)}
        values |= {"figures": figures, "bounds": dict(recorded.bounds), "checks": [asdict(check) for check in checks]}
        print_json({**values, "seconds": round(seconds, 3)})
    return DONE if all(check.ok for check in checks) else FAILED


def reference_of(bundle: Bundle, engine: Engine) -> RecordedReference:
    """Returns what was recorded of an engine. Raises UserError, naming the command that records it, for nothing."""
    if engine.reference is None and engine.kind.native_code:
        raise UserError(
            f"{engine.name} of {bundle.path} has no recorded reference, as no engine of TensorRT has yet; compare it "
            f"with PyTorch: blockstep export verify {bundle.path} --ckpt CHECKPOINT --engine {engine.name}"
        )
    if engine.reference is None:
        raise UserError(
            f"{engine.name} of {bundle.path} has no recorded reference to be compared with; export it again from its "
            "checkpoint, which records one: blockstep export onnx --ckpt CHECKPOINT --out "
            f"{bundle.path} --precision {engine.precision}"
        )
    return engine.reference


if __name__ == "__main__":
    sys.exit(main())
