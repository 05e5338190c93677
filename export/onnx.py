# Run this as `python -m export.onnx`: if run by its path, this file would be imported in place of the onnx package.
"""Exports a checkpoint for ONNX Runtime, and keeps it only if it is proved: python -m export.onnx --ckpt student.pt"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from runtime.bundle.store import Engine, check_place, write
from runtime.cli import DONE, FAILED, fill_dataclass, make_cli_parser, option, print_json, run
from runtime.contract import Contract
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.ort.ort_cuda import KERNELS
from runtime.engines.registry import DEVICES
from runtime.errors import UserError
from runtime.proof import first_load
from runtime.proof.judge import Check
from train import open_checkpoint
from train.checkpoint import Checkpoint
from train.cli_options import CANDIDATES_OPTION, TOP_K_OPTION, add_directory_options, make_overrides
from train.huggingface.families import Overrides
from train.torch_backend import limit_threads

from .calibration import (
    apply_calibration,
    describe_kept_calibration,
    describe_lost_calibration,
    describe_removed_engines,
    find_bundle,
    keep_mode_order,
)
from .contract_from_checkpoint import CAPACITY, check_template, choose_default_out, make_export_contract
from .graph.ort_graph import PRECISIONS_OF, choose_comparison, write_ort_graph
from .precisions import PRECISIONS
from .proof.held_out import DATA_HELP, make_recorded_requests
from .proof.prove import prove, proves_whole, sample_requests
from .proof.record import record_reference
from .proof.record_streamed import record_streamed
from .provenance import collect_provenance
from .quantization.ort_formats import choose_formats
from .quantization.own_codes import find_own_codes_in_fp16
from .staging import make_working_folder, report_write_errors

HELP = {  # help texts that do not fit on the line of their option below
    "out": (
        "bundle to write, a folder; engines of the same checkpoint in it stay, those of another one are removed "
        "(default: the checkpoint's path with .bundle; for a checkpoint in a download cache, its name in the current "
        "folder)"
    ),
    "precision": (
        "precision of the weights and their products; bf16 for the dialect standard alone (docs/checkpoints.md; "
        "default: fp32)"
    ),
    "dialect": (
        "operators of the graph; ort: ONNX Runtime's own, for CPUs and one sequence at a time; standard: ONNX's, for "
        "CUDA and batches (docs/performance.md; default: standard with --device cuda, else ort)"
    ),
    "parity": (
        "comparison with PyTorch: of the whole model, or layer by layer in less memory (docs/parity.md; default: auto, "
        "by the model's size and the memory here)"
    ),
    "capacity": (
        f"KV-cache capacity, in tokens of prompt and answer (default: {CAPACITY}, or the context if that is shorter)"
    ),
    "task": (
        "sample tasks, with commas, whose prompts the recorded reference has (docs/parity.md; default: math,code if "
        "the tokenizer knows their texts, else texts of its common tokens)"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: export(parse_options(argv)))


PRECISION_NAMES = tuple(dict.fromkeys(name for names in PRECISIONS_OF.values() for name in names))
OPTIONS = (
    option("--ckpt", type=Path, required=True, help="checkpoint: a .pt file or a Hugging Face directory"),
    option("--out", type=Path, help=HELP["out"]),
    option("--precision", choices=PRECISION_NAMES, default="fp32", help=HELP["precision"]),
    option("--device", choices=DEVICES, default="cpu", help="device that the engine is for (default: cpu)"),
    option("--dialect", choices=tuple(PRECISIONS_OF), help=HELP["dialect"]),
    option("--parity", choices=("auto", "whole", "layers"), default="auto", help=HELP["parity"]),
    option("--capacity", type=int, help=HELP["capacity"]),
    option("--task", help=HELP["task"]),
    option("--data", type=Path, help=DATA_HELP),
    TOP_K_OPTION,
    CANDIDATES_OPTION,
    option("--json", action="store_true", help="print one JSON object; the checks go to stderr"),
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    p = make_cli_parser(
        "export.onnx", "Exports a checkpoint to a bundle for ONNX Runtime and checks its parity with PyTorch.", OPTIONS
    )
    add_directory_options(p)
    args = p.parse_args(argv)
    args.dialect = args.dialect or ("standard" if args.device == "cuda" else "ort")
    check_precision(args.dialect, args.precision, args.device)
    return args


def check_precision(dialect: str, precision: str, device: str) -> None:
    """Raises UserError for a precision that a dialect, or CUDA with that dialect, does not have."""
    known = PRECISIONS_OF[dialect]
    if precision not in known:
        raise UserError(f"--precision is {precision}; the dialect {dialect} has {', '.join(known)}")
    if device == "cuda" and precision not in (kernels := KERNELS[device][dialect]):
        raise UserError(
            f"CUDA has kernels for {', '.join(kernels)} in the dialect {dialect}, not for {precision}; leave --dialect "
            "out: standard has all"
        )


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """Holds the options of an export. Fields are named as the command's options.

    overrides: how a Hugging Face directory is read. In the other fields, None means the option's default.
    """

    ckpt: Path
    overrides: Overrides
    precision: str = "fp32"
    dialect: str = "ort"
    parity: str = "auto"
    capacity: int | None = None
    task: str | None = None
    data: Path | None = None
    top_k: int = 0
    candidates: int = 0


def export(args: argparse.Namespace) -> int:
    """Runs the export that the command's options describe, prints its result, and returns the exit code."""
    started, stream = time.perf_counter(), sys.stderr if args.json else sys.stdout
    out = args.out or choose_default_out(args.adapter or args.ckpt)
    checks = write_bundle(fill_dataclass(OnnxOptions, args, overrides=make_overrides(args)), out, stream)
    failed = not all(check.ok for check in checks)
    print(f"nothing was written, {out} is as it was" if failed else f"wrote {out}", file=stream)
    if args.json:
        summary = {"bundle": None if failed else str(out), "checks": [asdict(check) for check in checks]}
        print_json({**summary, "seconds": round(time.perf_counter() - started, 3)})
    return FAILED if failed else DONE


