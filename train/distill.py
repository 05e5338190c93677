"""Distils a few-step student from a teacher, by one of four methods.

python -m train.distill --method cdlm --teacher teacher.pt --trajectories trajectories --out student.pt
python -m train.distill --method cd4lm --attention full --teacher teacher.pt --out student.pt
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime import files
from runtime.cli import make_cli_parser, option, parse_at_least_1
from runtime.contract import MODES, Contract
from runtime.decoding.block_layout import compute_longest_answer
from runtime.errors import UserError

from . import distributed, open_checkpoint, tasks
from .checkpoint import Checkpoint, Decoding
from .cli_options import (
    RAW_OPTION,
    TRAINING_OPTIONS,
    add_directory_options,
    bf16_option,
    choose_bf16,
    make_overrides,
    parse_above_0,
)
from .data import prompts, trajectories
from .data.batches import Stream
from .data.trajectories import Trajectory
from .destination import DTYPES, Output
from .huggingface import peft_train
from .huggingface.families import Overrides
from .methods import table
from .methods.next_token import make_next_token_loss
from .methods.setup import MethodInputs, Teacher
from .torch_backend import derive_contract
from .trainer import resume, run_fingerprint
from .trainer.training_loop import TOKENS, Loss, Recipe, TrainingResult, run_training, train_model
from .transformer.compiled import CompiledForward

STUDENT_OPTIONS = ("--attention",)  # options of a directory that here describe the student, not the teacher
LAYOUT = ("alignment", "block", "canvas")  # fields of a checkpoint's decoding
SHARED = ("mask_id", "eos_ids", "pad_id", *LAYOUT)  # those that a separate student has in common with its teacher
HELP = {  # help texts that do not fit on the line of their option below
    "teacher": "teacher: a .pt file or a Hugging Face directory; the student starts from its weights",
    "student": (
        "checkpoint that the student starts from, such as a smaller one, with the teacher's vocabulary and blocks, or "
        "an autoregressive model with its vocabulary, which takes the teacher's blocks (default: the teacher)"
    ),
    "out": (
        "checkpoint to write: X.pt, or a path without .pt for a Hugging Face directory with the teacher's tensor "
        "names; with --lora-rank such a path becomes a PEFT adapter, for --ckpt TEACHER --adapter OUT, and X.pt has it "
        "merged"
    ),
    "dtype": "dtype of the weights in --out; adapters are always fp32 (default: fp32)",
    "task": (
        "sample tasks of the ground truth, with commas, for cdlm's denoising term, cd4lm and --next-token "
        "(default: math,code)"
    ),
    "next-token": (
        "weight of an added next-token loss, for a teacher with shift; it teaches a causal_context student the modes "
        "speculative and causal (default: 0)"
    ),
}


def add_next_token_loss(method_loss: Loss, next_token_loss: Loss, weight: float, same_examples: bool) -> Loss:
    """Returns the method's loss plus `weight` times the next-token loss.

    Without the latter, a small student forgets arithmetic (LOG.md). same_examples: whether both losses see the same
    examples, whose tokens then count once.
    """

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        method_value, figures = method_loss(step)
        next_token_value, next_token_figures = next_token_loss(step)
        tokens = figures[TOKENS] + (0 if same_examples else next_token_figures[TOKENS])
        return method_value + weight * next_token_value, {**figures, **next_token_figures, TOKENS: tokens}

    return loss_of


def distill(args: argparse.Namespace) -> TrainingResult:
    """Trains the student and writes it to `--out`. Raises UserError if the inputs do not fit together."""
    distributed.check(args.batch, args.compile, args.optimizer)
    choose_bf16(args)
    low_rank = peft_train.parse_lora_options(args.lora_rank, args.lora_alpha)
    method_options = {name: getattr(args, name) for name in table.DEFAULTS}
    method, values = table.choose_method(args.method, args.attention, method_options)
    make_loss = method.plan(values)
    teacher = open_checkpoint.load(args.teacher, make_overrides(args, STUDENT_OPTIONS))
    student_overrides = Overrides(template_args=args.template_args)  # all else is as in a separate student's files
    start = open_checkpoint.load(args.student, student_overrides) if args.student else teacher
    student = replace(start, decoding=choose_decoding(args, method.gate, teacher, start))
    check(args, teacher, student)
    overrides = student_overrides if args.student else make_overrides(args, STUDENT_OPTIONS)
    output = Output(args.out, args.student or args.teacher, overrides, low_rank, DTYPES[args.dtype])
    distributed.run_in_first_process(lambda: output.check(student))
    usable = choose_usable(args, teacher, values["only_right"], method.stepwise) if method.from_trajectories else []
    inputs = make_method_inputs(args, teacher, student, usable)
    if method.from_examples or args.next_token > 0:
        inputs.stream.report_left_out()
    loss_of = make_loss(inputs)
    if args.next_token > 0:
        next_token_loss = make_next_token_loss(inputs.model, inputs.run, inputs.stream, inputs.contract.pad_id)
        loss_of = add_next_token_loss(loss_of, next_token_loss, args.next_token, method.from_examples)
    settings = {name: getattr(args, name) for name in ("save_every", "bf16", "seed", "optimizer")}
    recipe = Recipe(args.steps, args.learning_rate, **settings)
    # Has the values of the method's options, so that a default and the same value given explicitly are equal.
    fingerprint = run_fingerprint.collect_options({**vars(args), **values})
    if method.from_examples or args.next_token > 0:
        fingerprint["problems"] = run_fingerprint.hash_problems(inputs.stream.tasks)
    result = train_model(inputs.model, loss_of, recipe, args.out, fingerprint, args.tensorboard)
    distributed.run_in_first_process(lambda: output.write(student, result.weights))
    distributed.run_in_first_process(lambda: resume.forget(args.out))
    return result


def choose_decoding(
    args: argparse.Namespace, gate: Mapping[str, Any], teacher: Checkpoint, start: Checkpoint
) -> Decoding:
    """Returns how the student is decoded. gate: the method's; start: the checkpoint that the student starts from."""
    modes = MODES if args.attention == "causal_context" and args.next_token > 0 else MODES[:1]
    # The gate and the temperature of `start` fit only its own confidences.
    changes: dict[str, Any] = {"gate": dict(gate), "decision_temperature": 1.0}
    if derive_contract(start).autoregressive:  # an autoregressive start has no blocks
        changes |= {name: getattr(teacher.decoding, name) for name in LAYOUT}
    return replace(start.decoding, attention=args.attention, modes=modes, **changes)


