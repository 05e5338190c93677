"""Answers held-out problems and grades them: accuracy, forwards, lengths, seconds; any model, gate and backend.

python -m train.evaluate --ckpt student.pt --task math --split test --count 2000
python -m train.evaluate --bundle student.bundle --task code
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from runtime.backend import Backend
from runtime.command import DONE, Parser, print_json, program
from runtime.command import run as run_command
from runtime.contract import Contract, GateSpec, parse_gate
from runtime.decode import Request, generate_batch
from runtime.errors import UserError
from runtime.layout import check_room, room_for_answer
from runtime.sequence import Result
from runtime.text import read_engine

from . import checkpoint, open_checkpoint, prompts, tasks
from .families import Overrides
from .options import add_directory_options, add_raw_option, overrides_of
from .output_files import check_file, replace_file
from .statistics import paired_difference, percentile, proportion
from .torch_backend import TorchBackend, contract_of, limit_threads

GATE_FLAGS = ("rule", "metric", "comparator", "threshold", "min", "max", "sub_block", "eos_guard")
OWN = ("--attention",)  # here it is for every checkpoint
BATCH, COUNT = 64, 500
IN_TORCH = ("batch", "bf16", *(name for name in Overrides.__slots__ if name != "template_args"))  # not for an engine


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated: a model behind its backend, how it is asked, its own gate, how many answers run at once.

    engine: its name in the bundle, `torch` for a checkpoint.
    """

    backend: Backend
    tokenizer: Tokenizer
    ask: prompts.Encode
    gate: GateSpec
    batch: int
    engine: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one model did on one list of problems, in their order."""

    texts: list[str]
    right: list[bool]
    results: list[Result]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Means over the problems; lengths in tokens, end token included."""
        accuracy = proportion(self.right)
        lengths = [len(result.token_ids) for result in self.results]
        forwards = [result.forwards for result in self.results]
        return {
            "problems": len(self.right),
            "accuracy": round(accuracy.mean, 5),
            "accuracy_95": [round(accuracy.low, 5), round(accuracy.high, 5)],
            "forwards": round(float(np.mean(forwards)), 3),
            "steps": round(float(np.mean([result.steps for result in self.results])), 3),
            "commits": round(float(np.mean([result.commits for result in self.results])), 3),
            "tokens_per_forward": round(sum(lengths) / max(1, sum(forwards)), 3),
            "length": round(float(np.mean(lengths)), 2),
            "length_p95": percentile(lengths, 0.95),
            "unfinished": sum(result.finish != "eos" for result in self.results),
            "seconds": round(self.seconds, 1),
        }


def evaluate(
    backend: Backend, tokenizer: Tokenizer, task: tasks.Task, problems: Sequence[tasks.Problem], *,
    gate: GateSpec | None = None, threshold: float | None = None, fused: bool = True, batch: int = BATCH,
    ask: prompts.Encode | None = None,
) -> Evaluation:  # fmt: skip
    """Decodes and grades `problems`, `batch` at a time, those of about one length together.

    An answer has at most the contract's canvas. ask: encodes the prompts, as they stand by default. Raises UserError
    for a prompt that leaves no room for an answer, before any work.
    """
    requests = _requests(backend.contract, (ask or prompts.plain(tokenizer))([p.prompt for p in problems]))
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    results: dict[int, Result] = {}
    started = time.perf_counter()
    with tqdm(total=len(order), unit="answer", desc=task.name, mininterval=2) as bar:
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            part = [requests[i] for i in chosen]
            done = generate_batch(backend, part, gate=gate, threshold=threshold, fused=fused)
            results.update(zip(chosen, done, strict=True))
            bar.update(len(chosen))
    seconds = time.perf_counter() - started
    ordered = [results[i] for i in range(len(requests))]
    texts = [text_of(tokenizer, result, backend.contract.eos_ids) for result in ordered]
    return Evaluation(texts, task.grade_many(problems, texts), ordered, seconds)


def fitting(subject: Subject, problems: Sequence[tasks.Problem]) -> list[int]:
    """The places of the problems whose prompts leave the model room for an answer; the others are told on stderr."""
    encoded = subject.ask([problem.prompt for problem in problems])
    return prompts.fitting(encoded, [problem.line for problem in problems], subject.backend.contract)


def _requests(contract: Contract, asked: Sequence[Sequence[int]]) -> list[Request]:
    """Each prompt with the canvas, or as much of it as there is room for."""
    found = []
    for number, ids in enumerate(asked, start=1):
        wanted = max(1, min(contract.canvas, room_for_answer(contract, len(ids))))
        try:
            check_room(contract, len(ids), wanted)
        except UserError as error:
            raise UserError(f"problem {number} of {len(asked)}: {error}") from None
        found.append(Request(np.array(ids, np.int64), wanted))
    return found


