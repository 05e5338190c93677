"""Measures accuracy, forward passes and CPU seconds of models in each of their decoding modes, problem by problem.

    python -m samples.study.modes runs/self.bundle samples/student.bundle --count 400 --out runs/modes.jsonl

Every model answers a problem in each of its modes before the next problem comes, in one process and one thread, so that
CPU seconds can be compared even if other work runs on the machine. With `--threads` above 1, seconds are by the clock,
which needs an idle machine. A model in a mode is named `model:mode`, or `model:mode@8` if it drafts blocks of 8 tokens
(`--widths 8`).

The command can be stopped at any time: answers that `--out` has are not generated again. The file is of one split and
of the same bundles. Exits with 1 if a speculative answer differs from the causal one in any token.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.bundle import manifest
from runtime.cli import DONE, FAILED, add_options, make_cli_parser, option, run
from runtime.decoding.block_layout import count_room_for_answer
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import UserError
from runtime.model import Model
from runtime.open_bundle import load
from train import tasks
from train.cli_options import parse_numbers
from train.evaluation.intervals import estimate_proportion

CHUNK = 25  # problems that are graded and written together
CAUSAL, SPECULATIVE = "causal", "speculative"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelMode:
    """Names a model in a mode.

    width: tokens per drafted block, None for the model's block size; fused: as in `DecodeOptions`.
    """

    model: str
    mode: str
    width: int | None = None
    fused: bool = True

    def __str__(self) -> str:
        width, separate = f"@{self.width}" if self.width else "", "" if self.fused else "-separate"
        return f"{self.model}:{self.mode}{separate}{width}"


def list_model_modes(name: str, model: Model, widths: Sequence[int]) -> list[ModelMode]:
    """Returns the modes of a model, and its speculative one with blocks of other widths.

    Raises UserError for a width that is not from 2 tokens to the model's block.
    """
    block, modes = model.contract.block, model.contract.modes
    if wrong := [width for width in widths if not 2 <= width <= block]:
        raise UserError(f"--widths has {wrong[0]}, but {name} has blocks of {block} tokens; give 2 to {block}")
    by_width = [ModelMode(name, SPECULATIVE, width) for width in widths if SPECULATIVE in modes]
    return [*(ModelMode(name, mode) for mode in modes), *by_width]


def answer(
    model: Model, way: ModelMode, problem: tasks.Problem, clock: Callable[[], float] = time.process_time
) -> Record:
    """Returns the answer to one problem: its tokens and text, forward passes, and seconds by `clock`."""
    backend, contract = model.backend, model.contract
    ids = model.tokenizer.encode_chat(problem.prompt)
    max_new_tokens = max(1, min(contract.canvas, count_room_for_answer(contract, len(ids))))
    request = Request(ids, DecodeOptions(max_new_tokens, mode=way.mode, fused=way.fused))
    if way.width is not None:
        canvas = contract.canvas // way.width * way.width
        backend.contract = replace(contract, block=way.width, canvas=canvas)  # type: ignore[misc]
    try:
        start = clock()
        result = generate(backend, request, gate=model.gate)
        seconds = clock() - start
    finally:
        if way.width is not None:
            backend.contract = contract  # type: ignore[misc]
    tokens = list(result.token_ids)
    text = model.tokenizer.decode(tokens[:-1] if result.finish == "eos" else tokens)
    return {"tokens": tokens, "text": text, "forwards": result.forwards, "seconds": round(seconds, 6)}


def measure(
    models: Mapping[str, Model],
    files: Mapping[str, str],
    ways: Sequence[ModelMode],
    measured_tasks: Sequence[tasks.Task],
    split: str,
    count: int,
    out: Path,
    threads: int,
) -> None:
    """Answers the problems that `out` lacks, in every way; appends a line per problem and way after every CHUNK.

    files: each model's file, named by its content.
    """
    known = read_known_answers(out, files, split, threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    problems = {task.name: list(task.problems(split, count, 0)) for task in measured_tasks}
    with tqdm(total=count * len(measured_tasks), unit="problem", mininterval=5) as bar:
        for first in range(0, count, CHUNK):
            for task in measured_tasks:
                chunk = problems[task.name][first : first + CHUNK]
                records = []
                for number, problem in enumerate(chunk, start=first):
                    new_ways = [way for way in ways if (task.name, str(way), number) not in known]
                    origin = {"task": task.name, "problem": number, "split": split, "threads": threads}
                    for previous, way in zip([None, *new_ways], new_ways, strict=False):
                        if previous is None or previous.model != way.model:
                            # Not timed: the first answer after another model's reads all weights from memory again.
                            answer(models[way.model], way, problem)
                        outcome = answer(models[way.model], way, problem, clock)
                        records.append({**origin, "way": str(way), "file": files[way.model], **outcome})
                    bar.update()
                texts = [record.pop("text") for record in records]
                of_texts = [chunk[record["problem"] - first] for record in records]
                verdicts = task.grade_many(of_texts, texts) if records else []
                with out.open("a", encoding="utf-8") as file:
                    for record, right in zip(records, verdicts, strict=True):
                        file.write(json.dumps({**record, "right": bool(right)}) + "\n")


def read_known_answers(out: Path, files: Mapping[str, str], split: str, threads: int) -> set[tuple[str, str, int]]:
    """Returns task, way and problem number of the answers that `out` has.

    files: as in `measure`. Raises UserError for answers of another file, to another split, or with another number of
    threads.
    """
    records = read_records(out)
    for record in records:
        if record.get("threads", 1) != threads:
            raise UserError(f"{out} has answers of --threads {record.get('threads', 1)}; give another --out")
        name = record["way"].rpartition(":")[0]
        origin = record.get("split", split), record.get("file", files.get(name))
        if name in files and origin != (split, files[name]):
            raise UserError(f"{out} has answers of {name} to the split {origin[0]} by {origin[1]}; give another --out")
    return {(record["task"], record["way"], record["problem"]) for record in records}


def read_records(out: Path) -> list[Record]:
    """Returns the records of a file, none if it does not exist. Raises UserError for a file of something else."""
    if not out.exists():
        return []
    try:
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise UserError(f"{out} is not what this tool wrote ({error}); remove it, or its last line") from None


def format_table(records: Sequence[Record]) -> Iterator[str]:
    """Yields a table per task: each way's accuracy, forward passes, and time relative to the base.

    The base is the first causal way, or the first way if none is causal; times are compared on common problems.
    """
    for task in dict.fromkeys(record["task"] for record in records):
        of_task = [record for record in records if record["task"] == task]
        by_way = {way: [r for r in of_task if r["way"] == way] for way in dict.fromkeys(r["way"] for r in of_task)}
        base = next((way for way in by_way if way.endswith(f":{CAUSAL}")), next(iter(by_way)))
        time_head = "CPU time" if of_task[0].get("threads", 1) == 1 else "time by the clock"
        yield (
            f"| {task} | problems | right, % (95 %) | forward passes | tokens per forward pass | "
            f"{time_head} to {base} |"
        )
        yield "|---|---|---|---|---|---|"
        for way, rows in by_way.items():
            share = estimate_proportion([row["right"] for row in rows])
            forwards = sum(row["forwards"] for row in rows)
            tokens = sum(len(row["tokens"]) for row in rows)
            common = {row["problem"] for row in rows} & {row["problem"] for row in by_way[base]}
            ours, theirs = (sum(r["seconds"] for r in part if r["problem"] in common) for part in (rows, by_way[base]))
            yield (
                f"| {way} | {len(rows)} | {100 * share.mean:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f}) | "
                f"{forwards / len(rows):.2f} | {tokens / max(1, forwards):.2f} | {ours / max(1e-9, theirs):.2f} |"
            )
        yield ""


def find_differences(records: Sequence[Record]) -> tuple[int, list[Record]]:
    """Returns how many speculative answers can be compared with a causal one, and the records of those that differ."""
    causal_tokens = {
        (r["task"], r["way"].rpartition(":")[0], r["problem"]): r["tokens"]
        for r in records
        if r["way"].endswith(f":{CAUSAL}")
    }
    count, different = 0, []
    for record in records:
        model, _, mode = record["way"].rpartition(":")
        tokens = causal_tokens.get((record["task"], model, record["problem"]))
        if mode.partition("@")[0] == SPECULATIVE and tokens is not None:
            count += 1
            different += [record] if record["tokens"] != tokens else []
    return count, different


def execute(args: argparse.Namespace) -> int:
    """Measures, prints the table, and reports whether speculative answers are the causal ones."""
    widths = [int(width) for width in parse_numbers(args.widths, "--widths")] if args.widths else []
    models, files = dict[str, Model](), dict[str, str]()
    for bundle in args.bundles:
        if bundle.stem in models:
            raise UserError(f"two bundles are called {bundle.stem}; rename one")
        models[bundle.stem] = load(bundle, threads=args.threads, allow_spinning=args.threads > 1)
        files[bundle.stem] = manifest.read(bundle).find_engine().model
    requested = set(args.modes.split(",")) if args.modes else None
    ways = [way for name, model in models.items() for way in list_model_modes(name, model, widths)]
    if unknown := sorted((requested or set()) - {way.mode for way in ways}):
        raise UserError(f"--modes has {unknown[0]}; expected some of {', '.join(sorted({way.mode for way in ways}))}")
    ways = [way for way in ways if requested is None or way.mode in requested]
    measure(models, files, ways, tasks.choose_tasks(args.task, None), args.split, args.count, args.out, args.threads)
    records = read_records(args.out)
    print("\n".join(format_table(records)))
    count, different = find_differences(records)
    print(f"{len(different)} of {count} speculative answers differ from the causal ones")
    for record in different:
        print(f"differs: {record['way']} on problem {record['problem']} of {record['task']}", file=sys.stderr)
    return FAILED if different else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = make_cli_parser("samples.study.modes", (__doc__ or "").splitlines()[0])
    add_options(parser, OPTIONS)
    return run(lambda: execute(parser.parse_args(argv)))


OPTIONS = (
    option("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundles to measure, each by its first engine"),
    option("--task", default="math,code", help="sample tasks, with commas (default: math,code)"),
    option("--split", default="valid", help="split of the problems (default: valid)"),
    option("--count", type=int, default=400, help="problems per task (default: 400)"),
    option("--modes", help="decoding modes, with commas (default: all that a model has)"),
    option("--widths", help="further block sizes to draft, in tokens, with commas, as in 4,8 (default: none)"),
    option("--threads", type=int, default=1, help="threads per model; above 1, times are by the clock (default: 1)"),
    option("--out", type=Path, required=True, help="file to append one JSON line per answer to"),
)


if __name__ == "__main__":
    sys.exit(main())
