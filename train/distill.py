"""Distils a block-causal student from a teacher's trajectories.

python -m train.distill --method cdlm --teacher teacher.pt --trajectories trajectories --out student.pt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from runtime.contract import Contract
from runtime.errors import UserError

from . import blocks, checkpoint, losses, masking, states, tasks, trajectories
from .data import Stream
from .model import Model
from .optimise import Loss, Recipe, fit
from .options import add_directory_options, overrides_of
from .torch_backend import contract_of

EARLY = 2  # leans the denoising term towards wholly masked blocks, where a few-step student decides most
STUDENT_GATE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.9}


@dataclass(frozen=True, slots=True)
class Weights:
    """Shares of the three terms: distillation, consistency, denoising. CDLM: Dream 1, 0.5, 0.01; LLaDA 1, 0.5, 0.1."""

    distillation: float
    consistency: float
    denoising: float


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


def distil(args: argparse.Namespace) -> None:
    """Trains and writes `--out`. Raises UserError for inputs that do not fit together."""
    overrides = overrides_of(args)
    saved = checkpoint.load(args.teacher, overrides)
    found = trajectories.read_shards(args.trajectories)
    found = [t for t in found if t.right or not args.only_right]
    if not found:
        raise UserError(f"no trajectory in {args.trajectories} is right; collect more, or give --no-only-right")
    width, canvas = found[0].hidden.shape[1], len(found[0].tokens)
    if width != saved.model.width or canvas != saved.decoding.canvas:
        raise UserError(
            f"the trajectories are of a model of width {width} and canvas {canvas}, the teacher has "
            f"{saved.model.width} and {saved.decoding.canvas}; collect them with this teacher"
        )
    if saved.decoding.alignment == "absolute":
        raise UserError("the teacher is aligned absolute, where prompts share canvases; give one aligned prompt or end")
    decoding = replace(saved.decoding, attention="block_causal", gate=dict(STUDENT_GATE))
    student = replace(saved, decoding=decoding)
    contract, learnt = contract_of(student), saved.read_tokenizer()
    teacher, model = saved.build(), student.build().train()
    run = torch.compile(model) if args.compile else model
    chosen = (tasks.from_file(args.data),) if args.data else tasks.named(args.task)
    longest = decoding.context - decoding.canvas
    stream = Stream(chosen, learnt, decoding.eos_ids[0], args.batch, args.seed + 500, longest, decoding.canvas)
    weights = Weights(*(float(share) for share in args.weights.split(",")))
    loss_of = cdlm_loss(model, run, teacher, found, stream, contract, weights, args.target)
    identity = {
        "method": args.method, "weights": args.weights, "target": args.target, "seed": args.seed, "batch": args.batch,
        "teacher": checkpoint.fingerprint(args.teacher, overrides), "trajectories": len(found),
    }  # fmt: skip
    recipe = Recipe(args.steps, args.learning_rate, save_every=args.save_every, bf16=args.bf16)
    average = fit(model, loss_of, recipe, args.out, {**identity, **asdict(saved.model)})
    checkpoint.save(replace(student, weights=average), args.out)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m train.distill", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--method", choices=("cdlm",), default="cdlm", help="(default cdlm)")
    p.add_argument(
        "--teacher", type=Path, required=True, help="checkpoint (.pt or Hugging Face directory) to start from"
    )
    p.add_argument("--trajectories", type=Path, required=True, help="folder written by train.collect")
    p.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    p.add_argument("--task", default="math,code", help="ground truth for the denoising term (default math,code)")
    p.add_argument("--data", type=Path, help="JSON lines of prompt and answer instead of a task")
    p.add_argument("--weights", default="1,0.5,1", help="of distillation, consistency, denoising (default 1,0.5,1)")
    p.add_argument("--target", choices=("completed", "partial"), default="partial", help="y* (default partial)")
    p.add_argument("--only-right", action=argparse.BooleanOptionalAction, default=True, help="drop wrong trajectories")
    p.add_argument("--steps", type=int, default=2500, help="updates (default 2500)")
    p.add_argument("--batch", type=int, default=32, help="trajectories, and examples, an update (default 32)")
    p.add_argument("--learning-rate", type=float, default=1e-3, help="peak (default 1e-3)")
    p.add_argument("--seed", type=int, default=0, help="(default 0)")
    p.add_argument("--save-every", type=int, default=500, help="updates between resumable checkpoints (default 500)")
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bf16 autocast (default on)")
    p.add_argument("--compile", action="store_true", help="torch.compile; needs a C++ compiler, about 1.5 x faster")
    add_directory_options(p)
    return p


def main() -> None:
    try:
        distil(parser().parse_args())
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
