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
from .proof.prove import WHOLE, prove, proves_whole, sample_requests
from .proof.record import record_reference
from .proof.record_streamed import record_streamed
from .provenance import collect_provenance
from .quantization.ort_formats import choose_formats
from .quantization.own_codes import find_own_codes_in_fp16
from .staging import make_working_folder, report_write_errors

HELP = {  # help texts that do not fit on the line of their option below
    "out": (
        "bundle to write, a folder; if it exists, its other engines stay, unless they are of another checkpoint "
        "(default: the checkpoint's path with .bundle; for a checkpoint in a download cache, its name in the current "
        "folder)"
    ),
    "precision": (
        "precision of the engine; fp16: weights, products and KV cache, not norms and probabilities; int8: weights and "
        "their products; int4: as int8, but the weights of all layers except the first and last in 5.1 bits, scales "
        "included; the dialect standard also has bf16, and its int8 and int4 quantize the layers' weights alone, with "
        "fp16 products (default: fp32)"
    ),
    "device": "device that the engine is for; cuda takes the dialect standard (default: cpu)",
    "dialect": (
        "operators of the graph; ort: ONNX Runtime's own attention, one sequence at a time, faster on a CPU; standard: "
        "ONNX's attention, for CUDA and batches (default: standard for --device cuda, else ort)"
    ),
    "parity": (
        "parity check with PyTorch: of the whole model, or layer by layer in the memory of the largest layer (default: "
        f"auto, whole if three times its fp32 weights fit {WHOLE / 1e9:g} GB and half of RAM)"
    ),
    "task": (
        "sample tasks, with commas, for the prompts of the reference that `blockstep verify` replays (default: "
        "math,code if the tokenizer knows their texts, else texts of its common tokens)"
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
    option("--device", choices=DEVICES, default="cpu", help=HELP["device"]),
    option("--dialect", choices=tuple(PRECISIONS_OF), help=HELP["dialect"]),
    option("--parity", choices=("auto", "whole", "layers"), default="auto", help=HELP["parity"]),
    option(
        "--capacity",
        type=int,
        help=(
            f"KV-cache capacity: maximum tokens of prompt and answer (default: {CAPACITY}, or the context if that is "
            "shorter)"
        ),
    ),
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
class OnnxBundle:
    """Describes the bundle to make from a checkpoint. Fields are named as `export.onnx`'s options.

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
    """Traces, checks, and only then writes the bundle."""
    started, stream = time.perf_counter(), sys.stderr if args.json else sys.stdout
    out = args.out or choose_default_out(args.adapter or args.ckpt)
    checks = write_bundle(fill_dataclass(OnnxBundle, args, overrides=make_overrides(args)), out, stream)
    failed = not all(check.ok for check in checks)
    print(f"nothing was written, {out} is as it was" if failed else f"wrote {out}", file=stream)
    if args.json:
        summary = {"bundle": None if failed else str(out), "checks": [asdict(check) for check in checks]}
        print_json({**summary, "seconds": round(time.perf_counter() - started, 3)})
    return FAILED if failed else DONE


def write_bundle(wanted: OnnxBundle, out: Path, stream: TextIO) -> list[Check]:
    """Writes the bundle if every check passes; prints and returns the checks. Raises UserError for bad options."""
    limit_threads()
    source = open_checkpoint.load(wanted.ckpt, wanted.overrides)
    check_template(source)
    if wanted.dialect != "ort" and wanted.precision == "int4":
        find_own_codes_in_fp16(source, wanted.dialect)  # refuses to round again
    formats = choose_formats(wanted.dialect, wanted.precision, source)
    contract = make_export_contract(source, wanted.capacity, wanted.top_k, wanted.candidates)
    origin = collect_provenance(wanted.ckpt, wanted.overrides, source)
    target = "cpu" if wanted.dialect == "ort" else "any"
    fresh = Engine(
        f"{wanted.dialect}-{wanted.precision}", wanted.dialect, wanted.precision, target, None, "", {}, {},
        decision_temperature=source.decoding.decision_temperature,
    )  # fmt: skip
    there = find_bundle(out, origin)
    contract, engine = keep_mode_order(there, contract), apply_calibration(there, contract, fresh)
    notes = [
        *describe_kept_calibration(fresh, engine),
        *describe_lost_calibration(out, engine, origin),
        *describe_removed_engines(out, engine, origin),
    ]
    with report_write_errors(out):
        check_place(out, contract, engine, origin)
    checks: list[Check] = []
    with make_working_folder(out) as folder:
        with report_write_errors(out):
            files = write_ort_graph(source, contract, wanted.precision, folder, dialect=wanted.dialect)
        other = choose_comparison(source, wanted.dialect, wanted.precision)
        for found in prove(other.source, contract, files[0], other.precision, wanted.parity, formats):
            check = found if found.name == "graph" else other.add_note(found)
            checks.append(check)
            print(check, file=stream, flush=True)
        engine = replace(engine, model=files[0].name)
        if all(check.ok for check in checks):
            engine, check = add_reference(other.source, contract, engine, wanted, folder)
            checks.append(check)
            print(check, file=stream, flush=True)
        if all(check.ok for check in checks):
            engine = replace(engine, parity={check.name: check.detail for check in checks})
            files += [folder / engine.reference.file] if engine.reference else []
            with report_write_errors(out):
                made = write(out, contract, engine, files, source.tokenizer, source.chat_template, origin)
            if proves_whole(source, wanted.parity) and PRECISIONS[wanted.precision].on_cpu:  # just replayed here
                first_load.remember(made.find_engine(engine.name), "cpu")
            print(*notes, sep="\n", end="\n" if notes else "", file=stream, flush=True)
    return checks


def add_reference(
    source: Checkpoint, contract: Contract, engine: Engine, wanted: OnnxBundle, folder: Path
) -> tuple[Engine, Check]:
    """Records a reference into the folder; returns the engine with that reference, and its check.

    source: the checkpoint, with the weights that the graph computes with.
    """
    requests = make_recorded_requests(source, contract, wanted.task, wanted.data) or sample_requests(contract)
    formats = choose_formats(engine.dialect, engine.precision, source)
    if proves_whole(source, wanted.parity):
        runs = PRECISIONS[engine.precision].on_cpu
        backend = OrtBackend(folder / engine.model, contract) if runs else None
        made = record_reference(source, contract, engine, backend, requests, formats, folder)
    else:
        made = record_streamed(source, contract, engine, requests[-1], formats, folder)
    return replace(engine, reference=made.entry), made.check


if __name__ == "__main__":
    sys.exit(main())
