"""Distils a block-causal student from a teacher's trajectories.

python -m train.distill --method cdlm --teacher teacher.pt --trajectories trajectories --out student.pt
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from runtime.command import DONE, Parser, print_json
from runtime.command import run as run_command
from runtime.contract import Contract
from runtime.errors import UserError

from . import blocks, checkpoint, identity, lora, losses, masking, prompts, states, tasks, trajectories
from .checkpoint import Checkpoint
from .data import Stream
from .model import Model
from .next_token import next_token_loss
from .optimise import Fitted, Loss, Recipe, fit, forget
from .options import add_bf16_option, add_directory_options, add_raw_option, numbers, overrides_of
from .output import DTYPES, Output
from .torch_backend import contract_of

EARLY = 2  # leans the denoising term towards wholly masked blocks, where a few-step student decides most
STUDENT_GATE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.9}


@dataclass(frozen=True, slots=True)
class Weights:
    """Shares of distillation, consistency, denoising. CDLM's: Dream 1, 0.5, 0.01; LLaDA 1, 0.5, 0.1."""

    distillation: float
    consistency: float
    denoising: float


def with_next_token(loss: Loss, kept: Loss, share: float) -> Loss:
    """A loss and, `share` times, the next-token loss: without it a small student forgets arithmetic (LOG.md)."""

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        total, figures = loss(step)
        beside, more = kept(step)
        return total + share * beside, {**figures, **more}

    return loss_of


def cdlm_loss(
    model: Model, run: torch.nn.Module, teacher: Model, found: Sequence[trajectories.Trajectory], stream: Stream,
    contract: Contract, weights: Weights, target: str,
) -> Loss:  # fmt: skip
    """CDLM's loss on `stream.batch` trajectories and as many fresh examples a step; see `losses`."""
    mask_id, rows_of = contract.mask_id, partial(masking.predicting, shift=contract.shift)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(stream.seed * 1_000_003 + step)
        chosen = torch.randint(len(found), (stream.batch,), generator=generator).tolist()
        drawn = states.draw([found[i] for i in chosen], contract, target, generator)
        with torch.no_grad():
            taught = losses.log_probs(teacher.logits(drawn.hidden.float()), mask_id)
            ahead = losses.log_probs(model.logits(run(drawn.later, drawn.visible)[rows_of(drawn.masked)]), mask_id)
        hidden = run(drawn.earlier, drawn.visible)
        now = losses.log_probs(model.logits(hidden[rows_of(drawn.unmasked)]), mask_id)
        distilled = losses.distillation(taught, now)
        steady = losses.consistency(ahead, losses.log_probs(model.logits(hidden[rows_of(drawn.masked)]), mask_id))
        denoised = blocks.denoising_loss(model, run, stream, step, contract, EARLY, generator)
        total = weights.distillation * distilled + weights.consistency * steady + weights.denoising * denoised
        return total, {"distil": distilled.item(), "cons": steady.item(), "dlm": denoised.item()}

    return loss_of


def distil(args: argparse.Namespace) -> Fitted:
    """Trains and writes `--out`. Raises UserError for inputs that do not fit together."""
    overrides, low_rank = overrides_of(args), lora.asked(args.lora_rank, args.lora_alpha)
    shares = numbers(args.weights, "--weights")
    if len(shares) != len(fields(Weights)):
        raise UserError(f"--weights is {args.weights}; expected three numbers, as in 1,0.5,1")
    saved = checkpoint.load(args.teacher, overrides)
    check_next_token(args, saved)
    student = replace(saved, decoding=replace(saved.decoding, attention="block_causal", gate=dict(STUDENT_GATE)))
    output = Output(args.out, args.teacher, overrides, low_rank, DTYPES[args.dtype])
    output.check(student)
    found, stream = usable(args, saved), ground_truth(args, saved)
    stream.tell_left_out()
    model = student.build().train()
    if low_rank is not None:
        lora.inject(model, low_rank, args.seed)
    # Low-rank training keeps the head as it is, so that the teacher need not be in memory a second time for its own.
    teacher = saved.build() if low_rank is None else model
    forward = torch.compile(model) if args.compile else model
    contract = contract_of(student)
    loss_of = cdlm_loss(model, forward, teacher, found, stream, contract, Weights(*shares), args.target)
    if args.next_token > 0:
        loss_of = with_next_token(loss_of, next_token_loss(model, forward, stream, contract.pad_id), args.next_token)
    recipe = Recipe(args.steps, args.learning_rate, save_every=args.save_every, bf16=args.bf16)
    fitted = fit(model, loss_of, recipe, args.out, identity.of_options(args))
    output.write(student, fitted.weights)
    forget(args.out)
    return fitted


