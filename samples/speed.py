"""Wall clock of whole answers as a product of its factors: forwards × cost of a forward through the cache × engine.

    python samples/speed.py --out samples/results/speed.json

Every contender answers the same held-out prompts, one at a time, in turn: for each prompt all of them run before the
next one, so that a machine that drifts slows all alike. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from runtime import load
from runtime.backend import Backend
from runtime.contract import GateSpec
from runtime.decode import Request, generate
from runtime.sequence import Result
from train import checkpoint, tasks
from train.torch_backend import TorchBackend, contract_of

SAMPLES = Path(__file__).resolve().parent
ONE_A_STEP = GateSpec(rule="count", min=1)
WAYS = ("eager fp32", "eager bf16", "compiled fp32", "compiled bf16")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to answer; `gate` None means the model's own."""

    name: str
    backend: Backend
    gate: GateSpec | None = None

    def answer(self, prompt: np.ndarray) -> Result:
        """The answer to a prompt [length], at most a canvas long."""
        return generate(self.backend, Request(prompt, self.backend.contract.canvas), gate=self.gate)


def in_torch(path: Path, way: str) -> TorchBackend:
    """A checkpoint at batch 1: eager or compiled (shapes dynamic), fp32 or bf16 autocast."""
    saved = checkpoint.load(path)
    backend = TorchBackend(saved.build(), contract_of(saved), bf16=way.endswith("bf16"))
    if way.startswith("compiled"):
        backend.model = torch.compile(backend.model, dynamic=True)  # type: ignore[assignment]
    return backend


def contenders(folder: Path) -> list[Contender]:
    """The teacher in every PyTorch way, the student in PyTorch and exported, the autoregressive rival exported."""
    found = [Contender(f"teacher, {way}", in_torch(folder / "teacher.pt", way), ONE_A_STEP) for way in WAYS]
    found += [Contender(f"student in PyTorch, {way}", in_torch(folder / "student.pt", way)) for way in WAYS]
    found.append(Contender("student, ONNX Runtime", load(folder / "student.bundle").backend))
    found.append(Contender("rival, ONNX Runtime", load(folder / "rival.bundle").backend))
    return found


def measure(found: list[Contender], prompts: list[np.ndarray], repeat: int) -> dict[str, dict[str, float]]:
    """Medians over the prompts of each contender's fastest of `repeat` runs."""
    for contender in found:
        for prompt in prompts[:4]:
            contender.answer(prompt)  # compiles, plans memory
    times: dict[str, list[float]] = {c.name: [] for c in found}
    forwards: dict[str, list[int]] = {c.name: [] for c in found}
    tokens: dict[str, list[int]] = {c.name: [] for c in found}
    for prompt in tqdm(prompts, unit="prompt"):
        for contender in found:
            results = [contender.answer(prompt) for _ in range(repeat)]
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
        }
        for name in times
    }


def factors(rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The teacher's fastest way over the exported student, as a whole and as three factors whose product it is."""

    def fastest(start: str) -> str:
        return min((name for name in rows if name.startswith(start)), key=lambda name: rows[name]["ms_an_answer"])

    fast = "student, ONNX Runtime"
    slow, middle = fastest("teacher"), fastest("student in PyTorch")
    cost = {name: row["ms_a_forward"] for name, row in rows.items()}
    return {
        "teacher": slow,
        "student_in_torch": middle,
        "forwards": rows[slow]["forwards"] / rows[fast]["forwards"],
        "cache": cost[slow] / cost[middle],
        "engine": cost[middle] / cost[fast],
        "whole": rows[slow]["ms_an_answer"] / rows[fast]["ms_an_answer"],
        "against_rival": rows["rival, ONNX Runtime"]["ms_an_answer"] / rows[fast]["ms_an_answer"],
    }


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--models", type=Path, default=SAMPLES, help="folder of teacher.pt, student.pt and the bundles")
    p.add_argument("--count", type=int, default=40, help="held-out prompts a task (default 40)")
    p.add_argument("--repeat", type=int, default=3, help="runs of each, the fastest counts (default 3)")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch (default all cores)")
    p.add_argument("--out", type=Path, help="JSON report")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64
    found = contenders(args.models)
    tokenizer = checkpoint.load(args.models / "student.pt").read_tokenizer()
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
    report: dict[str, Any] = {"versions": versions, "threads": args.threads, "tasks": {}}
    for task in tasks.named("math,code"):
        prompts = [np.array(tokenizer.encode(p.prompt).ids, np.int64) for p in task.problems("valid", args.count, 11)]
        rows = measure(found, prompts, args.repeat)
        report["tasks"][task.name] = {"contenders": rows, "factors": factors(rows)}
        print(f"\n{task.name}: {'':24}{'ms/answer':>11}{'forwards':>10}{'ms/forward':>12}{'tokens/s':>10}")
        for name, row in rows.items():
            print(
                f"{name:30}{row['ms_an_answer']:>11.2f}{row['forwards']:>10.1f}{row['ms_a_forward']:>12.3f}"
                f"{row['tokens_a_second']:>10.0f}"
            )
        print(
            {
                name: round(v, 2) if isinstance(v, float) else v
                for name, v in report["tasks"][task.name]["factors"].items()
            }
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