def text_of(tokenizer: Tokenizer, result: Result, eos_ids: tuple[int, ...]) -> str:
    """The answer as text, without its end token."""
    ids = result.token_ids[:-1] if result.token_ids[-1] in eos_ids else result.token_ids
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def torch_backend(saved: checkpoint.Checkpoint, batch: int, attention: str | None, bf16: bool) -> TorchBackend:
    """A checkpoint as a batched PyTorch backend; `attention` runs its weights under another mask than its own."""
    if attention is not None:
        saved = replace(saved, decoding=replace(saved.decoding, attention=attention))
    return TorchBackend(saved.build(), contract_of(saved, batch), bf16=bf16, barred=saved.missing_ids())


def subject_of(args: argparse.Namespace) -> Subject:
    """The model that `add_model_options` let name. Raises UserError for options that are the other kind's."""
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads is {args.threads}; expected at least 1")
    if args.ckpt:
        if args.engine is not None:
            raise UserError("--engine was given with --ckpt, which runs in PyTorch; it is for --bundle")
        limit_threads(args.threads)
        saved, batch = (
            open_checkpoint.load(args.ckpt, overrides_of(args, OWN)),
            BATCH if args.batch is None else args.batch,
        )
        backend = torch_backend(saved, batch, args.attention, bool(args.bf16))
        ask = prompts.of_checkpoint(saved, args.raw)
        return Subject(backend, saved.read_tokenizer(), ask, backend.contract.gate, batch, "torch")
    if given := [name for name in IN_TORCH if getattr(args, name) is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} was given with --bundle, whose engine is fixed; it is for --ckpt")
    from runtime.bundle import read  # an engine is loaded only where one is asked for
    from runtime.open_bundle import load

    model = load(args.bundle, engine=args.engine, threads=args.threads, template_args=args.template_args)
    tokenizer = read_engine(read(args.bundle).tokenizer)
    tokenizer.encode_special_tokens = True
    ask = prompts.plain(tokenizer) if args.raw else prompts.in_chat(model.tokenizer)
    return Subject(model.backend, tokenizer, ask, model.gate, 1, model.engine)


def chosen_gate(args: argparse.Namespace, spec: GateSpec) -> GateSpec:
    """The model's gate with what the command line changes in it."""
    changes = {name: value for name in GATE_FLAGS if (value := getattr(args, name, None)) is not None}
    if "metric" in changes and "comparator" not in changes:
        changes["comparator"] = "<=" if changes["metric"] == "entropy" else ">="
    return parse_gate({**{name: getattr(spec, name) for name in spec.__slots__}, **changes})


def drawn(args: argparse.Namespace) -> tuple[tasks.Task, list[tasks.Problem]]:
    """The task and its problems. Raises UserError for more than one task."""
    if args.count is not None and args.count < 1:
        raise UserError(f"--count is {args.count}; expected at least 1")
    if args.data:
        task = tasks.from_file(args.data)
    else:
        task, *others = tasks.named(args.task)
        if others:
            raise UserError(
                f"--task is {args.task}; evaluation takes one task at a time, as {task.name}: run it for each"
            )
        if args.split == "all":
            raise UserError(
                "--split all is for --data; the problems of a task have no end, so give --split and --count"
            )
    count = args.count if args.count is not None else sys.maxsize if args.split == "all" else COUNT
    return task, list(task.problems(args.split, count, args.seed))


