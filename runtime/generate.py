"""Answers a prompt with an exported student: python -m runtime.generate student.bundle "How many apples are left?" """

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from .bundle.strict_json import read as read_json
from .cli import (
    DONE,
    ENGINE_OPTIONS,
    MODE_OPTION,
    TEMPLATE_OPTION,
    fill_dataclass,
    load_model,
    make_cli_parser,
    option,
    parse_at_least_1,
    parse_whole,
    print_json,
    run,
)
from .contract import Contract
from .decisions.decide import PROBABILITY_KINDS
from .decisions.form import Probability
from .decoding.batch import Step
from .decoding.block_layout import count_room_for_answer
from .decoding.options import DecodeOptions, Request, choose_contract, choose_mode
from .errors import UserError
from .model import Answer, Block, Model, blocks, collect_answer
from .text.terminal import Screen, format_summary, make_view, show_steps

HELP = {  # help texts that do not fit on the line of their option below
    "suffix": (
        "text after the gap, for infilling: the model fills --max-new-tokens positions before it (their default: "
        "what the suffix leaves of its block; with a full model, of the canvas)"
    ),
    "temperature": (
        "sampling temperature T, 0 to 5: tokens are sampled from softmax(log p / T); above 0 needs a bundle exported "
        "with --top-k (default: 0, the top-1 tokens)"
    ),
    "json-schema": (
        "file with a JSON schema of choices and short texts; the answer is a document of that schema, and --json adds "
        "the probability of each choice (default: none, free text; supported subset: docs/decisions.md)"
    ),
    "probability": (
        "meaning of a value's probability, with --json-schema; parallel: of each field with the others masked; "
        "ordered: given the fields before it, in more forward passes (default: parallel)"
    ),
    "seed": "sampling seed; the same seed gives the same answer (default: random, reported by --json and --show)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: generate(parse_options(argv)))


def generate(args: argparse.Namespace) -> int:
    """Loads the bundle, generates, prints."""
    prompt, schema = read_prompt(args), None if args.json_schema is None else read_schema_file(args.json_schema)
    check_options(args)
    started = time.perf_counter()
    model = load_model(args)
    loaded = time.perf_counter() - started
    if schema is not None:
        return decide(model, prompt, schema, args, loaded)
    request = model.request(prompt, fill_dataclass(DecodeOptions, args, fused=True))
    steps: Iterator[Step] = model.steps(request.prompt, request.options)
    shown = make_view(model.tokenizer, model.contract, sys.stderr) if args.show else None
    if shown is not None:
        steps = show_steps(steps, shown)
    stream = blocks(steps, model.tokenizer)
    if args.json:
        print_json(report(model, collect_answer(stream), loaded))
        return DONE
    # On a terminal --show has printed the answer already; it must not be printed twice.
    animated = isinstance(shown, Screen) and sys.stdout.isatty()
    # In one file with the lines of steps, each block's text would end in the next step's line: the whole follows them.
    whole = shown is not None and not animated and is_same_file(sys.stdout, sys.stderr)
    answer = collect_answer(stream if animated or whole else print_blocks(stream))
    if whole:
        print(answer.text, flush=True)
    if shown is not None:
        print(format_summary(answer.result), file=sys.stderr)
    if answer.result.finish == "length" and not args.suffix:  # before a suffix, an answer is as long as its gap
        print(format_cut_line(model.contract, request), file=sys.stderr)
    return DONE


def format_cut_line(contract: Contract, request: Request) -> str:
    """Returns the line about an answer without an end token: what ended it, and how it may become longer."""
    given, tokens = len(request.prompt), request.options.max_new_tokens
    room = count_room_for_answer(choose_contract(contract, choose_mode(contract, request.options.mode)), given)
    if tokens is not None and tokens < room:
        return f"cut: no end token within {tokens} tokens; --max-new-tokens may be up to {room} for this prompt"
    if not contract.has_cache:
        advice = "a longer answer needs a larger one (--canvas, if a Hugging Face directory is exported)"
        return f"cut: no end token within {tokens} tokens, the model's canvas; {advice}"
    return (
        f"cut: no end token within {tokens} tokens, which with the prompt's {given} fill the KV-cache capacity of "
        f"{contract.capacity}; shorten the prompt, or export with a larger --capacity"
    )


def decide(model: Model, prompt: str | list[int], schema: Any, args: argparse.Namespace, loaded: float) -> int:
    """Decides the schema and prints the document."""
    started = time.perf_counter()
    probability: Probability = args.probability or "parallel"
    decided = model.decide(
        prompt, schema, probability=probability, max_forwards=args.max_forwards, threshold=args.threshold, raw=args.raw
    )
    seconds = time.perf_counter() - started
    if args.json:
        document = {"text": decided.text, "value": decided.value, **decided.as_json()}
        print_json({**document, "seconds": seconds, "load_seconds": loaded, "engine": model.engine})
        return DONE
    print(decided.text)
    if decided.partial:
        print(f"partial: --max-forwards {args.max_forwards} ended it before every field had a value", file=sys.stderr)
    return DONE


def read_schema_file(path: Path) -> dict[str, Any]:
    """Reads a file with a JSON schema. Raises UserError if it does not hold one."""
    try:
        schema = read_json(path)
    except OSError as error:
        raise UserError(f"--json-schema {path} cannot be read ({error.strerror}); give a file") from None
    except ValueError as error:
        raise UserError(f"--json-schema {path} is not JSON ({error}); expected a JSON schema") from None
    if not isinstance(schema, dict):
        raise UserError(f"--json-schema {path} holds {json.dumps(schema)[:40]}; expected a JSON schema, an object")
    return schema


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError for options without effect: those of decisions if no schema is given, others if one is."""
    decides = args.json_schema is not None
    unused = {
        "--show": args.show, "--suffix": args.suffix, "--temperature": args.temperature, "--mode": args.mode,
        "--seed": args.seed is not None, "--max-new-tokens": args.max_new_tokens is not None,
    } if decides else {"--probability": args.probability, "--max-forwards": args.max_forwards}  # fmt: skip
    for name, given in unused.items():
        if given:
            where = "has no use with --json-schema" if decides else "is for decisions, with --json-schema"
            raise UserError(f"{name} {where}; leave it out")


def print_blocks(stream: Iterable[Block]) -> Iterator[Block]:
    """Yields the same blocks, each after its text was printed."""
    for block in stream:
        print(block.text, end="" if block.result is None else "\n", flush=True)
        yield block


def is_same_file(one: TextIO, other: TextIO) -> bool:
    """Returns whether two streams write to one file, pipe or terminal."""
    try:
        return os.path.sameopenfile(one.fileno(), other.fileno())
    except (OSError, ValueError):  # a stream without a file, or a closed one
        return False


def report(model: Model, answer: Answer, load_seconds: float) -> dict[str, object]:
    """Returns what --json prints."""
    result = answer.result
    more = {"tokens_per_forward": result.tokens_per_forward, "load_seconds": load_seconds, "engine": model.engine}
    return {"text": answer.text, **asdict(result), **more}


def read_prompt(args: argparse.Namespace) -> str | list[int]:
    """Returns the prompt that the options give: text, token ids, or stdin's text without its last line end."""
    if args.token_ids is not None:
        if args.prompt is not None:
            raise UserError("got both a prompt and --token-ids; give one of them")
        return parse_whole_numbers(args.token_ids)
    if args.prompt not in (None, "-"):
        try:
            return os.fsencode(args.prompt).decode("utf-8")  # as it was typed, even if the locale has another encoding
        except UnicodeError:
            return str(args.prompt)
    if sys.stdin.isatty():
        print("reading the prompt from the terminal; end it with Ctrl-D", file=sys.stderr)
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not UTF-8 at byte {error.start}; give the prompt as UTF-8 text") from None
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def parse_whole_numbers(text: str) -> list[int]:
    """Parses token ids such as `1,2,3`."""
    try:
        return [parse_whole(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise UserError(f"--token-ids is {text[:80]!r}; expected token ids with commas, as in 1,2,3") from None


OPTIONS = (
    option(
        "bundle", metavar="BUNDLE", help="bundle, a folder that blockstep export onnx or blockstep export trt wrote"
    ),
    option(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="prompt text (default, and for -: read from stdin, without its last line end)",
    ),
    option("--token-ids", metavar="1,2,3", help="prompt as token ids, instead of PROMPT (default: none)"),
    option(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="maximum new tokens (default: 256, or fewer if KV cache or canvas have no room for them)",
    ),
    option("--suffix", default="", metavar="TEXT", help=HELP["suffix"]),
    option(
        "--threshold",
        type=float,
        metavar="T",
        help="threshold of the gate: a probability, nats or a factor, by the bundle's gate (default: the bundle's)",
    ),
    option("--temperature", type=float, default=0.0, metavar="T", help=HELP["temperature"]),
    option("--seed", type=int, metavar="N", help=HELP["seed"]),
    MODE_OPTION,
    option("--json-schema", type=Path, metavar="FILE", help=HELP["json-schema"]),
    option("--probability", choices=PROBABILITY_KINDS, help=HELP["probability"]),
    option(
        "--max-forwards",
        type=parse_at_least_1,
        metavar="N",
        help="maximum forward passes of a decision, with --json-schema (default: as many as it takes)",
    ),
    option(
        "--raw",
        action="store_true",
        help="use the prompt as it is, without the bundle's chat template (default: with it, if the bundle has one)",
    ),
    option("--show", action="store_true", help="show the blocks on stderr as they unmask, and a summary"),
    option("--json", action="store_true", help="print one JSON object with text, counts and times in seconds"),
    TEMPLATE_OPTION,
    *ENGINE_OPTIONS,
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = "Generates the answer to a prompt with an exported student, block by block."
    return make_cli_parser(f"{__package__}.generate", what, OPTIONS).parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
