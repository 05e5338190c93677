"""Proves a bundle's engine on this machine, without PyTorch: python -m runtime.verify student.bundle"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .cli import DONE, ENGINE_OPTIONS, FAILED, make_cli_parser, option, print_json, run
from .engines.registry import OpenOptions
from .proof.bundle_proof import prove_bundle


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: verify(parse_options(argv)))


OPTIONS = (
    option("bundle", type=Path, metavar="BUNDLE", help="bundle, a folder that blockstep export onnx wrote"),
    option("--json", action="store_true", help="print one JSON object; the checks go to stderr"),
    *(each for each in ENGINE_OPTIONS if each[0] != "--verify"),
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = (
        "Replays the forward passes and answers that PyTorch computed when the bundle was exported, and compares. It "
        "needs numpy and the engine, neither PyTorch nor the checkpoint, so it runs on every machine that runs the "
        "bundle; `blockstep export verify` compares with PyTorch itself, on any prompts and in every token's "
        "probability. Exit 1 if a bound is exceeded, 2 for a bundle without a recorded reference."
    )
    return make_cli_parser(f"{__package__}.verify", what, OPTIONS).parse_args(argv)


def verify(args: argparse.Namespace) -> int:
    """Opens the engine without the proof of a first load, replays the whole reference and prints the checks."""
    started, stream = time.perf_counter(), sys.stderr if args.json else sys.stdout
    opened = OpenOptions(args.device, args.threads, args.trust_engine, args.allow_spinning)
    proof = prove_bundle(args.bundle, args.engine, opened)
    seconds = time.perf_counter() - started
    for check in proof.checks:
        print(check, file=stream)
    what = f"{proof.forwards} forward passes, {proof.rows} logits rows"
    print(f"{proof.engine} on {proof.backend}: {what}, {seconds:.1f} s", file=stream)
    if args.json:
        print_json({"bundle": str(args.bundle), **asdict(proof), "seconds": round(seconds, 3)})
    return DONE if proof.ok else FAILED


if __name__ == "__main__":
    sys.exit(main())
