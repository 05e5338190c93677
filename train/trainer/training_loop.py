"""Trains models for all `train.*` commands: optimizers, learning rate, clipping, EMA, checkpoints, logs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from runtime import files
from runtime.cli import DONE, print_json
from runtime.errors import NumericalError
from train import distributed

from . import progress, resume
from .muon import Muon

LOG_EVERY = 50  # updates
TABLES = ("embed_tokens", "lm_head")  # name prefixes of the matrices with one row per token
TOKENS = "tokens"  # the figure from which tokens per second are computed


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to train. `seed` and the step number determine every batch and every mask."""

    steps: int
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    floor: float = 0.02  # share of the peak learning rate at the end of the cosine
    bf16: bool = True
    save_every: int = 500
    seed: int = 0
    optimizer: str = "adamw"

    def compute_rate(self, step: int) -> float:
        """Returns the learning rate at a step: linear warm-up, then a cosine down to `floor` of its peak."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        progress = min(1.0, max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup)))
        fall = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * rise * fall


# Returns, for a step, this process's part of the loss and of each figure; the parts of all processes are summed. The
# figure `tokens` counts the tokens of prompts and answers, each once however often the model sees it, without padding.
Loss = Callable[[int], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run.

    weights: the averaged (EMA) weights of all trained parameters, by name, in the first process only. figures: the last
    ones logged. seconds, tokens_per_second: since the run was started or last resumed.
    """

    weights: dict[str, Tensor]
    steps: int
    seconds: float
    tokens_per_second: float
    figures: dict[str, float]

    def report(self, out: Path) -> dict[str, Any]:
        """Returns what --json prints; a figure that is not a number, such as a share of nothing, is null."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        spent = {"seconds": round(self.seconds, 1), "tokens_per_second": self.tokens_per_second}
        return {"out": str(out), "steps": self.steps, **spent, **figures}


def run_training(
    train: Callable[[], TrainingResult], out: Path, device: str, tensorboard: Path | None, as_json: bool
) -> int:
    """Runs a training command as one of torchrun's processes, and prints what was written."""
    with distributed.join_processes(device):
        if tensorboard is not None:
            progress.import_board_class()  # if it is not installed, fail before hours of training
        fitted = train()
    if as_json:
        print_json(fitted.report(out))
    else:
        print(f"wrote {out}")
    return DONE


def train_model(
    model: nn.Module,
    loss_of: Loss,
    recipe: Recipe,
    out: Path,
    identity: dict[str, Any],
    tensorboard: Path | None = None,
) -> TrainingResult:
    """Trains in place those parameters of `model` that require gradients.

    `loss_of(step)` returns the loss and the figures to log. It must depend on the step alone, so that a run that was
    stopped and resumed from `<out>.resume` equals an uninterrupted one. That file has `identity` and the recipe, which
    must be the same to resume. Progress goes to stderr and, every 50 steps, to `<out>.log.jsonl` and the folder
    `tensorboard`. Call `resume.forget` when the weights are safe. Raises NumericalError if loss, gradient or weights
    are not finite, before such weights are saved, and UserError if nothing can be written or the stopped run had other
    settings.
    """
    started, learned = time.perf_counter(), {name: p for name, p in model.named_parameters() if p.requires_grad}
    owned = {name: distributed.take_own_part(p) for name, p in learned.items()}
    average = {name: p.detach().clone() for name, p in owned.items()}
    run, identity = resume.Run(owned, average, *make_optimizers(owned, recipe)), {**identity, **asdict(recipe)}
    identity.pop("save_every", None)  # makes no difference to what is learned
    distributed.check_same(identity)
    left = resume.make_path(out)
    distributed.run_in_first_process(lambda: files.sweep(left))
    first = resume.load(left, identity, run, {name: p.shape for name, p in learned.items()})
    log, shown = progress.Log(out.with_name(out.name + ".log.jsonl"), tensorboard, first), dict[str, float]()
    pace = progress.Pace()
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, unit="step", mininterval=5)
    for step in bar:
        loss, norm, figures = _update(learned, run, loss_of, recipe, step)
        summed = distributed.add_up({"loss": loss, TOKENS: figures.pop(TOKENS, 0)})
        pace.count(summed[TOKENS])
        _check_numbers(step, summed["loss"], norm)
        _follow(average, owned, min(recipe.ema, (step + 1) / (step + 10)))
        if (last := step + 1 == recipe.steps) or (step + 1) % LOG_EVERY == 0:
            shown = {"loss": summed["loss"], **distributed.add_up(figures)}
            entry = {"step": step + 1, "norm": norm, "rate": recipe.compute_rate(step), **shown}
            log.add({**entry, **pace.report(recipe.steps - step - 1)})
        bar.set_postfix(progress.format_postfix(shown, pace), refresh=last)
        if last or (step + 1) % recipe.save_every == 0:
            _check_weights(step, owned.values())
            if not last:
                resume.save(left, identity, step + 1, run)
    log.close()
    return TrainingResult(
        distributed.gather_whole(learned, average),
        recipe.steps,
        time.perf_counter() - started,
        pace.compute_mean(),
        shown,
    )


def make_optimizers(learned: Mapping[str, nn.Parameter], recipe: Recipe) -> tuple[torch.optim.AdamW, Muon | None]:
    """Returns AdamW, with weight decay on matrices only, and Muon for the layers' matrices if the recipe has it.

    Matrices with one row per token stay with AdamW.
    """
    matrices = [name for name, p in learned.items() if p.dim() == 2 and not name.startswith(TABLES)]
    orthogonal = matrices if recipe.optimizer == "muon" else []
    left = [p for name, p in learned.items() if name not in orthogonal]
    groups = [
        {"params": [p for p in left if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in left if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    if not orthogonal:
        return adamw, None
    hidden = [learned[name] for name in orthogonal]
    return adamw, Muon(hidden, recipe.learning_rate, recipe.weight_decay, bf16=recipe.bf16)


def _update(
    learned: Mapping[str, nn.Parameter], run: resume.Run, loss_of: Loss, recipe: Recipe, step: int
) -> tuple[float, float, dict[str, float]]:
    """Runs one optimizer step; returns this process's part of loss and figures, and the norm before clipping."""
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        group["lr"] = recipe.compute_rate(step)
    torch.manual_seed(
        ((recipe.seed * 1_000_003) + step) * distributed.count_processes() + distributed.get_rank()
    )  # for dropout
    with torch.autocast(next(iter(run.average.values())).device.type, torch.bfloat16, recipe.bf16):
        loss, figures = loss_of(step)
    loss.backward()
    distributed.take_gradients(learned, run.learned)
    norm = distributed.clip(list(run.learned.values()), recipe.clip)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item(), norm.item(), figures


def _follow(average: Mapping[str, Tensor], learned: Mapping[str, Tensor], decay: float) -> None:
    """Moves the averages towards the weights."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.values()), list(learned.values()), 1 - decay)


def _check_numbers(step: int, loss: float, norm: float) -> None:
    for what, value in (("loss", loss), ("gradient's norm", norm)):
        if not math.isfinite(value):
            raise NumericalError(f"the {what} is {value} at update {step + 1}; lower --learning-rate")


def _check_weights(step: int, weights: Iterable[Tensor]) -> None:
    """Raises NumericalError unless all weights are finite.

    An update from a finite gradient may still be too large; the next loss would show it only after a save.
    """
    wrong = [weight.isfinite().logical_not().any() for weight in weights]
    if distributed.sum_over_processes(torch.stack(wrong).any().float()):
        raise NumericalError(f"a weight is not a number after update {step + 1}; lower --learning-rate")
