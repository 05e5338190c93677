"""Builds TensorRT engines of a checkpoint, or of a copied bundle's graphs: python -m export.trt --ckpt student.pt"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from runtime.bundle import Bundle, Engine, read, verify_files
from runtime.command import DONE, FAILED, Parser, print_json, run
from runtime.contract import Contract
from runtime.errors import UserError
from train.options import add_directory_options

from .trt_add import Shared, add, missing
from .trt_build import parse
from .trt_plan import Asked, Plan, planned
from .trt_report import Report
from .trt_targets import LEAST, Library, check_library, find_library
from .workplace import working_folder

DIALECTS = ("trt", "plain")  # that TensorRT reads


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: export(options(argv)))


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    p = Parser(
        prog="python -m export.trt", description="Writes TensorRT engines, their graphs checked against PyTorch."
    )
    add_what(p)
    add_builder(p.add_argument_group("the builder"))
    add_directory_options(p)
    args = p.parse_args(argv)
    check_options(args)
    return args


def add_what(p: argparse.ArgumentParser) -> None:
    p.add_argument("--ckpt", type=Path, help="a student.pt, or a Hugging Face directory")
    p.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="instead: build from the graphs in this bundle, on the machine that runs it; neither torch nor checkpoint",
    )
    p.add_argument("--out", type=Path, help="the bundle's folder (default: the checkpoint's path with .bundle)")
    p.add_argument(
        "--precision",
        choices=tuple(LEAST),
        help="fp32 | fp16 | bf16; fp16 with weights in int8 | int4 | fp8 | nvfp4; int8-static, with int8 activations "
        "too (default fp16; with --bundle every one that is there and runs here)",
    )
    p.add_argument(
        "--dialect",
        choices=("auto", *DIALECTS),
        default="auto",
        help="trt: TensorRT from 10.15 on and TensorRT for RTX; plain: older ones (default: what is installed takes)",
    )
    p.add_argument(
        "--capacity",
        type=int,
        nargs="+",
        metavar="N",
        help="most tokens of prompt and answer, an engine each (default 1024 or the context)",
    )
    p.add_argument("--batch", type=int, default=1, metavar="N", help="sequences of a forward (default 1)")
    p.add_argument(
        "--max-prompt", type=int, metavar="N", help="most tokens of a prompt (default: what the capacity holds)"
    )
    p.add_argument(
        "--data", type=Path, metavar="FILE.jsonl", help="prompts that int8-static is calibrated on, the first 64"
    )
    p.add_argument(
        "--graph-only",
        action="store_true",
        help="write the graph alone, for --bundle on another machine; needs no TensorRT",
    )
    p.add_argument("--json", action="store_true", help="prints one JSON object; everything else goes to stderr")


def add_builder(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--flavor",
        choices=("auto", "tensorrt", "rtx"),
        default="auto",
        help="standard TensorRT, which builds on the GPU it is for, or that for RTX, which needs none (default: what "
        "is installed, the standard one first)",
    )
    add(
        "--compute-capability",
        type=int,
        nargs="+",
        default=[],
        metavar="SM",
        help="rtx: GPUs to build for, such as 86 89 120 (default: all it knows that run the precision)",
    )
    add("--workspace", type=int, metavar="MIB", help="most MiB of scratch memory (default: the GPU's)")
    add("--optimization-level", type=int, choices=range(6), help="tensorrt: how long it searches (default: its own)")
    add("--version-compatible", action="store_true", help="tensorrt: later versions of it load the engine too")
    add("--hardware-compatibility", action="store_true", help="tensorrt: other GPUs from Ampere on run it, more slowly")
    add("--timing-cache", type=Path, metavar="FILE", help="tensorrt: read before a build and added to")  # fmt: skip


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError for options that contradict each other or make no sense."""
    if (args.ckpt is None) == (args.bundle is None):
        raise UserError("give one of --ckpt, a checkpoint to export, and --bundle, whose graphs are built")
    if args.bundle is not None:
        for name in ("out", "capacity", "data", "graph_only"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')} is for --ckpt; a bundle's graphs are built as they are")
    for name in ("batch", "max_prompt", "workspace"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    if args.ckpt is not None and args.precision == "int8-static" and args.data is None:
        raise UserError("int8-static is calibrated on prompts; give --data a file of JSON lines with prompt and answer")
    if args.data is not None and args.precision != "int8-static":
        raise UserError("--data calibrates int8-static alone; leave it out or give --precision int8-static")
    if args.graph_only and args.dialect == "auto":
        raise UserError("--graph-only cannot tell the other machine's TensorRT; give --dialect trt (10.15 on) or plain")


def export(args: argparse.Namespace) -> int:
    """Builds what is missing or different and adds it to the bundle."""
    started, report = time.perf_counter(), Report(sys.stderr if args.json else sys.stdout)
    library = None if args.graph_only else find_library(args.flavor)
    if library is not None:
        check_library(library, args)
    if args.bundle is not None and library is not None:
        path = from_bundle(args, library, report)
    else:
        from .trt_checkpoint import from_checkpoint  # which needs torch

        path = from_checkpoint(args, library, report)
    if args.json:
        told = {"bundle": str(path), "ok": report.ok, "engines": report.engines, "checks": report.checks}
        print_json({**told, "seconds": round(time.perf_counter() - started, 3)})
    return DONE if report.ok else FAILED


def from_bundle(args: argparse.Namespace, library: Library, report: Report) -> Path:
    """Builds engines of the graphs in a bundle, in it; its path. Raises UserError where none is for this TensorRT."""
    bundle = read(args.bundle)
    text = bundle.tokenizer.read_text(encoding="utf-8")
    shared = Shared(bundle.path, bundle.contract, text, bundle.chat_template, bundle.provenance)
    dialect = library.dialect() if args.dialect == "auto" else args.dialect
    for origin in graphs(bundle, dialect, args.precision):
        files = [bundle.path / name for name in graph_files(origin)]
        verify_files(bundle, replace(origin, files={file.name: origin.files[file.name] for file in files}), "always")
        try:
            plan = plan_of(origin, files[0], bundle.contract, args, library)
        except UserError as error:
            if args.precision is not None:
                raise
            report.say(f"{origin.name}: left out, {error}")
            continue
        if missing(shared, plan, report, files[0].name):
            with working_folder(bundle.path) as folder:
                add(shared, plan, files, origin.parity, folder, report)
    return bundle.path


def graphs(bundle: Bundle, dialect: str, precision: str | None) -> Iterator[Engine]:
    """An engine of each graph that is to be built. Raises UserError naming what there is where there is none."""
    found: dict[str, Engine] = {}
    for engine in bundle.engines:
        if engine.dialect == dialect and precision in (None, engine.precision):
            found.setdefault(graph_files(engine)[0], engine)
    if not found:
        there = ", ".join(f"{engine.dialect} {engine.precision}" for engine in bundle.engines)
        wanted = f"{dialect} {precision or ''}".strip()
        raise UserError(
            f"{bundle.path} has no graph {wanted}, it has {there}; write it where the checkpoint is: python -m "
            f"export.trt --ckpt CKPT --out {bundle.path.name} --dialect {dialect} --graph-only"
        )
    yield from found.values()


def graph_files(engine: Engine) -> list[str]:
    """The files of an engine's graph, the .onnx file first."""
    onnx = engine.build.onnx if engine.build else engine.model
    return [onnx, *(name for name in engine.files if name.endswith(".data"))]


def plan_of(origin: Engine, file: Path, contract: Contract, args: argparse.Namespace, library: Library) -> Plan:
    """The plan for a graph that is there; what of it the manifest does not say is read from the graph."""
    recipe, known = {}, origin.build
    if known is not None:
        recipe = known.options.get("graph", {})
        asked = Asked(origin.dialect, origin.precision, known.capacity, known.batch, known.dtype, recipe)
    else:
        network = parse(file, library.flavor)
        capacity = network.capacity or contract.capacity
        asked = Asked(origin.dialect, origin.precision, capacity, network.batch, network.dtype, recipe)
    return planned(asked, contract, args, library)


if __name__ == "__main__":
    sys.exit(main())