def write_bundle(options: OnnxOptions, out: Path, stream: TextIO) -> list[Check]:
    """Traces and checks an engine, and adds it to the bundle `out` if every check passes.

    Prints the checks to `stream` and returns them. Raises UserError for bad options.
    """
    limit_threads()
    source = open_checkpoint.load(options.ckpt, options.overrides)
    check_template(source)
    if options.dialect != "ort" and options.precision == "int4":
        find_own_codes_in_fp16(source, options.dialect)  # raises UserError if weights would be rounded again
    formats = choose_formats(options.dialect, options.precision, source)
    contract = make_export_contract(source, options.capacity, options.top_k, options.candidates)
    origin = collect_provenance(options.ckpt, options.overrides, source)
    target = "cpu" if options.dialect == "ort" else "any"
    new_engine = Engine(
        f"{options.dialect}-{options.precision}", options.dialect, options.precision, target, None, "", {}, {},
        decision_temperature=source.decoding.decision_temperature,
    )  # fmt: skip
    old_bundle = find_bundle(out, origin)
    contract, engine = keep_mode_order(old_bundle, contract), apply_calibration(old_bundle, contract, new_engine)
    notes = [
        *describe_kept_calibration(new_engine, engine),
        *describe_lost_calibration(out, engine, origin),
        *describe_removed_engines(out, engine, origin),
    ]
    with report_write_errors(out):
        check_place(out, contract, engine, origin)
    checks: list[Check] = []
    with make_working_folder(out) as folder:
        with report_write_errors(out):
            files = write_ort_graph(source, contract, options.precision, folder, dialect=options.dialect)
        comparison = choose_comparison(source, options.dialect, options.precision)
        for check in prove(comparison.source, contract, files[0], comparison.precision, options.parity, formats):
            check = check if check.name == "graph" else comparison.add_note(check)
            checks.append(check)
            print(check, file=stream, flush=True)
        engine = replace(engine, model=files[0].name)
        if all(check.ok for check in checks):
            engine, check = add_reference(comparison.source, contract, engine, options, folder)
            checks.append(check)
            print(check, file=stream, flush=True)
        if all(check.ok for check in checks):
            engine = replace(engine, parity={check.name: check.detail for check in checks})
            files += [folder / engine.reference.file] if engine.reference else []
            with report_write_errors(out):
                bundle = write(out, contract, engine, files, source.tokenizer, source.chat_template, origin)
            if proves_whole(source, options.parity) and PRECISIONS[options.precision].on_cpu:  # just replayed here
                first_load.remember(bundle.find_engine(engine.name), "cpu")
            print(*notes, sep="\n", end="\n" if notes else "", file=stream, flush=True)
    return checks


def add_reference(
    source: Checkpoint, contract: Contract, engine: Engine, options: OnnxOptions, folder: Path
) -> tuple[Engine, Check]:
    """Records a reference into the folder; returns the engine with that reference, and its check.

    source: the checkpoint, with its weights as the graph stores them.
    """
    requests = make_recorded_requests(source, contract, options.task, options.data) or sample_requests(contract)
    formats = choose_formats(engine.dialect, engine.precision, source)
    if proves_whole(source, options.parity):
        on_cpu = PRECISIONS[engine.precision].on_cpu
        backend = OrtBackend(folder / engine.model, contract) if on_cpu else None
        recording = record_reference(source, contract, engine, backend, requests, formats, folder)
    else:
        recording = record_streamed(source, contract, engine, requests[-1], formats, folder)
    return replace(engine, reference=recording.entry), recording.check


if __name__ == "__main__":
    sys.exit(main())
