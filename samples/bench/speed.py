"""Times whole answers, and splits the time into factors: forward passes × cost per pass with the KV cache × engine.

    python -m samples.bench.speed --out samples/results/speed.json

Every contender answers the same held-out prompts. All contenders run a prompt, one after the other, before the next
prompt, so that a machine that gets slower slows all alike. Each has the task's canvas, the 99th percentile of the
lengths of its training answers in whole blocks, and uses early stop. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from export import onnx as export
from runtime import Model, load
from runtime.backend import Backend
from runtime.cli import DONE, Parser
from runtime.cli import run as run_command
from runtime.contract import GateSpec, parse_gate
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.request_state import Result
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import UserError
from runtime.perf.conditions import find_version, read_processor_name
from train import open_checkpoint, tasks
from train.checkpoint import Checkpoint
from train.data.batches import choose_canvas, survey
from train.storage.output_files import replace_file
from train.torch_backend import TorchBackend, derive_contract, limit_threads

SAMPLES = Path(__file__).resolve().parents[1]
ONE_A_STEP = GateSpec(rule="count", min=1)
WAYS = ("eager fp32", "eager bf16", "compiled fp32", "compiled bf16")
SPLIT, SEED = "valid", 11  # split that prompts come from, and seed of their sampling
REPORTED = ("split", "problems", "bf16", "accuracy", "accuracy_95")
PACKAGES = ("torch", "onnxruntime", "numpy")
FAST, BASELINE, SLOW = "student, ONNX Runtime", "baseline, ONNX Runtime", "teacher, ONNX Runtime"
INT8 = " int8"  # suffix of a name; without it, fp32


@dataclass(frozen=True, slots=True)
class Contender:
    """Describes one way to generate. model: the name of its file."""

    name: str
    model: str
    backend: Backend
    gate: GateSpec

    def answer(self, prompt: np.ndarray, canvas: int) -> Result:
        """Returns the answer to a prompt [length], of at most `canvas` tokens."""
        return generate(self.backend, Request(prompt, DecodeOptions(canvas)), gate=self.gate)


@dataclass(frozen=True, slots=True)
class InTorch:
    """Holds a checkpoint in PyTorch, eager and, if requested, compiled (dynamic shapes) at its first run."""

    saved: Checkpoint
    forwards: dict[str, torch.nn.Module]

    def backend(self, way: str, canvas: int) -> TorchBackend:
        """Returns a backend in fp32 or bf16 autocast; with `full` attention, over `canvas` tokens."""
        kind, precision = way.split()
        contract = replace(derive_contract(self.saved), canvas=canvas)
        backend = TorchBackend(
            self.saved.build(), contract, bf16=precision == "bf16", barred=self.saved.list_missing_ids()
        )
        backend.model = self.forwards[kind]  # type: ignore[assignment]
        return backend


def read(path: Path, ways: Sequence[str]) -> InTorch:
    """Reads a checkpoint and prepares the modules that the ways run."""
    saved = open_checkpoint.load(path)
    forwards: dict[str, torch.nn.Module] = {"eager": saved.build()}
    if any(way.startswith("compiled") for way in ways):
        torch._dynamo.config.recompile_limit = 64
        forwards["compiled"] = torch.compile(forwards["eager"], dynamic=True)  # type: ignore[assignment]
    return InTorch(saved, forwards)


def find_bundle(models: Path, name: str, spare: Path, precision: str = "fp32") -> Path:
    """Returns the bundle next to a checkpoint, or exports one into `spare` if there is none in that precision."""
    made = models / f"{name}.bundle"
    if precision != "fp32" or not made.is_dir():
        made = spare / f"{name}-{precision}.bundle"
        if code := export.main(["--ckpt", str(models / f"{name}.pt"), "--precision", precision, "--out", str(made)]):
            raise SystemExit(code)
    return made


def make_contenders(
    teacher: InTorch, student: InTorch, engines: Sequence[Model], ways: Sequence[str], canvas: int,
    threshold: float | None,
) -> list[Contender]:  # fmt: skip
    """Returns teacher and student in every PyTorch way and exported, and the exported autoregressive baseline.

    engines: student, baseline, teacher, then student and baseline in int8. The teacher's engine has no KV cache, so its
    graph runs any canvas.
    """

    def at(gate: GateSpec) -> GateSpec:
        return gate if threshold is None else replace(gate, threshold=threshold)

    found = [Contender(f"teacher, {way}", "teacher", teacher.backend(way, canvas), ONE_A_STEP) for way in ways]
    for way in ways:
        backend = student.backend(way, canvas)
        found.append(Contender(f"student in PyTorch, {way}", "student", backend, at(backend.contract.gate)))
    fast, baseline, slow, fast_int8, baseline_int8 = engines
    found.append(Contender(FAST, "student", fast.backend, at(fast.gate)))
    found.append(Contender(FAST + INT8, "student-int8", fast_int8.backend, at(fast_int8.gate)))
    found.append(Contender(BASELINE, "baseline", baseline.backend, baseline.gate))
    found.append(Contender(BASELINE + INT8, "baseline-int8", baseline_int8.backend, baseline_int8.gate))
    assert isinstance(slow.backend, OrtBackend)
    whole = OrtBackend(slow.backend.session, replace(slow.contract, canvas=canvas))
    found.append(Contender(SLOW, "teacher", whole, ONE_A_STEP))
    return found


def measure(
    found: Sequence[Contender], prompts: Sequence[np.ndarray], canvas: int, repeat: int
) -> dict[str, dict[str, Any]]:
    """Returns means over the prompts of each contender's fastest of `repeat` runs, and ms per prompt."""
    for contender in found:
        for prompt in prompts[:4]:
            contender.answer(prompt, canvas)  # compiles, plans memory
    times: dict[str, list[float]] = {c.name: [] for c in found}
    forwards: dict[str, list[int]] = {c.name: [] for c in found}
    tokens: dict[str, list[int]] = {c.name: [] for c in found}
    for prompt in tqdm(prompts, unit="prompt"):
        for contender in found:
            results = [contender.answer(prompt, canvas) for _ in range(repeat)]
            times[contender.name].append(min(r.seconds for r in results))
            forwards[contender.name].append(results[0].forwards)
            tokens[contender.name].append(len(results[0].token_ids))
    return {
        name: {
            "ms_an_answer": 1000 * float(np.mean(times[name])),
            "ms_an_answer_median": 1000 * median(times[name]),
            "forwards": float(np.mean(forwards[name])),
            "tokens": float(np.mean(tokens[name])),
            "ms_a_forward": 1000 * sum(times[name]) / sum(forwards[name]),
            "tokens_a_second": sum(tokens[name]) / sum(times[name]),
            "ms": [round(1000 * seconds, 4) for seconds in times[name]],
        }
        for name in times
    }


