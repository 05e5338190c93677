"""Estimates what a block costs on a device, and which to train for it: python -m runtime.roofline student.bundle

The command measures the processor that it runs on and, with a bundle, the bundle's own steps, to compare them with
their predictions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .bundle.manifest import read
from .cli import (
    DONE,
    ENGINE_OPTIONS,
    expect,
    load_model,
    make_cli_parser,
    option,
    parse_counts,
    parse_png,
    print_json,
    run,
)
from .engines.registry import choose_engines
from .errors import UserError
from .model import Model
from .perf.block_costs import Question, analyze
from .perf.conditions import read_processor_name
from .perf.data_sheets import DEVICES, Device, choose_devices
from .perf.latency import compute_percentiles, make_canvas_step, time_calls
from .perf.local_cpu import measure_bandwidth, measure_processor
from .perf.op_counts import SHAPES, WEIGHT_SIZES, PassSize, count_weight_bytes, parse_shape, read_shape

WARMUP = 3  # steps that are run first, untimed
PAIRS = "hidden=1024,layers=28,heads=16,kv_heads=8,head_dim=128,ffn=3072,vocab=151936"
COUNTS = expect(parse_counts, "counts such as 1,8,64")
SIZES = expect(parse_counts, "sizes such as 4,16,32")
DESCRIPTION = (
    "Estimates the least time of a step, on devices by their data sheets and on this one as measured: "
    "autoregressive, in blocks, and as full diffusion. Names the block size to train for each device."
)
HELP = {  # help texts that do not fit on the line of their option below
    "devices": f"devices to estimate: {', '.join(DEVICES)}, or local, this processor (default: all)",
    "shape": (
        f"shape of the model in numbers, such as {PAIRS}; also tied, qk_norm, qkv_bias, each true or false (default: "
        "--model's)"
    ),
    "precision": (
        "precision of the weights; steps of BUNDLE are measured in its engine's precision alone (default: that "
        "one, or fp16 without BUNDLE)"
    ),
    "answer": "answer positions of full diffusion, after a prompt of --past tokens (default: 256)",
    "plot": "file to plot the rooflines and the first batch's points to; needs matplotlib (default: no plot)",
    "tokens-per-forward": (
        "tokens accepted per diffusion forward pass, commits counted as passes (default: 2.3; CDLM reports 2.2 to 2.4)"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: print_costs(parse_options(argv)))


def print_costs(args: argparse.Namespace) -> int:
    """Computes the costs for each device, and prints them."""
    name, question = parse_question(args)
    # A model that cannot be loaded is reported before this machine is measured.
    model = load_model(args) if args.bundle and "local" in choose_devices(args.devices) else None
    devices = open_devices(args, question.precision)
    values: dict[str, Any] = {
        "model": {"name": name, **asdict(question.shape), "parameters": question.shape.parameters},
        **{key: value for key, value in asdict(question).items() if key != "shape"},
        "devices": [analyze(device, question) for device in devices.values()],
        "steps": [],
    }
    if model is not None and model.precision == question.precision:  # else the prediction is for another engine
        print("timing steps of the bundle ...", file=sys.stderr)
        values["steps"] = list(measure_steps(model, devices["local"], question, args))
    if args.plot:
        from .perf.roofline_plot import plot_rooflines

        plot_rooflines(args.plot, name, list(devices.values()), question)
    if args.json:
        print_json(values)
    else:
        print("\n".join(report(values)))
    return DONE


def parse_question(args: argparse.Namespace) -> tuple[str, Question]:
    """Returns the model's name and the question that the options make. Raises UserError if they do not fit together."""
    shape, precision, name = SHAPES[args.model or next(iter(SHAPES))], args.precision or "fp16", args.model
    if args.bundle:
        bundle = read(Path(args.bundle))
        shape, name = read_shape(bundle.provenance.get("shape"), str(bundle.path)), bundle.path.name
        precision = args.precision or choose_engines(bundle, args.engine, args.device)[0].precision
    elif args.shape:
        shape, name = read_shape(args.shape, "--shape"), "--shape"
    if precision not in WEIGHT_SIZES:
        raise UserError(f"the engine is {precision}; this counts {', '.join(WEIGHT_SIZES)}: name one with --precision")
    numbers = (args.past, args.answer, args.tokens_per_forward, args.repeat)
    if min(args.past, *(n - 1 for n in numbers[1:])) < 0:
        raise UserError(
            f"got --past {numbers[0]}, --answer {numbers[1]}, --tokens-per-forward {numbers[2]:g}, --repeat "
            f"{numbers[3]}; expected at least 0, 1, 1 and 1"
        )
    question = Question(shape, precision, args.past, args.answer, args.batches, args.blocks, args.tokens_per_forward)
    return name or next(iter(SHAPES)), question


def open_devices(args: argparse.Namespace, precision: str) -> dict[str, Device]:
    """Returns the devices that have a rate for the precision; measures this machine. Raises UserError if none has."""
    keys = choose_devices(args.devices)
    found = {key: DEVICES[key] for key in keys if key != "local" and precision in DEVICES[key].rates}
    if "local" in keys:
        print("measuring this machine ...", file=sys.stderr)
        found["local"] = measure_processor(read_processor_name(), args.threads)
    if not found:
        raise UserError(f"the data sheets' devices have no rate for {precision}; expected fp16, int8 or int4, or local")
    return found


