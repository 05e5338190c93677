"""Builds TensorRT engines from a checkpoint or from a bundle's graphs: python -m export.trt --ckpt student.pt"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runtime.cli import DONE, FAILED, add_options, fill_dataclass, make_cli_parser, option, print_json, run
from runtime.errors import UserError
from train.cli_options import CANDIDATES_OPTION, TOP_K_OPTION, add_directory_options, make_overrides

from .precisions import PRECISIONS
from .trt_engines.builder import BuilderSettings
from .trt_engines.from_bundle import build_from_bundle
from .trt_engines.gpu_support import TRT_DIALECTS, check_library, find_library
from .trt_engines.report import BuildReport

# Options that only standard TensorRT has; TensorRT for RTX has none of them.
NOT_IN_RTX = ("optimization_level", "version_compatible", "hardware_compatibility", "timing_cache")
WEIGHTS_ALONE = ", ".join(row.name for row in PRECISIONS.values() if row.weights and not row.calibrated)
CALIBRATED = " or ".join(row.name for row in PRECISIONS.values() if row.calibrated)
HELP = {  # help texts that do not fit on the line of their option below
    "bundle": (
        "bundle to build engines of, from its graphs and on the machine that runs them, instead of --ckpt; needs "
        "neither torch nor the checkpoint"
    ),
    "out": (
        "bundle to write, a folder (default: the checkpoint's path with .bundle; for a checkpoint in a download cache, "
        "its name in the current folder)"
    ),
    "precision": (
        f"precision of the engine; fp16, bf16, or fp32, whose attention has no fused kernel; {WEIGHTS_ALONE}: the "
        f"weights alone, with fp16 products; {CALIBRATED}: products too, calibrated on --data (default: fp16; with "
        "--bundle all that the bundle has and this GPU runs)"
    ),
    "dialect": (
        "operators of the graph; trt: for TensorRT from 10.15 on and TensorRT for RTX; plain: for older ones (default: "
        "auto, trt if the installed version takes it)"
    ),
    "capacity": (
        "KV-cache capacities, one engine each: maximum tokens of prompt and answer; the smallest that fits a request "
        "runs it (default: 1024, or the context if that is shorter)"
    ),
    "graph-only": "write the ONNX graph alone, for --bundle on another machine; needs no TensorRT",
    "flavor": (
        "library to build with; tensorrt: builds on the GPU that the engine is for; rtx: TensorRT for RTX, builds "
        "without a GPU (default: auto, the installed one, tensorrt first)"
    ),
    "compute-capability": (
        "compute capabilities to build for, such as 86 89 120, with rtx (default: all that the library knows and "
        "that run the precision)"
    ),
    "optimization-level": "optimization level, with tensorrt: 0 builds fastest, 5 searches longest (default: 3)",
    "hardware-compatibility": (
        "build an engine that all GPUs from Ampere (SM80) on run, more slowly; with tensorrt (default: off)"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: export(parse_options(argv)))


OPTIONS = (
    option("--ckpt", type=Path, help="checkpoint: a .pt file or a Hugging Face directory"),
    option("--bundle", type=Path, metavar="DIR", help=HELP["bundle"]),
    option("--out", type=Path, help=HELP["out"]),
    option("--precision", choices=tuple(PRECISIONS), help=HELP["precision"]),
    option("--dialect", choices=("auto", *TRT_DIALECTS), default="auto", help=HELP["dialect"]),
    option("--capacity", type=int, nargs="+", metavar="N", help=HELP["capacity"]),
    option("--batch", type=int, metavar="N", help="batch size, in sequences (default: 1)"),
    TOP_K_OPTION,
    CANDIDATES_OPTION,
    option("--max-prompt", type=int, metavar="N", help="maximum tokens of a prompt (default: the capacity)"),
    option(
        "--data",
        type=Path,
        metavar="FILE.jsonl",
        help=f"file of JSON lines with prompts that {CALIBRATED} is calibrated on, 64 of them (default: none)",
    ),
    option("--graph-only", action="store_true", help=HELP["graph-only"]),
    option("--json", action="store_true", help="print one JSON object; everything else goes to stderr"),
)
BUILDER_OPTIONS = (
    option("--flavor", choices=("auto", "tensorrt", "rtx"), default="auto", help=HELP["flavor"]),
    option("--compute-capability", type=int, nargs="+", default=[], metavar="SM", help=HELP["compute-capability"]),
    option(
        "--workspace",
        type=int,
        metavar="MIB",
        help="maximum scratch memory of the builder, in MiB (default: the GPU's memory)",
    ),
    option("--optimization-level", type=int, choices=range(6), metavar="0..5", help=HELP["optimization-level"]),
    option(
        "--version-compatible",
        action="store_true",
        help="build an engine that later TensorRT versions load too; with tensorrt (default: off)",
    ),
    option("--hardware-compatibility", action="store_true", help=HELP["hardware-compatibility"]),
    option(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="file of kernel timings to read and to add to, with tensorrt (default: none)",
    ),
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = "Builds TensorRT engines into a bundle and checks the parity of their graphs with PyTorch. "
    how = "Exit 1 if a check or a build fails; that engine is not added, others in the bundle stay."
    p = make_cli_parser("export.trt", what + how, OPTIONS)
    add_options(p.add_argument_group("options of the builder"), BUILDER_OPTIONS)
    add_directory_options(p)
    args = p.parse_args(argv)
    check_options(args)
    return args


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError for options that contradict each other or make no sense."""
    if (args.ckpt is None) == (args.bundle is None):
        raise UserError("give one of --ckpt, a checkpoint to export, and --bundle, whose graphs are built")
    if args.bundle is not None:
        for name in ("out", "capacity", "batch", "top_k", "candidates", "data", "graph_only"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')} is for --ckpt; a bundle's graphs are built as they are")
    for name in ("batch", "max_prompt", "workspace"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    calibrated = args.precision is not None and PRECISIONS[args.precision].calibrated
    if args.ckpt is not None and calibrated and args.data is None:
        raise UserError(
            f"{args.precision} is calibrated on prompts; give --data a file of JSON lines with prompt and answer"
        )
    if args.data is not None and not calibrated:
        raise UserError(f"--data calibrates {CALIBRATED} alone; leave it out or give --precision {CALIBRATED}")
    if args.graph_only and args.dialect == "auto":
        raise UserError(
            "--graph-only cannot find out the other machine's TensorRT; give --dialect trt (10.15 on) or plain"
        )


def export(args: argparse.Namespace) -> int:
    """Adds to the bundle the engines that it lacks or has with other settings; with --graph-only, graphs."""
    started, report = time.perf_counter(), BuildReport(sys.stderr if args.json else sys.stdout)
    library = None if args.graph_only else find_library(args.flavor)
    settings = make_settings(args)
    if library is not None:
        check_library(library, args.dialect, {f"--{n.replace('_', '-')}": getattr(args, n) for n in NOT_IN_RTX})
    if library is not None and args.bundle is not None:
        path = build_from_bundle(args.bundle, args.dialect, args.precision, settings, library, report)
    else:
        from .trt_engines.from_checkpoint import GraphOptions, from_checkpoint  # needs torch

        path = from_checkpoint(
            fill_dataclass(GraphOptions, args, overrides=make_overrides(args)), settings, library, report
        )
    report.say(format_next_step(args, path) if report.ok else f"what failed was not added to {path}")
    if args.json:
        summary = {"bundle": str(path), "ok": report.ok, "engines": report.engines, "checks": report.checks}
        print_json({**summary, "seconds": round(time.perf_counter() - started, 3)})
    return DONE if report.ok else FAILED


def make_settings(args: argparse.Namespace) -> BuilderSettings:
    """Returns the build settings that the options give; `targets` are those of --compute-capability."""
    return fill_dataclass(BuilderSettings, args, targets=tuple(args.compute_capability))


def format_next_step(args: argparse.Namespace, path: Path) -> str:
    """Returns what to do with the bundle next."""
    if args.graph_only:
        return f"where it is to run, with a copy of the bundle: blockstep export trt --bundle {path.name}"
    return f"where its GPU is: blockstep generate {path} PROMPT --engine trt"


if __name__ == "__main__":
    sys.exit(main())