def compute_factors(rows: dict[str, dict[str, Any]], precision: str = "") -> dict[str, Any]:
    """Returns the speedup of the exported student over the teacher's fastest way in PyTorch, and its three factors.

    precision: INT8 for student and baseline in int8.
    """
    fast, baseline = FAST + precision, BASELINE + precision

    def fastest(start: str) -> str:
        names = (name for name in rows if name.startswith(start) and name != SLOW)
        return min(names, key=lambda name: rows[name]["ms_an_answer"])

    slow, middle = fastest("teacher"), fastest("student in PyTorch")
    cost = {name: row["ms_a_forward"] for name, row in rows.items()}
    return {
        "teacher": slow,
        "student_in_torch": middle,
        "forwards": rows[slow]["forwards"] / rows[fast]["forwards"],
        "cache": cost[slow] / cost[middle],
        "engine": cost[middle] / cost[fast],
        "whole": rows[slow]["ms_an_answer"] / rows[fast]["ms_an_answer"],
        "against_student_in_torch": rows[middle]["ms_an_answer"] / rows[fast]["ms_an_answer"],
        "against_baseline": rows[baseline]["ms_an_answer"] / rows[fast]["ms_an_answer"],
    }


def find_accuracy(contender: Contender, task: str, reports: Path) -> dict[str, Any] | None:
    """Returns train.evaluate's accuracy for a contender's model, attention and gate on a task, or None.

    Of several reports, the one on the most problems counts.
    """
    best: dict[str, Any] | None = None
    for path in sorted(reports.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report.get("task") != task or Path(report["model"]).stem != contender.model:
            continue
        alike = report["attention"] == contender.backend.contract.attention
        alike &= list_deciding_values(parse_gate(report["gate"])) == list_deciding_values(contender.gate)
        if alike and (best is None or report["problems"] > best["problems"]):
            best = {"report": path.name, **{name: report[name] for name in REPORTED}}
    return best


def list_deciding_values(gate: GateSpec) -> dict[str, Any]:
    """Returns the values of a gate that its rule reads."""
    unread = () if gate.unit else ("threshold", "comparator")
    return {name: value for name, value in asdict(gate).items() if name not in unread}


def print_table(task: str, rows: dict[str, dict[str, Any]], products: Sequence[dict[str, Any]]) -> None:
    print(f"\n{task}: {'':24}{'ms/answer':>11}{'forward passes':>16}{'ms per pass':>13}{'tokens/s':>10}")
    for name, row in rows.items():
        print(
            f"{name:30}{row['ms_an_answer']:>11.2f}{row['forwards']:>16.1f}{row['ms_a_forward']:>13.3f}"
            f"{row['tokens_a_second']:>10.0f}"
        )
    for product in products:
        print({name: round(value, 2) if isinstance(value, float) else value for name, value in product.items()})


def compare(args: argparse.Namespace, ways: Sequence[str], spare: Path) -> dict[str, Any]:
    """Returns canvas, contenders with their conditions, and factors of each task; prints a table per task."""
    teacher, student = (read(args.models / f"{name}.pt", ways) for name in ("teacher", "student"))
    bundles = [find_bundle(args.models, name, spare) for name in ("student", "baseline", "teacher")]
    bundles += [find_bundle(args.models, name, spare, "int8") for name in ("student", "baseline")]
    tokenizer, decoding = student.saved.read_tokenizer(), student.saved.decoding
    made = {}
    for task in tasks.choose_tasks("math,code"):
        canvas = choose_canvas(survey([task], tokenizer, decoding.eos_ids[0]), decoding.block)
        chosen = task.problems(SPLIT, args.count, SEED)
        prompts = [np.array(tokenizer.encode(problem.prompt).ids, np.int64) for problem in chosen]
        engines = [load(bundle, threads=args.threads) for bundle in bundles]
        found = make_contenders(teacher, student, engines, ways, canvas, args.threshold)
        rows = measure(found, prompts, canvas, args.repeat)
        products = compute_factors(rows), compute_factors(rows, INT8)
        print_table(task.name, rows, products)
        entries = {
            c.name: {**rows[c.name], "gate": asdict(c.gate), "accuracy": find_accuracy(c, task.name, args.reports)}
            for c in found
        }
        made[task.name] = {"canvas": canvas, "contenders": entries, "factors": products[0], "factors_int8": products[1]}
    return made


def execute(args: argparse.Namespace) -> int:
    """Measures both tasks and writes the report."""
    ways = [way.strip() for way in args.ways.split(",")]
    if min(args.count, args.repeat, 1 if args.threads is None else args.threads) < 1 or not set(ways) <= {*WAYS}:
        raise UserError(
            f"got --count {args.count}, --repeat {args.repeat}, --threads {args.threads}, --ways {args.ways}; expected "
            f"numbers of at least 1, and ways of {', '.join(WAYS)}"
        )
    limit_threads(args.threads)
    with TemporaryDirectory() as spare:
        made = compare(args, ways, Path(spare))
    versions = {name: find_version(name) for name in PACKAGES}
    conditions = {
        "cpu": read_processor_name(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "repeat": args.repeat,
    }
    report = {**conditions, "prompts": args.count, "split": SPLIT, "seed": SEED, "tasks": made}
    if args.out:
        text = json.dumps(report, indent=1) + "\n"
        replace_file(args.out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return DONE


def make_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    p = Parser(prog="python -m samples.bench.speed", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--models", type=Path, default=SAMPLES,
        help=(
                "folder of teacher.pt, student.pt and baseline.pt; bundles that it lacks are exported to a temporary "
                "folder (default: samples)"
            ))  # fmt: skip
    p.add_argument("--reports", type=Path, default=SAMPLES / "results",
        help=(
                "folder of train.evaluate's reports, for the accuracies of the same models at the same gates (default: "
                "samples/results)"
            ))  # fmt: skip
    p.add_argument("--count", type=int, default=40, help="held-out prompts per task (default: 40)")
    p.add_argument(
        "--repeat", type=int, default=3, help="runs of each prompt, of which the fastest counts (default: 3)"
    )
    p.add_argument("--threshold", type=float, help="threshold of the student's gate, in its unit (default: its own)")
    p.add_argument(
        "--ways",
        default=",".join(WAYS),
        help="ways to run PyTorch, with commas; compiled ones need a C++ compiler (default: all)",
    )
    p.add_argument("--threads", type=int,
        help=(
                "threads of PyTorch and of ONNX Runtime (default: the physical cores; 1 for a small int8 engine, as "
                "runtime.load takes it)"
            ))  # fmt: skip
    p.add_argument("--out", type=Path, help="file to write the JSON report to (default: none)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(lambda: execute(make_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
