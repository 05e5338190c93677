"""Times everything that is claimed to be fast, next to PyTorch and llama.cpp: make bench

    python -m samples.bench --only step --rounds 5

Sections: `step`, one step of a shape in ONNX Runtime, PyTorch and llama.cpp; `answers`, whole answers of the sample
models; `host`, what the runtime costs on top of the engine. Each section replaces its own part of bench.json; page and
figure show all parts. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from runtime.cli import DONE, Parser, expect, parse_counts, print_json, run
from runtime.engines.ort.threads import count_physical_cores
from runtime.errors import UserError
from runtime.perf.conditions import find_version, read_processor_name
from runtime.perf.local_cpu import measure_processor as this_machine
from runtime.perf.op_counts import SHAPES, parse_shape, read_shape
from train.storage.output_files import check_file, replace_file

from . import answers, host, page, plot, step

SAMPLES = Path(__file__).resolve().parents[1]
SECTIONS = ("step", "answers", "host")
PACKAGES = ("numpy", "torch", "onnxruntime", "llama-cpp-python", "gguf")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: bench(parse_options(argv)))


def bench(args: argparse.Namespace) -> int:
    """Measures the requested sections, then writes and prints everything measured so far."""
    where = {name: args.out / f"bench.{name}" for name in ("json", "md", "png")}
    for path in where.values():
        check_file(path)
    report = read_older(where["json"])
    for name in args.only:
        print(f"== {name}", file=sys.stderr, flush=True)
        report[name] = add_conditions(MEASURE[name], args)
        write(where["json"], json.dumps(report, indent=1) + "\n")
        write(where["md"], page.format_text(report))
    if args.plot and report.get("step", {}).get("rows"):
        plot.draw(where["png"], report["step"]["rows"])
    if args.json:
        print_json({name: report[name] for name in args.only})
    else:
        print(page.format_text({name: report[name] for name in args.only}))
    return DONE


def read_older(path: Path) -> dict[str, Any]:
    """Returns the report of an earlier run, to which sections are added. Raises UserError if it is not one."""
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return {name: report[name] for name in SECTIONS if name in report}
    except (ValueError, TypeError):
        raise UserError(f"{path} is not a report of the bench; move it away, or give another --out") from None


def write(path: Path, text: str) -> None:
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def add_conditions(
    measure: Callable[[argparse.Namespace], dict[str, Any]], args: argparse.Namespace
) -> dict[str, Any]:  # fmt: skip
    """Returns a section with the conditions that its figures depend on."""
    load, started = os.getloadavg()[0], time.perf_counter()
    found = measure(args)
    versions = {"python": platform.python_version(), **{name: find_version(name) for name in PACKAGES}}
    conditions = {
        "cpu": read_processor_name(), "cores": count_physical_cores(), "threads": args.threads, "load": load,
        "versions": versions, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    return {"conditions": conditions, **found}


def measure_steps(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the section `step`."""
    shape = read_shape(args.shape, "--shape") if args.shape else SHAPES["qwen3-0.6b"]
    print("measuring this machine ...", file=sys.stderr, flush=True)
    device = this_machine(read_processor_name(), args.threads)
    plan = step.Plan(shape, args.widths, args.pasts, args.rounds, args.steps, args.threads, args.contenders)
    with TemporaryDirectory(dir=args.scratch) as folder:
        found = step.measure(plan, device, Path(folder))
    # Measured again: if the machine became slower or faster during the race, so did its limits.
    again = this_machine(read_processor_name(), args.threads)
    after = {"bandwidth": again.bandwidth, "rates": dict(again.rates)}
    return {"device": {**asdict(replace(device, rates=dict(device.rates))), "after": after}, **found}


def measure_answers(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the section `answers`."""
    return answers.measure(args.given, args.count, args.repeat)


def measure_host(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the section `host`."""
    found = host.measure(SAMPLES / "student.bundle", args.threads, args.starts, args.install)
    return {"starts": args.starts, **found}


MEASURE: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "step": measure_steps,
    "answers": measure_answers,
    "host": measure_host,
}


