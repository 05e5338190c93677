"""Runs the main path on the sample student: export, verify, generate, compare with its teacher. Run by `make demo`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime import load
from runtime.contract import GateSpec
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.request_state import Result
from train import open_checkpoint
from train.evaluation.evaluated_model import make_torch_backend

SAMPLES = Path(__file__).resolve().parent
BUNDLE = SAMPLES.parent / "build" / "demo" / "student.bundle"
ONE_PER_STEP = GateSpec(rule="count", min=1)


def run(title: str, *command: str) -> str:
    """Runs a command as a user would; returns what it printed if it has --json. Stops the demo if it fails."""
    print(f"\n== {title}\n$ {shlex.join(['python', '-m', *command])}", flush=True)
    kept = subprocess.PIPE if "--json" in command else None
    done = subprocess.run([sys.executable, "-m", *command], cwd=SAMPLES.parent, check=False, stdout=kept, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def generate_teacher_answers(prompts: list[str]) -> tuple[list[str], list[Result]]:
    """Generates the teacher's answers in PyTorch, one token per step. Returns their texts and results."""
    saved = open_checkpoint.load(SAMPLES / "teacher.pt")
    backend, tokenizer = make_torch_backend(saved, 1, None, False), saved.read_tokenizer()
    ids = [np.array(tokenizer.encode(prompt).ids, np.int64) for prompt in prompts]
    requests = [Request(prompt, DecodeOptions(backend.contract.canvas)) for prompt in ids]
    generate(backend, requests[0], gate=ONE_PER_STEP)  # the first run is slower, and not counted
    results = [generate(backend, request, gate=ONE_PER_STEP) for request in requests]
    texts = []
    for result in results:
        shown = result.token_ids[:-1] if result.finish == "eos" else result.token_ids
        texts.append(tokenizer.decode(list(shown), skip_special_tokens=False))
    return texts, results


def print_table(verified: dict[str, Any], teacher: Sequence[Result], student: Sequence[Result]) -> None:
    """Prints parity, then each model's forward passes, tokens per pass, seconds, and the ratio of both."""
    difference, differing = verified["max"]["every_log_prob"], len(verified["differing"])
    print(f"\nparity with PyTorch: max |d log p| {difference:.1e} over all tokens above e^-20")
    print(f"{differing} of {verified['answers']} answers differ")
    print(f"\n{'':34}{'forward passes':>16}{'tokens per pass':>17}{'seconds':>10}")
    sums = []
    rows = ("teacher, one token per step, PyTorch", teacher), (f"student, {student[0].mode}, ONNX Runtime", student)
    for name, results in rows:
        forwards, seconds = sum(r.forwards for r in results), sum(r.seconds for r in results)
        tokens = sum(len(r.token_ids) for r in results)
        sums.append((forwards, seconds))
        print(f"{name:34}{forwards:>16}{tokens / forwards:>17.1f}{seconds:>10.3f}")
    (slow_forwards, slow), (fast_forwards, fast) = sums
    print(f"{'ratio':34}{slow_forwards / fast_forwards:>15.1f}x{'':17}{slow / fast:>9.1f}x")


def main() -> None:
    started = time.perf_counter()
    ckpt = str(SAMPLES / "student.pt")
    prompts = [(SAMPLES / name).read_text(encoding="utf-8").rstrip() for name in ("prompt_math.txt", "prompt_code.txt")]
    run("export the student's step graph", "export.onnx", "--ckpt", ckpt, "--out", str(BUNDLE))
    verified = run(
        "verify it against PyTorch", "export.verify", str(BUNDLE), "--ckpt", ckpt, "--prompts", "40", "--json"
    )
    for task, prompt in zip(("math", "code"), prompts, strict=True):
        run(f"answer a prompt of {task}", "runtime.generate", str(BUNDLE), prompt, "--show")
    model = load(BUNDLE)
    for prompt in prompts:
        model.generate(prompt)  # the engine's first run plans its memory
    answers = [model.generate(prompt) for prompt in prompts]
    texts, teacher = generate_teacher_answers(prompts)
    print("\n== the same prompts by its teacher, one token per step")
    print_table(json.loads(verified), teacher, [answer.result for answer in answers])
    same = sum(answer.text == text for answer, text in zip(answers, texts, strict=True))
    took = time.perf_counter() - started
    print(f"{same} of {len(prompts)} texts are identical to the teacher's; the demo took {took:.0f} s")


if __name__ == "__main__":
    main()
