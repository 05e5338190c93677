"""Times an exported student on this machine, per forward pass and per answer: python -m runtime.bench student.bundle"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cli import (
    DONE,
    ENGINE_OPTIONS,
    MODE_OPTION,
    TEMPLATE_OPTION,
    load_model,
    make_cli_parser,
    option,
    print_json,
    run,
)
from .decoding.options import DecodeOptions
from .errors import UserError
from .perf.conditions import describe_conditions
from .perf.latency import time_answers, time_candidates, time_forwards

PROMPT = "Tom has 3 apples and buys 4 more. How many apples does he have?"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: bench(parse_options(argv)))


def bench(args: argparse.Namespace) -> int:
    """Loads the bundle, measures, prints."""
    texts = read_prompts(Path(args.prompts)) if args.prompts else [PROMPT if args.prompt is None else args.prompt]
    model = load_model(args)
    options = DecodeOptions(max_new_tokens=args.max_new_tokens, threshold=args.threshold, mode=args.mode)
    requests = [model.request(text, options) for text in texts]
    prompt_summary = texts[0] if len(texts) == 1 else f"{len(texts)} prompts of {Path(args.prompts).name}"
    values: dict[str, Any] = {
        "conditions": describe_conditions(model, prompt_summary, args.threshold, args.repeat, args.warmup)
    }
    print("timing forward passes ...", file=sys.stderr)
    values["forwards"] = [asdict(row) for row in time_forwards(model.backend, args.repeat, args.warmup)]
    values["candidates"] = [asdict(row) for row in time_candidates(model.backend, args.repeat, args.warmup)]
    print("timing whole answers ...", file=sys.stderr)
    count = max(args.repeat, len(requests))
    values["answers"] = {"count": count, **time_answers(model, requests, count)}
    if args.json:
        print_json(values)
    else:
        print("\n".join(report(values)))
    return DONE


def read_prompts(path: Path) -> list[str]:
    """Returns the prompts of a JSON-lines file.

    Raises UserError if the file cannot be read, is empty, or has a line without a prompt, which is named.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also split texts at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); expected a file of JSON lines") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(json.loads(line)["prompt"])
        except (ValueError, TypeError, KeyError, RecursionError):
            prompts.append(None)
        if not isinstance(prompts[-1], str):
            raise UserError(f'line {number} of {path} has no prompt; expected {{"prompt": "..."}} on each line')
    if not prompts:
        raise UserError(f"{path} is empty; expected one prompt per line")
    return prompts


def report(values: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the report that is printed without --json."""
    for name, value in values["conditions"].items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        yield f"{name.replace('_', ' '):<15}{shown}"
    yield ""
    yield f"{'forward pass (ms)':<18}{'past':>6}{'width':>7}{'rows':>6}{'p10':>10}{'median':>10}{'p90':>10}"
    for row in values["forwards"]:
        yield f"{row['forward']:<18}{row['past']:>6}{row['width']:>7}{row['rows']:>6}" + _format_ms(row["ms"])
    if values["candidates"]:
        yield ""
        columns = f"{'past':>6}{'width':>7}{'rows':>6}{'p10':>10}{'median':>10}{'p90':>10}{'ratio':>8}"
        yield f"{'step by turns (ms)':<18}{columns}"
    for row in values["candidates"]:
        name = f"candidates {row['candidates']}"
        yield f"{name:<18}{row['past']:>6}{row['width']:>7}{row['rows']:>6}{_format_ms(row['ms'])}{row['ratio']:>8.3f}"
    yield ""
    answers = f"{values['answers']['count']} answers, mode {values['answers']['mode']}"
    yield f"{answers:<35}{'p10':>10}{'median':>10}{'p90':>10}"
    for name, row in values["answers"].items():
        if isinstance(row, dict):
            yield f"{name.replace('_', ' '):<35}" + _format_ms(row)


def _format_ms(row: dict[str, float]) -> str:
    return "".join(f"{row[name]:>10.3f}" for name in ("p10", "median", "p90"))


OPTIONS = (
    option(
        "bundle", metavar="BUNDLE", help="bundle, a folder that blockstep export onnx or blockstep export trt wrote"
    ),
    option(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="maximum tokens per answer (default: 256, or fewer if the KV cache has no room for them)",
    ),
    option(
        "--threshold",
        type=float,
        metavar="T",
        help="threshold of the gate: a probability, nats or a factor, by the bundle's gate (default: the bundle's)",
    ),
    option(
        "--repeat",
        type=int,
        default=20,
        metavar="N",
        help="runs of each forward pass, and minimum number of answers (default: 20)",
    ),
    option(
        "--warmup",
        type=int,
        default=3,
        metavar="N",
        help="untimed runs of each forward pass before the timed ones; one answer is always untimed (default: 3)",
    ),
    option(
        "--json",
        action="store_true",
        help=(
            "print one JSON object: forward passes in ms, steps with and without candidates if the bundle has any, "
            "answers in the units that their keys name"
        ),
    ),
    option(
        "--no-cuda-graphs",
        action="store_true",
        help=(
            "launch the kernels of a TensorRT engine one by one, without CUDA graphs, to compare (default: CUDA graphs)"
        ),
    ),
    MODE_OPTION,
    TEMPLATE_OPTION,
    *ENGINE_OPTIONS,
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = "Times an exported student: forward passes in milliseconds, whole answers in tokens, seconds and host time."
    parser = make_cli_parser(f"{__package__}.bench", what, OPTIONS)
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help=f"prompt to answer (default: {PROMPT})")
    prompts.add_argument(
        "--prompts",
        metavar="FILE.jsonl",
        help='file of prompts to answer in turn, one {"prompt": ...} per line (default: none)',
    )
    args = parser.parse_args(argv)
    if args.repeat < 1 or args.warmup < 0:
        raise UserError(f"--repeat is {args.repeat}, --warmup {args.warmup}; expected at least 1 and at least 0")
    return args


if __name__ == "__main__":
    sys.exit(main())