def parse_sections(text: str) -> tuple[str, ...]:
    """Parses a comma-separated list of sections; returns the names in the order of the report."""
    words = {word.strip() for word in text.split(",")}
    if not words <= {*SECTIONS}:
        raise ValueError
    return tuple(name for name in SECTIONS if name in words)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    p = Parser(prog="python -m samples.bench", description=(__doc__ or "").splitlines()[0])
    known = ", ".join(SECTIONS)
    p.add_argument("--only", type=expect(parse_sections, f"some of {known}"), default=SECTIONS, metavar="NAME,...",
        help=f"sections of {known} (default: all; step needs 20 GB of memory and 6 GB of disk)")  # fmt: skip
    p.add_argument("--out", type=Path, default=SAMPLES / "results",
        help="folder to write bench.json, bench.md and bench.png to (default: samples/results)")  # fmt: skip
    p.add_argument(
        "--threads",
        type=int,
        help="threads of each contender (default: the physical cores; 1 for whole answers of a small int8 engine)",
    )
    p.add_argument("--json", action="store_true", help="print the sections that were measured as one JSON object")
    p.add_argument(
        "--no-plot", dest="plot", action="store_false", help="plot no figure (default: plot it, with matplotlib)"
    )
    add_step_options(p)
    p.add_argument("--count", type=int, default=16, help="answers: prompts per task (default: 16)")
    p.add_argument("--repeat", type=int, default=2,
        help="answers: runs of each prompt, of which the fastest counts (default: 2)")  # fmt: skip
    p.add_argument("--starts", type=int, default=10, help="host: fresh processes to time (default: 10)")
    p.add_argument("--no-install", dest="install", action="store_false",
        help="host: leave out the size of a runtime-only environment (default: let pip install one)")  # fmt: skip
    args = p.parse_args(argv)
    args.given, args.threads = args.threads, count_physical_cores() if args.threads is None else args.threads
    counts = ("threads", "rounds", "steps", "count", "repeat", "starts")
    if wrong := [name for name in counts if getattr(args, name) < 1]:
        raise UserError(f"--{wrong[0]} is {getattr(args, wrong[0])}; expected at least 1")
    return args


def add_step_options(p: argparse.ArgumentParser) -> None:
    """Adds the options of the section `step`: what is compared."""

    def pasts(text: str) -> tuple[int, ...]:
        return tuple(n - 1 for n in parse_counts(",".join(str(int(word) + 1) for word in text.split(","))))

    def names(text: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in text.split(","))

    p.add_argument(
        "--widths",
        type=expect(parse_counts, "tokens such as 1,8,32"),
        default=(1, 4, 8, 16, 32),
        metavar="N,...",
        help="step: tokens per forward pass; 1 is autoregressive decoding (default: 1,4,8,16,32)",
    )
    p.add_argument("--pasts", type=expect(pasts, "tokens such as 0,256"), default=(0, 256, 1024), metavar="N,...",
        help="step: tokens in the KV cache (default: 0,256,1024)")  # fmt: skip
    p.add_argument(
        "--rounds", type=int, default=5, help="step: rounds, in each of which every contender has a turn (default: 5)"
    )
    p.add_argument("--steps", type=int, default=2, help="step: timed steps per turn, after an untimed one (default: 2)")
    p.add_argument("--contenders", type=names, default=(), metavar="WORD,...",
        help="step: contenders with one of these words in their name, such as 'int8' (default: all)")  # fmt: skip
    p.add_argument("--shape", type=expect(parse_shape, "hidden=1024,layers=28,..."), metavar="NAME=N,...",
        help="step: shape of the model, as runtime.roofline takes it (default: Qwen3-0.6B's)")  # fmt: skip
    p.add_argument("--scratch", type=Path, help="step: folder for 6 GB of temporary models (default: the system's)")


if __name__ == "__main__":
    sys.exit(main())
