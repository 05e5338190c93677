"""Trains the two models that distillation starts from: an autoregressive one, and the masked-diffusion teacher from it.

python -m train.teacher --objective causal --out baseline.pt
python -m train.teacher --objective masked --init baseline.pt --out teacher.pt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from runtime.cli import make_cli_parser, option, parse_at_least_1
from runtime.contract import MODES, Contract
from runtime.errors import UserError

from . import checkpoint, distributed, open_checkpoint, tasks
from .cli_options import TRAINING_OPTIONS, bf16_option, choose_bf16, parse_above_0
from .data import bpe
from .data.batches import Stream, choose_canvas, count_tokens, survey
from .destination import DTYPES
from .device import select, send
from .masking import all_blocks, noise
from .methods import table
from .methods.next_token import make_next_token_loss
from .storage import output_files, student_pt
from .torch_backend import derive_contract
from .trainer import deepen, resume, run_fingerprint
from .trainer.training_loop import TOKENS, Loss, Recipe, TrainingResult, run_training, train_model
from .transformer.compiled import CompiledForward
from .transformer.network import ModelConfig, Transformer, initialize

VALUE_COPIES = 20  # of each value of a form among the texts that a tokenizer is trained on
CAUSAL_EVERY = 2  # default of --causal-every, in updates
LAYERS = 6
UNIFORM = 0.125  # share of the rows whose whole canvas is masked at one ratio
CAUSAL_GATE = {"rule": "count", "metric": "confidence", "comparator": ">=", "threshold": 1.0, "min": 1}
TEACHER_GATE = CAUSAL_GATE  # one token per step, as trajectories are collected
HELP = {  # help texts that do not fit on the line of their option below
    "shift": "predict position i + 1 in row i, as in the autoregressive model of --init (default: on)",
    "attention": (
        "attention of a masked teacher; block_causal and causal_context have a KV cache and learn all blocks of an "
        "answer and its next tokens in every update (default: full)"
    ),
    "causal-every": (
        "period of causal updates, for --objective masked: each N-th update trains all blocks of an answer "
        "and its next tokens under the block-causal mask, 0 for none (default: 2; 0 with --no-shift or another "
        "--attention than full)"
    ),
    "canvas": (
        "maximum answer tokens, in whole blocks; longer training answers are left out (default: the 99th percentile of "
        "their lengths, of the task with the longest)"
    ),
    "layers": (
        f"layers of a new model (default: {LAYERS}); if --init has fewer, layers are added that change nothing at "
        "first, as for a larger teacher"
    ),
}


def make_masked_loss(model: Transformer, forward: torch.nn.Module, stream: Stream, contract: Contract) -> Loss:
    """Returns the masked-denoising loss: some rows masked uniformly, the others as in block-wise decoding."""

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(stream.seed * 1_000_003 + step)
        examples = stream.select_examples(step)
        laid = noise.lay_out(examples, contract, contract.canvas, generator)
        uniform = torch.rand((len(laid.ids), 1), generator=generator) < UNIFORM
        everywhere = noise.sample_uniform_mask(laid, generator)
        masked, decided = noise.sample_block_mask(laid, contract, generator)
        masked, decided = torch.where(uniform, everywhere, masked), torch.where(uniform, everywhere, decided)
        laid, masked, decided = (
            laid.take_own_rows(),
            distributed.take_own_rows(masked),
            distributed.take_own_rows(decided),
        )
        hidden = forward(laid.ids.masked_fill(masked, contract.mask_id), laid.length[:, None].expand_as(laid.ids))
        weight = noise.make_weights(laid, decided, padding=all_blocks.FILLER)[decided]
        logits = model.logits(select(hidden, noise.find_predicting_rows(decided, contract.shift))).float()
        target, weight = send(laid.ids[decided], logits.device), send(weight, logits.device)
        losses = F.cross_entropy(logits, target, reduction="none")
        right = distributed.take_mean_part((logits.argmax(-1) == target)[weight == 1])
        # a small batch may have no mask at all
        mean = (losses * weight).sum() / weight.sum().clamp_min(1e-6)
        return distributed.take_part(mean, weight.sum()), {
            "masked": right,
            TOKENS: count_tokens(distributed.take_own_rows(examples)),
        }

    return loss_of


def make_cached_loss(model: Transformer, forward: torch.nn.Module, stream: Stream, contract: Contract) -> Loss:
    """Returns the next-token loss, which keeps the model's skills, plus the loss of all masked blocks of each answer.

    contract: one with a KV cache. If its committed tokens are causal, one forward pass computes both.
    """
    next_token = make_next_token_loss(model, forward, stream, contract.pad_id)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(stream.seed * 1_000_003 + step)
        if not contract.commits_causally:
            kept, figures = next_token(step)
            blocks = all_blocks.denoising_loss(model, forward, stream, step, contract, 1, generator)
        else:
            blocks, kept, right = all_blocks.denoising_and_next_token_loss(
                model, forward, stream, step, contract, generator
            )
            tokens = count_tokens(distributed.take_own_rows(stream.select_examples(step)))
            figures = {"next": distributed.take_mean_part(right), TOKENS: tokens}
        return kept + blocks, {**figures, "blocks": blocks.item()}

    return loss_of


def make_alternating_loss(masked: Loss, cached: Loss, every: int) -> Loss:
    """Returns the masked loss, replaced in every `every`-th step by the one of `make_cached_loss`.

    A bidirectional pass teaches only one block, since the later ones have to be masked.
    """
    return lambda step: (cached if step % every == every - 1 else masked)(step)


def make_start(args: argparse.Namespace, chosen: Sequence[tasks.Task]) -> checkpoint.Checkpoint:
    """Returns the checkpoint that training starts from: `--init`, or an untrained model of the given size.

    The options determine how it is decoded. An untrained model gets a tokenizer trained on the tasks' training split.
    """
    if args.init:
        saved = open_checkpoint.load(args.init)
        if args.layers is not None:
            saved = deepen.deepen(saved, args.layers)
        return replace(saved, decoding=derive_decoding(args, chosen, saved.read_tokenizer()), chat_template=None)
    texts = [text for task in chosen for p in task.problems("train", 6000, args.seed) for text in (p.prompt, p.answer)]
    # Rare values of a form become tokens too, if the vocabulary has room: a value of one token takes one forward pass.
    texts += VALUE_COPIES * [value for task in chosen for value in task.list_form_values()]
    learned = bpe.train_tokenizer(texts, args.vocab, chosen[0].split_pattern)
    shape = ModelConfig(
        learned.get_vocab_size(), args.width, args.layers or LAYERS, args.heads, args.kv_heads, args.head_dim, args.ffn
    )
    weights = dict(initialize(Transformer(shape), args.seed).state_dict())
    return checkpoint.Checkpoint(shape, derive_decoding(args, chosen, learned), weights, learned.to_str())


def derive_decoding(args: argparse.Namespace, chosen: Sequence[tasks.Task], learned: Tokenizer) -> checkpoint.Decoding:
    """Returns how the model decodes; an autoregressive one has blocks of one token, predicted by the one before."""
    causal = args.objective == "causal"
    mask, pad, end = (learned.token_to_id(token) for token in (bpe.MASK, bpe.PAD, bpe.END))
    assert mask is not None and pad is not None and end is not None  # `bpe.train_tokenizer` adds all three
    return checkpoint.Decoding(
        alignment="absolute" if causal else "prompt",
        attention=attention_of(args),
        modes=MODES if args.attention == "causal_context" and not causal else MODES[:1],
        shift=causal or args.shift,
        block=1 if causal else args.block,
        canvas=args.canvas or max(choose_canvas(survey([task], learned, end), args.block) for task in chosen),
        context=args.context,
        mask_id=mask,
        eos_ids=(end,),
        pad_id=pad,
        gate=dict(CAUSAL_GATE if causal else TEACHER_GATE),
    )


def attention_of(args: argparse.Namespace) -> str:
    """Returns `--attention` or its default. Raises UserError if it is given for an autoregressive model."""
    if args.objective == "causal" and args.attention is not None:
        raise UserError(f"--attention {args.attention} was given, but an autoregressive model is causal: leave it out")
    attention: str = args.attention or ("block_causal" if args.objective == "causal" else "full")
    return attention


def choose_causal_every(args: argparse.Namespace) -> int:
    """Returns `--causal-every` or its default: each n-th update is under causal masks, none if it is 0.

    Raises UserError if rows would be trained to predict two different tokens in turn, or if all updates are such.
    """
    cached, given = attention_of(args) != "full", args.causal_every is not None
    every: int = args.causal_every if given else 0 if cached or not args.shift else CAUSAL_EVERY
    if every < 0:
        raise UserError(f"--causal-every is {every}; expected a number of updates, or 0 for never")
    if args.objective == "causal":
        if given and every:
            raise UserError(f"--causal-every {every} is for --objective masked: all updates are causal here; drop it")
        return every
    if cached and given:
        raise UserError(f"--causal-every is for --attention full: all updates of {args.attention} are such; drop it")
    if (every or cached) and not args.shift:
        culprit = f"--attention {args.attention}" if cached else f"--causal-every {every}"
        raise UserError(f"{culprit} trains row i to predict token i + 1, --no-shift token i; leave one of them out")
    return every


def make_loss(
    args: argparse.Namespace, start: checkpoint.Checkpoint, model: Transformer, forward: torch.nn.Module, stream: Stream
) -> Loss:
    """Returns the loss for `--objective` and `--causal-every`."""
    decoding, every = start.decoding, choose_causal_every(args)
    if args.objective == "causal":
        return make_next_token_loss(model, forward, stream, decoding.pad_id)
    if decoding.attention != "full":
        return make_cached_loss(model, forward, stream, derive_contract(start))
    masked = make_masked_loss(model, forward, stream, derive_contract(start))
    if not every:
        return masked
    alone = replace(start, decoding=replace(decoding, attention="block_causal"))
    return make_alternating_loss(masked, make_cached_loss(model, forward, stream, derive_contract(alone)), every)


def train(args: argparse.Namespace) -> TrainingResult:
    """Trains and writes `--out`. Raises UserError for settings that do not fit together."""
    choose_bf16(args)
    distributed.check(args.batch, args.compile, args.optimizer)
    if args.canvas is not None and args.canvas % args.block:
        raise UserError(f"--canvas {args.canvas} is not a multiple of --block {args.block}; give whole blocks")
    if args.heads % args.kv_heads or args.head_dim % 2:
        raise UserError(
            f"--heads {args.heads} of {args.head_dim} over --kv-heads {args.kv_heads}; expected a multiple of them "
            "and an even --head-dim"
        )
    distributed.run_in_first_process(lambda: output_files.check_file(args.out))
    every, chosen = choose_causal_every(args), tasks.choose_tasks(args.task, args.data)
    start = make_start(args, chosen)
    decoding, model = start.decoding, distributed.place(start.build().train(), args.device)
    model.dropout = args.dropout
    forward = CompiledForward(model) if args.compile else model
    longest = args.context - decoding.canvas if args.objective == "masked" else args.context
    bounds = (longest, decoding.canvas)
    stream = Stream(chosen, start.read_tokenizer(), decoding.eos_ids[0], args.batch, args.seed, *bounds)
    stream.report_left_out()
    how = {name: getattr(args, name) for name in ("save_every", "bf16", "seed", "optimizer")}
    recipe = Recipe(args.steps, args.learning_rate, **how)
    known = {**run_fingerprint.collect_options(vars(args)), "canvas": decoding.canvas, "causal_every": every}
    known["problems"] = run_fingerprint.hash_problems(chosen)
    loss = make_loss(args, start, model, forward, stream)
    fitted = train_model(model, loss, recipe, args.out, known, args.tensorboard)
    made = replace(start, weights=fitted.weights)
    distributed.run_in_first_process(lambda: student_pt.save(made, args.out, DTYPES[args.dtype]))
    distributed.run_in_first_process(lambda: resume.forget(args.out))
    return fitted


OPTIONS = (
    option("--out", type=Path, required=True, help="checkpoint to write"),
    option(
        "--objective",
        choices=("causal", "masked"),
        default="masked",
        help="training objective; causal: autoregressive, masked: masked diffusion (default: masked)",
    ),
    option("--init", type=Path, help="checkpoint to start from, with its tokenizer (default: a new model)"),
    option("--task", default="math,code", help="sample tasks, with commas (default: math,code)"),
    option("--steps", type=parse_at_least_1, default=10000, help="number of updates (default: 10000)"),
    option("--batch", type=parse_at_least_1, default=64, help="examples per update (default: 64)"),
    option("--learning-rate", type=parse_above_0, default=2e-3, help="peak learning rate (default: 2e-3)"),
    option("--attention", choices=table.ATTENTIONS, help=HELP["attention"]),
    option("--shift", action=argparse.BooleanOptionalAction, default=True, help=HELP["shift"]),
    option("--causal-every", type=int, help=HELP["causal-every"]),
    option("--block", type=parse_at_least_1, default=16, help="tokens per block (default: 16)"),
    option("--canvas", type=parse_at_least_1, help=HELP["canvas"]),
    option(
        "--context",
        type=parse_at_least_1,
        default=512,
        help="maximum tokens of prompt and answer together (default: 512)",
    ),
    option(
        "--vocab",
        type=parse_at_least_1,
        default=1280,
        help="maximum vocabulary of a new tokenizer, in tokens (default: 1280)",
    ),
    option("--layers", type=parse_at_least_1, help=HELP["layers"]),
    *(
        option(f"--{name}", type=parse_at_least_1, default=size, help=f"{what} of a new model (default: {size})")
        for name, what, size in (
            ("width", "hidden size, in channels,", 192),
            ("heads", "query heads", 3),
            ("kv-heads", "key-value heads", 1),
            ("head-dim", "channels per head", 64),
            ("ffn", "inner channels of the feed-forward layers", 512),
        )
    ),
    option("--dtype", choices=DTYPES, default="fp32", help="dtype of the weights in --out (default: fp32)"),
    *TRAINING_OPTIONS,
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    return make_cli_parser("train.teacher", (__doc__ or "").splitlines()[0], (*OPTIONS, bf16_option()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return distributed.run(lambda: execute(make_parser().parse_args(argv)))


def execute(args: argparse.Namespace) -> int:
    """Trains and prints what was written."""
    return run_training(lambda: train(args), args.out, args.device, args.tensorboard, args.json)


if __name__ == "__main__":
    sys.exit(main())
