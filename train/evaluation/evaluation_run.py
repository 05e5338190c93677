"""Generates answers to problems, grades them, and reports accuracy, forward passes, lengths and seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from runtime.backend import Backend
from runtime.bundle import strict_json
from runtime.contract import Contract, GateSpec
from runtime.decoding.block_layout import check_room, count_room_for_answer
from runtime.decoding.loop import generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.request_state import Result
from runtime.errors import UserError
from train import tasks
from train.data import prompts

from .evaluated_model import BATCH, EvaluatedModel
from .intervals import estimate_proportion, estimate_wilson


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The outcomes of one model on a list of problems, in their order."""

    texts: list[str]
    right: list[bool]
    results: list[Result]
    seconds: float

    def summarize(self) -> dict[str, Any]:
        """Returns means over the problems; lengths in tokens, end token included."""
        accuracy = estimate_proportion(self.right)
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
            "length_p95": int(np.quantile(lengths, 0.95, method="inverted_cdf")),
            "unfinished": sum(result.finish != "eos" for result in self.results),
            "seconds": round(self.seconds, 1),
        }


def evaluate(
    backend: Backend,
    tokenizer: Tokenizer,
    task: tasks.Task,
    problems: Sequence[tasks.Problem],
    *,
    gate: GateSpec | None = None,
    threshold: float | None = None,
    fused: bool = True,
    batch: int = BATCH,
    encode_prompts: prompts.Encode | None = None,
    mode: str | None = None,
) -> Evaluation:
    """Generates answers to `problems`, `batch` at a time, prompts of similar length together, and grades them.

    An answer is at most as long as the contract's canvas. encode_prompts: None for plain text. gate, threshold, mode:
    None for the contract's. Raises UserError, before any work, for a prompt that leaves no room for an answer.
    """
    requests = _make_requests(
        backend.contract, (encode_prompts or prompts.make_plain_encoder(tokenizer))([p.prompt for p in problems])
    )
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    results: dict[int, Result] = {}
    started = time.perf_counter()
    with tqdm(total=len(order), unit="answer", desc=task.name, mininterval=2) as bar:
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            part = [requests[i] for i in chosen]
            done = generate_batch(backend, part, gate=gate, threshold=threshold, fused=fused, mode=mode)
            results.update(zip(chosen, done, strict=True))
            bar.update(len(chosen))
    seconds = time.perf_counter() - started
    ordered = [results[i] for i in range(len(requests))]
    texts = [decode_answer(tokenizer, result, backend.contract.eos_ids) for result in ordered]
    return Evaluation(texts, task.grade_many(problems, texts), ordered, seconds)


def evaluate_model(
    subject: EvaluatedModel, task: tasks.Task, problems: Sequence[tasks.Problem], gate: GateSpec, **options: Any
) -> Evaluation:
    """Evaluates an opened model with this gate. options: `threshold`, `fused` and `mode`, as in `evaluate`."""
    own: dict[str, Any] = {"batch": subject.batch, "encode_prompts": subject.encode_prompts}
    return evaluate(subject.backend, subject.tokenizer, task, problems, gate=gate, **own, **options)


def measure_task(
    task: tasks.Task, problems: Sequence[tasks.Problem], texts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Returns the task's own figures, with the 95 % interval of each that is a share of the problems.

    Also returns, for each share, a list with 1 per problem that counts in it and 0 per other one.
    """
    figures: dict[str, Any] = dict(task.measure(problems, texts))
    each = [task.measure([problem], [text]) for problem, text in zip(problems, texts, strict=True) if task.shares]
    for name in task.shares:
        interval = estimate_wilson(min(1.0, figures[name]), len(problems))
        figures[f"{name}_95"] = [round(interval.low, 5), round(interval.high, 5)]
    return figures, {name: [int(one[name] > 0) for one in each] for name in task.shares}


def summarize_groups(problems: Sequence[tasks.Problem], right: Sequence[bool]) -> dict[str, dict[str, Any]]:
    """Returns the accuracy of each group of problems with its 95 % interval, the worst first."""
    verdicts: dict[str, list[bool]] = {}
    for problem, verdict in zip(problems, right, strict=True):
        verdicts.setdefault(problem.group, []).append(verdict)
    found = {}
    for group, graded in sorted(verdicts.items(), key=lambda item: (sum(item[1]) / len(item[1]), item[0])):
        share = estimate_proportion(graded)
        bounds = [round(share.low, 5), round(share.high, 5)]
        found[group] = {"problems": len(graded), "right": sum(graded), "accuracy_95": bounds}
    return found


def sample_problems(task: tasks.Task, split: str, count: int, seed: int) -> list[tasks.Problem]:
    """Returns `count` problems of a split; if it has fewer, all of them, which is reported on stderr."""
    problems = list(task.problems(split, count, seed))
    if 0 < len(problems) < count:
        what = f"{len(problems)} problems, fewer than the {count} requested"
        print(f"the split {split} of {task.name} has {what}: all of them are used", file=sys.stderr)
    return problems


def find_fitting_problems(subject: EvaluatedModel, problems: Sequence[tasks.Problem]) -> list[int]:
    """Returns the indices of problems whose prompts leave the model room for an answer; names the others on stderr."""
    encoded = subject.encode_prompts([problem.prompt for problem in problems])
    return prompts.find_fitting(encoded, [problem.line for problem in problems], subject.backend.contract)


def _make_requests(contract: Contract, encoded: Sequence[Sequence[int]]) -> list[Request]:
    """Makes one request per prompt, for an answer as long as the canvas, or shorter if the KV cache has less room."""
    found = []
    for number, ids in enumerate(encoded, start=1):
        wanted = max(1, min(contract.canvas, count_room_for_answer(contract, len(ids))))
        try:
            check_room(contract, len(ids), wanted)
        except UserError as error:
            raise UserError(f"problem {number} of {len(encoded)}: {error}") from None
        found.append(Request(np.array(ids, np.int64), DecodeOptions(wanted)))
    return found


def decode_answer(tokenizer: Tokenizer, result: Result, eos_ids: tuple[int, ...]) -> str:
    """Returns the answer as text, without its end token."""
    ids = result.token_ids[:-1] if result.token_ids[-1] in eos_ids else result.token_ids
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def read_evaluation(path: Path) -> dict[str, Any]:
    """Reads a report of `train.evaluate --out` and checks its outcomes. Raises UserError for anything else."""
    try:
        values = strict_json.read(path)
        outcome, texts = values["per_problem"], [values["task"], values["split"]]
        right, forwards, left_out = outcome["right"], outcome["forwards"], outcome.get("left_out", [])
        plain = all(type(each) is int for each in (values["seed"], *right, *forwards, *left_out))
        if not (plain and all(isinstance(each, str) for each in texts) and 0 < len(right) == len(forwards)):
            raise ValueError("its per_problem is damaged")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a report of blockstep train evaluate --out ({error}); give one") from None
    return {"model": str(path), **values, "problems": len(right), "left_out": left_out}