def assess(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates as the command line says and returns the report."""
    if args.out:
        check_file(args.out)
    task, problems = drawn(args)
    subject = subject_of(args)
    backend, gate = subject.backend, chosen_gate(args, subject.gate)
    kept = fitting(subject, problems)
    left_out = sorted({*range(len(problems))} - {*kept})
    problems = [problems[place] for place in kept]
    found = evaluate(
        backend, subject.tokenizer, task, problems, gate=gate, fused=args.commit == "fused", batch=subject.batch,
        ask=subject.ask,
    )  # fmt: skip
    per_problem = {
        "right": [int(verdict) for verdict in found.right],
        "forwards": [result.forwards for result in found.results],
        "length": [len(result.token_ids) for result in found.results],
        **({"left_out": left_out} if left_out else {}),
    }
    source = str(args.ckpt or args.bundle)
    settings = {"model": source, "engine": backend.name, "attention": backend.contract.attention, "commit": args.commit}
    where = {"task": task.name, "split": args.split, "seed": args.seed, "bf16": bool(args.bf16)}
    report = {**settings, **where, "gate": {name: getattr(gate, name) for name in gate.__slots__}, **found.summary()}
    if args.against:
        report["against"] = compared(args.against, report, per_problem)
    if args.out:
        text = json.dumps({**report, "per_problem": per_problem})
        replace_file(args.out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if args.wrong:
        show_wrong(problems, found)
    return report


def show_wrong(problems: Sequence[tasks.Problem], found: Evaluation) -> None:
    """Wrong answers with the right ones, on stderr."""
    for problem, text, right in zip(problems, found.texts, found.right, strict=True):
        if not right:
            print(f"--- {problem.group}\n{problem.prompt}\n{text}\n--- expected\n{problem.answer}", file=sys.stderr)


def compared(path: Path, report: dict[str, Any], per_problem: dict[str, list[int]]) -> dict[str, Any]:
    """This run against an earlier `--out` on the same problems: paired difference of accuracies, ratio of forwards.

    Raises UserError where that report is of other problems.
    """
    try:
        other = json.loads(path.read_text(encoding="utf-8-sig"))
        theirs, same = other["per_problem"], [other[name] for name in ("task", "split", "seed", "problems")]
        left_out = theirs.get("left_out", [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--against {path} is no report of --out ({error}); give one that train.evaluate wrote"
        ) from None
    ours = [report[name] for name in ("task", "split", "seed", "problems")]
    if same != ours or left_out != per_problem.get("left_out", []):
        what = f"{same}, this run is of {ours}" if same != ours else "other lines were left out"
        raise UserError(f"--against {path} is of other problems: {what}; evaluate both alike")
    difference = paired_difference(per_problem["right"], theirs["right"])
    return {
        "model": other["model"],
        "difference": round(difference.mean, 5),
        "difference_95": [round(difference.low, 5), round(difference.high, 5)],
        "fewer_forwards": round(sum(theirs["forwards"]) / sum(per_problem["forwards"]), 3),
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog=program("train.evaluate"), description=(__doc__ or "").splitlines()[0])
    add_model_options(p)
    add_gate_options(p)
    p.add_argument("--threshold", type=float, help="gate: probability, nats or factor")
    p.add_argument("--task", default="math", help="math or code (default math)")
    p.add_argument("--data", type=Path, help="JSON lines instead of a task")
    p.add_argument("--split", default="valid", help="train, valid, test or test_templates; of --data also all, each "
        "line once and in order, as a published test file is graded (default valid)")  # fmt: skip
    p.add_argument("--count", type=int, help=f"problems (default {COUNT}, with --split all every line)")
    p.add_argument("--seed", type=int, default=0, help="of the problems drawn (default 0)")
    p.add_argument("--commit", choices=("fused", "separate"), default="fused", help="(default fused)")
    p.add_argument("--out", type=Path, help="JSON report with every problem's outcome")
    p.add_argument("--against", type=Path, help="an earlier --out on the same problems, to compare with in pairs")
    p.add_argument("--wrong", action="store_true", help="print wrong answers to stderr")
    p.add_argument("--json", action="store_true", help="print the report as one JSON object")
    return p


def add_model_options(p: argparse.ArgumentParser) -> None:
    """Adds what says which model answers, and how it is run."""
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--ckpt", type=Path, help="checkpoint (.pt or Hugging Face directory), run in PyTorch")
    source.add_argument("--bundle", type=Path, help="bundle, run by its engine")
    p.add_argument("--engine", help="engine of the bundle (default its first)")
    p.add_argument("--attention", choices=("block_causal", "full"), help="run the weights under another mask")
    p.add_argument("--batch", type=int, help=f"answers at once in PyTorch (default {BATCH})")
    p.add_argument("--threads", type=int, help="of PyTorch or of the engine (default: the physical cores within the "
        "CPU quota)")  # fmt: skip
    p.add_argument("--bf16", action="store_true", default=None, help="bf16 autocast in PyTorch: faster where the "
        "processor has it, not exact (default off)")  # fmt: skip
    add_raw_option(p)
    add_directory_options(p, OWN)


def add_gate_options(p: argparse.ArgumentParser) -> None:
    """Adds what changes the model's gate, its threshold apart."""
    p.add_argument("--rule", help="gate: threshold, factor or count (default the model's, as all of the gate)")
    p.add_argument("--metric", help="gate: confidence or entropy")
    p.add_argument("--comparator", help="gate: >= > <= <")
    p.add_argument("--min", type=int, help="gate: fewest positions accepted a step")
    p.add_argument("--max", type=int, help="gate: most positions accepted a step")
    p.add_argument(
        "--sub-block", type=int, help="gate: positions of a part of the block that is finished before the next"
    )
    p.add_argument("--eos-guard", type=float, help="gate: share of the answer before which end tokens rank last")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(lambda: command(parser().parse_args(argv)))


def command(args: argparse.Namespace) -> int:
    """Evaluates and prints the report."""
    report = assess(args)
    if args.json:
        print_json(report)
    else:
        for name, value in report.items():
            print(f"{name:20} {value}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