def make_method_inputs(
    args: argparse.Namespace, teacher: Checkpoint, student: Checkpoint, usable: Sequence[Trajectory]
) -> MethodInputs:
    """Builds a method's inputs: the student, with an adapter if one is trained, and a function that builds the teacher.

    usable: the trajectories to learn from, empty if the method needs none.
    """
    model, low_rank = student.build().train(), peft_train.parse_lora_options(args.lora_rank, args.lora_alpha)
    if low_rank is not None:
        peft_train.inject(model, low_rank, args.seed)
    distributed.place(model, args.device)
    model.dropout = args.dropout

    def build_teacher() -> Teacher:
        # A student that starts from its teacher and trains only an adapter already contains the teacher.
        has_adapter = low_rank is not None and args.student is None
        teacher_model = model if has_adapter else distributed.place_frozen(teacher.build(), args.device)
        return Teacher(teacher_model, derive_contract(teacher), has_adapter)

    forward = CompiledForward(model) if args.compile else model
    return MethodInputs(
        model, forward, derive_contract(student), build_teacher, usable, make_ground_truth(args, student), args.steps
    )


def check(args: argparse.Namespace, teacher: Checkpoint, student: Checkpoint) -> None:
    """Raises UserError if the student cannot learn from this teacher with these options."""
    if not 0 <= args.next_token < math.inf:
        raise UserError(f"--next-token is {args.next_token}; expected a share of at least 0")
    if args.next_token and not student.decoding.shift:
        source = args.student or args.teacher
        raise UserError(f"--next-token was given, but {source} has no shift: its row i predicts token i; leave it out")
    if args.attention == "causal_context" and student.decoding.alignment != "prompt":
        raise UserError(
            f"--attention {args.attention} was given, but {args.student or args.teacher} is aligned "
            f"{student.decoding.alignment}; expected prompt: leave it out"
        )
    if derive_contract(student).seeded:
        raise UserError(
            f"--attention {args.attention} was given, but {args.student or args.teacher} has no shift: students whose "
            "rows predict their own token in a block and the next one when committed are not supported; leave it out"
        )
    check_blocks(args.method, derive_contract(teacher))
    if args.student is None:
        return
    if files.resolve_path(args.out) == files.resolve_path(args.teacher):
        raise UserError(f"--out {args.out} is the teacher; give the student a path of its own")
    student_values, teacher_values = list_shared(student), list_shared(teacher)
    if name := next((name for name, value in student_values.items() if value != teacher_values[name]), None):
        raise UserError(
            f"--student {args.student} and the teacher differ in {name}; expected a student with the teacher's tokens "
            "and blocks: train both with one tokenizer and one layout"
        )


