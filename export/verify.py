"""Compares a bundle with PyTorch on held-out prompts: python -m export.verify student.bundle --ckpt student.pt"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime.bundle import Bundle, read, verify_files
from runtime.command import DONE, FAILED, Parser, print_json, run
from runtime.contract import Contract
from runtime.decode import Request
from runtime.errors import UserError
from runtime.layout import room_for_answer
from runtime.ort import OrtBackend
from train import checkpoint, tasks
from train.checkpoint import Checkpoint
from train.options import add_directory_options, overrides_of
from train.torch_backend import TorchBackend

from .parity import BOUNDS, ENTROPY, EXACT, NOTICED, compare
from .twin import twin_of

SEED = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: verify(options(argv)))


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = "Compares a bundle's engine with PyTorch, step by step and answer by answer. "
    bounds = ", ".join(f"{bound:g} in {precision}" for precision, bound in BOUNDS.items())
    bounds = (
        f"Exit 1 where the best token's log-probability differs by more nats than {bounds}, or entropy by more than "
        f"{ENTROPY['fp32']:g} in fp32, {ENTROPY['fp16']:g} in fp16; in fp32 also where that of any token "
        f"above e^{NOTICED:g} does by more than {EXACT:g}, keys or values do by more than {EXACT:g} of their root mean "
        "square (or of 1), where another token is the best one, or any answer differs. A NaN fails always. Every token "
        "is seen in the same graph with its logits as one more output, which has to be equal to it otherwise."
    )
    p = Parser(prog="python -m export.verify", description=what + bounds)
    p.add_argument("bundle", type=Path, help="the bundle's folder")
    p.add_argument("--ckpt", type=Path, required=True, help="the .pt file or directory that it was exported from")
    p.add_argument("--engine", help="which of its engines (default: the first for ONNX Runtime)")
    p.add_argument("--prompts", type=int, default=200, help="how many held-out prompts (default 200)")
    p.add_argument("--task", default="math,code", help="sample tasks the prompts come from (default math,code)")
    p.add_argument("--data", type=Path, help="JSON lines of prompt and answer instead of a task")
    p.add_argument("--json", action="store_true", help="prints one JSON object; the checks go to stderr")
    add_directory_options(p)
    return p.parse_args(argv)


def verify(args: argparse.Namespace) -> int:
    """Answers the prompts on both sides and says how far they are apart."""
    started, stream = time.perf_counter(), sys.stderr if args.json else sys.stdout
    made, source = read(args.bundle), checkpoint.load(args.ckpt, overrides_of(args))
    engine = made.engine(args.engine)
    check_origin(made, args.ckpt, checkpoint.fingerprint(args.ckpt, overrides_of(args)))
    if engine.dialect != "ort":
        raise UserError(f"engine {engine.name} is of dialect {engine.dialect}; only ort can be verified here")
    verify_files(made, engine, "always")
    requests = held_out(source, made.contract, prompts(args.task, args.data, args.prompts))
    candidate = OrtBackend(made.path / engine.model, made.contract)
    reference = TorchBackend(source.build(), made.contract, barred=source.missing_ids())
    twin = twin_of(made.path / engine.model, candidate)
    compared = compare(reference, candidate, requests, gate=engine.gate, twin=twin)
    *_, parity = tqdm(compared, total=len(requests), unit="prompt", disable=None)
    checks = parity.checks(precision=engine.precision)
    for check in checks:
        print(check, file=stream)
    if args.json:
        told = {"bundle": str(made.path), "engine": engine.name, "prompts": len(requests), "answers": parity.answers}
        told |= {"max": asdict(parity.distance), "differing": [asdict(each) for each in parity.differing]}
        told |= {"checks": [asdict(check) for check in checks], "seconds": round(time.perf_counter() - started, 3)}
        print_json(told)
    return DONE if all(check.ok for check in checks) else FAILED


def check_origin(made: Bundle, ckpt: Path, fingerprint: str) -> None:
    """Raises UserError where the bundle came from another checkpoint."""
    if made.provenance.get("checkpoint_sha256") != fingerprint:
        raise UserError(f"{made.path} was not exported from {ckpt}; give the checkpoint it is from, or export again")


def prompts(names: str, data: Path | None, count: int) -> list[str]:
    """Texts of the validation split, evenly from the tasks. Raises UserError where there are none."""
    if count < 1:
        raise UserError(f"--prompts is {count}; expected at least 1")
    try:
        chosen = (tasks.from_file(data),) if data else tasks.named(names)
        shares = [count // len(chosen) + (i < count % len(chosen)) for i in range(len(chosen))]
        return [p.prompt for task, n in zip(chosen, shares, strict=True) for p in task.problems("valid", n, SEED)]
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None


def held_out(source: Checkpoint, contract: Contract, texts: Sequence[str]) -> list[Request]:
    """A request for each prompt, its answer as long as the canvas or the room. Raises UserError where none has room."""
    tokenizer = source.read_tokenizer()
    encoded = [np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64) for text in texts]
    rooms = [(ids, room_for_answer(contract, len(ids))) for ids in encoded if len(ids)]
    requests = [Request(ids, min(room, contract.canvas)) for ids, room in rooms if room]
    if len(requests) < len(texts):
        shortest = min((len(ids) for ids in encoded), default=0)
        raise UserError(
            f"{len(texts) - len(requests)} of {len(texts)} prompts leave no room in a capacity of {contract.capacity} "
            f"(the shortest has {shortest} tokens); export with a larger --capacity or give other --data"
        )
    return requests


if __name__ == "__main__":
    sys.exit(main())