def measure_steps(model: Model, here: Device, question: Question, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields predicted and measured times (ms) of one step over the bundle's block, after 0 and after `past` tokens."""
    contract, backend = model.contract, model.backend
    if not contract.has_cache:
        return
    # Weights that fit into a CPU cache stay there between steps, and are read as fast as a buffer of their size that
    # is read again and again.
    speed = measure_bandwidth(
        int(count_weight_bytes(question.shape, WEIGHT_SIZES[question.precision], contract.block)), args.threads
    )
    for past in sorted({0, min(question.past, contract.capacity - contract.block)}):
        load = here.count_work(question.shape, question.precision, PassSize(1, contract.block, past, contract.block))
        memory, compute = (load.weights + load.cache) / speed / 1e6, here.estimate_compute_ms(load, question.precision)
        backend.open(1, past + contract.block)
        forward = make_canvas_step(contract, past)
        seconds = time_calls(lambda forward=forward: backend.forward(forward), args.repeat, WARMUP)  # type: ignore[misc]
        found = compute_percentiles(1000 * seconds)
        yield {
            "past": past,
            "block": contract.block,
            "gb_per_second": speed,
            "memory_ms": memory,
            "compute_ms": compute,
            "predicted_ms": max(memory, compute),
            "measured_ms": asdict(found),
            "measured_over_predicted": found.median / max(memory, compute),
        }


def report(values: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the plain report."""
    model, precision, batches = values["model"], values["precision"], values["batches"]
    yield (
        f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters in {precision}, {values['past']} tokens in "
        f"the KV cache, {values['accepted']:g} tokens per diffusion forward pass"
    )
    yield "ms: least time of a forward pass, m memory-bound, c compute-bound"
    yield (
        "cost: in autoregressive forward passes, so the tokens per pass from which on it is faster than autoregressive"
    )
    for device in values["devices"]:
        yield ""
        yield (
            f"{device['name']}: {device['gb_per_second']:,.4g} GB/s, {device['tera_operations_per_second']:,.4g} "
            f"TOP/s, ridge {device['ridge']:,.0f} operations per byte ({device['source']})"
        )
        widest = ", ".join(f"{w['block']} (batch {w['batch']})" for w in device["widest_memory_bound_block"])
        yield f"memory-bound up to a block of {widest}; train a block of {device['block_to_train']}"
        yield f"{'':<20}" + "".join(f"{'op/byte':>10}{'ms':>9} {'cost':>6}{'tokens/s':>9}" for _ in batches)
        yield from format_rows(device["points"], len(batches))
    for step in values["steps"]:
        yield ""
        yield (
            f"block of {step['block']} after {step['past']} tokens: measured {step['measured_ms']['median']:.3f} ms, "
            f"predicted {step['predicted_ms']:.3f}: {step['measured_over_predicted']:.2f} times that"
        )
        yield (
            f"    (memory {step['memory_ms']:.3f} ms at {step['gb_per_second']:.1f} GB/s, the speed of re-reading as "
            f"many bytes; compute {step['compute_ms']:.3f} ms)"
        )


def format_rows(points: Sequence[dict[str, Any]], batches: int) -> Iterator[str]:
    """Yields one line per mode, with its batches side by side."""
    for start in range(0, len(points), batches):
        line = f"{points[start]['mode']:<20}"
        for p in points[start : start + batches]:
            line += f"{p['intensity']:>10.1f}{format_figure(p['ms']):>9}{p['bound'][0]}{format_figure(p['cost']):>6}"
            line += f"{p['tokens_per_second']:>9,.0f}"
        yield line


def format_figure(value: float) -> str:
    """Formats a number with three significant digits, or, from 1000 on, as a whole number."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


OPTIONS = (
    option("--precision", choices=tuple(WEIGHT_SIZES), help=HELP["precision"]),
    option("--past", type=int, default=256, metavar="N", help="tokens in the KV cache (default: 256)"),
    option("--answer", type=int, default=256, metavar="N", help=HELP["answer"]),
    option(
        "--batches",
        type=COUNTS,
        default=(1, 8, 64),
        metavar="N,...",
        help="batch sizes, in sequences (default: 1,8,64)",
    ),
    option(
        "--blocks", type=SIZES, default=(4, 16, 32), metavar="N,...", help="block sizes, in tokens (default: 4,16,32)"
    ),
    option("--tokens-per-forward", type=float, default=2.3, metavar="T", help=HELP["tokens-per-forward"]),
    option("--devices", default=",".join((*DEVICES, "local")), metavar="NAME,...", help=HELP["devices"]),
    option("--plot", type=parse_png, metavar="FILE.png", help=HELP["plot"]),
    option("--repeat", type=int, default=20, metavar="N", help="runs of each measured step of BUNDLE (default: 20)"),
    option("--json", action="store_true", help="print one JSON object: ms, GB (1e9 bytes), 1e12 operations per second"),
    *ENGINE_OPTIONS,
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_cli_parser(f"{__package__}.roofline", DESCRIPTION, OPTIONS)
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "bundle",
        nargs="?",
        metavar="BUNDLE",
        help="bundle whose model is estimated and whose steps are measured here (default: none, the shape of --model)",
    )
    model.add_argument(
        "--model", choices=tuple(SHAPES), help=f"name of a published model's shape (default: {next(iter(SHAPES))})"
    )
    model.add_argument("--shape", type=expect(parse_shape, PAIRS), metavar="NAME=N,...", help=HELP["shape"])
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