def check_blocks(method: str, teacher: Contract) -> None:
    """Raises UserError for an autoregressive teacher, and for one that cannot predict the blocks the method needs."""
    if teacher.autoregressive:
        raise UserError("the teacher decodes token by token and fills no blocks; give a masked-diffusion one")
    if teacher.seeded and not table.METHODS[method].from_trajectories:
        raise UserError(
            f"--method {method} needs predictions of whole blocks, whose first token is here the last committed row's "
            "(causal_context without shift), which is not supported; take cdlm, dparallel or tad"
        )


def list_shared(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what a separate student and its teacher must have in common: tokens, chat template, layout of blocks."""
    values = {name: getattr(checkpoint.decoding, name) for name in SHARED}
    tokens = checkpoint.read_tokenizer().get_vocab(with_added_tokens=True)
    return {"vocabulary": (tokens, checkpoint.count_vocab()), "chat_template": checkpoint.chat_template, **values}


def choose_usable(args: argparse.Namespace, teacher: Checkpoint, only_right: bool, stepwise: bool) -> list[Trajectory]:
    """Returns the trajectories to learn from.

    only_right: whether to drop those of wrong answers; stepwise: whether the method needs trajectories of one token per
    step. Raises UserError if there are none, or if another teacher made them.
    """
    overrides = make_overrides(args, STUDENT_OPTIONS)
    collected = trajectories.read_collections(
        args.trajectories, open_checkpoint.compute_fingerprint(args.teacher, overrides), overrides, stepwise
    )
    usable = [t for t in collected if t.right or not only_right]
    if not usable:
        raise UserError(f"no trajectory in {args.trajectories[0]} is right; collect more, or give --no-only-right")
    longest = compute_longest_answer(derive_contract(teacher))
    for width, positions in {(t.hidden.shape[1], len(t.tokens)) for t in usable}:
        if width != teacher.model.width or positions != longest:
            raise UserError(
                f"the trajectories are of a model of width {width} and answers of {positions} positions, the teacher "
                f"has {teacher.model.width} and {longest}; collect them with this teacher"
            )
    return usable


def make_ground_truth(args: argparse.Namespace, student: Checkpoint) -> Stream:
    """Returns the stream of ground-truth examples, with prompts encoded as at inference."""
    chosen_tasks, decoding = tasks.choose_tasks(args.task, args.data), student.decoding
    return Stream(
        chosen_tasks,
        student.read_tokenizer(),
        decoding.eos_ids[0],
        args.batch,
        args.seed + 500,
        decoding.context - decoding.canvas,
        decoding.canvas,
        prompts.make_encoder(student, args.raw),
    )


OPTIONS = (
    *table.METHOD_OPTIONS,
    option("--teacher", type=Path, required=True, help=HELP["teacher"]),
    option("--student", type=Path, help=HELP["student"]),
    option("--out", type=Path, required=True, help=HELP["out"]),
    option(
        "--lora-rank",
        type=int,
        metavar="R",
        help="rank of a LoRA adapter to train instead of all weights (default: all weights)",
    ),
    option(
        "--lora-alpha",
        type=float,
        metavar="A",
        help="alpha of the adapter, which is scaled by A / rank (default: the rank)",
    ),
    option("--dtype", choices=DTYPES, default="fp32", help=HELP["dtype"]),
    option("--task", default="math,code", help=HELP["task"]),
    option("--next-token", type=float, default=0.0, help=HELP["next-token"]),
    option("--steps", type=parse_at_least_1, default=2500, help="number of updates (default: 2500)"),
    option(
        "--batch",
        type=parse_at_least_1,
        default=32,
        help="trajectories or examples per update; for cdlm, of each (default: 32)",
    ),
    option("--learning-rate", type=parse_above_0, default=1e-3, help="peak learning rate (default: 1e-3)"),
    *TRAINING_OPTIONS,
    RAW_OPTION,
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    p = make_cli_parser("train.distill", (__doc__ or "").splitlines()[0], (*OPTIONS, bf16_option()))
    table.add_own_options(p)
    add_directory_options(p, STUDENT_OPTIONS)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return distributed.run(lambda: execute(make_parser().parse_args(argv)))


def execute(args: argparse.Namespace) -> int:
    """Distils and prints what was written."""
    return run_training(lambda: distill(args), args.out, args.device, args.tensorboard, args.json)


if __name__ == "__main__":
    sys.exit(main())