def check_next_token(args: argparse.Namespace, saved: Checkpoint) -> None:
    """Raises UserError where this teacher has no next-token loss, or the share is none."""
    if not 0 <= args.next_token < math.inf:
        raise UserError(f"--next-token is {args.next_token}; expected a share of at least 0")
    if args.next_token and not saved.decoding.shift:
        raise UserError(
            f"--next-token was given, but {args.teacher} has no shift: its row i predicts token i; leave it out"
        )


def usable(args: argparse.Namespace, saved: Checkpoint) -> list[trajectories.Trajectory]:
    """The trajectories to learn from. Raises UserError where there are none, or they are not this teacher's."""
    if saved.decoding.alignment == "absolute":
        raise UserError("the teacher is aligned absolute, where prompts share canvases; give one aligned prompt or end")
    overrides = overrides_of(args)
    everything = trajectories.read_collections(
        args.trajectories, checkpoint.fingerprint(args.teacher, overrides), overrides
    )
    found = [t for t in everything if t.right or not args.only_right]
    if not found:
        raise UserError(f"no trajectory in {args.trajectories[0]} is right; collect more, or give --no-only-right")
    for width, canvas in {(t.hidden.shape[1], len(t.tokens)) for t in found}:
        if width != saved.model.width or canvas != saved.decoding.canvas:
            raise UserError(
                f"the trajectories are of a model of width {width} and canvas {canvas}, the teacher has "
                f"{saved.model.width} and {saved.decoding.canvas}; collect them with this teacher"
            )
    return found


def ground_truth(args: argparse.Namespace, saved: Checkpoint) -> Stream:
    """The examples of the denoising term, their prompts encoded as the model meets them."""
    chosen, decoding = (tasks.from_file(args.data),) if args.data else tasks.named(args.task), saved.decoding
    longest, ask = decoding.context - decoding.canvas, prompts.of_checkpoint(saved, args.raw)
    bounds = (longest, decoding.canvas, ask)
    return Stream(chosen, saved.read_tokenizer(), decoding.eos_ids[0], args.batch, args.seed + 500, *bounds)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="python -m train.distill", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--method", choices=("cdlm",), default="cdlm", help="(default cdlm)")
    p.add_argument("--teacher", type=Path, required=True, help="where to start: a .pt file or Hugging Face directory")
    p.add_argument("--trajectories", type=Path, nargs="+", metavar="DIR", required=True,
        help="folders written by train.collect with this teacher")  # fmt: skip
    p.add_argument(
        "--out", type=Path, required=True,
        help="to write: X.pt, or a path without .pt for a Hugging Face directory in the teacher's own names; with "
        "--lora-rank such a path becomes a PEFT adapter, for --ckpt TEACHER --adapter OUT, and X.pt has it merged",
    )  # fmt: skip
    p.add_argument("--lora-rank", type=int, metavar="R", help="train a low-rank adapter alone (default: all weights)")
    p.add_argument("--lora-alpha", type=float, metavar="A", help="it is scaled by A / R (default: R)")
    p.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights in --out, adapters apart, which are "
        "fp32 (default fp32)")  # fmt: skip
    p.add_argument("--task", default="math,code", help="ground truth for the denoising term (default math,code)")
    p.add_argument("--data", type=Path, help="JSON lines of prompt and answer instead of a task")
    p.add_argument(
        "--next-token",
        type=float,
        default=0.0,
        help="share of the next-token loss beside them, for a teacher with shift (default 0)",
    )
    p.add_argument("--weights", default="1,0.5,1", help="of distillation, consistency, denoising (default 1,0.5,1)")
    p.add_argument("--target", choices=("completed", "partial"), default="partial", help="y* (default partial)")
    p.add_argument("--only-right", action=argparse.BooleanOptionalAction, default=True, help="drop wrong trajectories")
    p.add_argument("--steps", type=int, default=2500, help="updates (default 2500)")
    p.add_argument("--batch", type=int, default=32, help="trajectories, and examples, an update (default 32)")
    p.add_argument("--learning-rate", type=float, default=1e-3, help="peak (default 1e-3)")
    p.add_argument("--seed", type=int, default=0, help="(default 0)")
    p.add_argument("--save-every", type=int, default=500, help="updates between resumable checkpoints (default 500)")
    add_bf16_option(p)
    p.add_argument("--compile", action="store_true", help="torch.compile; needs a C++ compiler, about 1.5 x faster")
    p.add_argument("--json", action="store_true", help="print out, steps, seconds and last losses as one JSON object")
    add_raw_option(p)
    add_directory_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(lambda: command(parser().parse_args(argv)))


def command(args: argparse.Namespace) -> int:
    """Distils and says what was written."""
    fitted = distil(args)
    if args.json:
        print_json(fitted.report(args.out))
    else:
        print(f"wrote {args.out}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
