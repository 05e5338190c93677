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
    """Holds how long and how fast to train. `seed` and the step number determine every batch and every mask."""

    steps: int  # updates
    learning_rate: float = 2e-3  # at its peak
    warmup: int = 100  # updates in which the learning rate rises to its peak
    weight_decay: float = 0.05
    clip: float = 1.0  # the gradient's largest norm
    ema: float = 0.998  # decay of the weights' moving average
    floor: float = 0.02  # share of the peak learning rate at the end of the cosine
    bf16: bool = True
    save_every: int = 500  # updates
    seed: int = 0
    optimizer: str = "adamw"

    def compute_rate(self, step: int) -> float:
        """Returns the learning rate at a step: a linear warm-up, then a cosine from the peak down to `floor` of it."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fraction = min(1.0, max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup)))
        fall = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * fraction))
        return self.learning_rate * rise * fall


# Maps a step to this process's part of the loss, and of each figure by name; the parts of all processes are summed. The
# figure `tokens` counts the tokens of prompts and answers, each once however often the model sees it, without padding.
Loss = Callable[[int], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Holds the result of a finished run.

    Attributes:
        weights: the averaged (EMA) weights of all trained parameters, by name; empty in all processes but the first.
        steps: updates of the whole run.
        seconds: since the run was started or last resumed.
        tokens_per_second: mean throughput of that time.
        figures: the loss and its parts, as last logged.
    """

    weights: dict[str, Tensor]
    steps: int
    seconds: float
    tokens_per_second: float
    figures: dict[str, float]

    def report(self, out: Path) -> dict[str, Any]:
        """Returns the object that --json prints; a figure that is not a number, such as a share of nothing, is None."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        times = {"seconds": round(self.seconds, 1), "tokens_per_second": self.tokens_per_second}
        return {"out": str(out), "steps": self.steps, **times, **figures}


def run_training(
    train: Callable[[], TrainingResult], out: Path, device: str, tensorboard: Path | None, as_json: bool
) -> int:
    """Runs a training command, alone or as one of torchrun's processes; prints what it wrote, returns the exit code."""
    with distributed.join_processes(device):
        if tensorboard is not None:
            progress.import_board_class()  # if it is not installed, this fails before hours of training
        result = train()
    if as_json:
        print_json(result.report(out))
    else:
        print(f"wrote {out}")
    return DONE


def train_model(
    model: nn.Module,
    loss_of: Loss,
    recipe: Recipe,
    out: Path,
    fingerprint: dict[str, Any],
    tensorboard: Path | None = None,
) -> TrainingResult:
    """Trains in place those parameters of `model` that require gradients.

    Progress goes to stderr and, every LOG_EVERY updates, to `<out>.log.jsonl`. A stopped run resumes from
    `<out>.resume` if it has the same fingerprint and recipe. Call `resume.forget` once the weights are written.

    Args:
        model: the model.
        loss_of: returns the loss and the figures to log of a step. It must depend on the step alone, so that a run that
            was stopped and resumed equals an uninterrupted one.
        recipe: how to train.
        out: path of the checkpoint that the caller writes afterwards; logs and resumable states are next to it.
        fingerprint: what else determines the trained weights, as plain values (`run_fingerprint`).
        tensorboard: folder of TensorBoard's curves, None for no curves.

    Raises:
        NumericalError: loss, gradient or weights are not finite; such weights are never saved.
        UserError: a file cannot be written, or the stopped run had another fingerprint.
    """
    start, trainable = time.perf_counter(), {name: p for name, p in model.named_parameters() if p.requires_grad}
    own_parameters = {name: distributed.take_own_part(p) for name, p in trainable.items()}
    average = {name: p.detach().clone() for name, p in own_parameters.items()}
    run = resume.Run(own_parameters, average, *make_optimizers(own_parameters, recipe))
    fingerprint = {**fingerprint, **asdict(recipe)}
    fingerprint.pop("save_every", None)  # does not change the trained weights
    distributed.check_same(fingerprint)
    state_path = resume.make_path(out)
    distributed.run_in_first_process(lambda: files.sweep(state_path))
    first = resume.load(state_path, fingerprint, run, {name: p.shape for name, p in trainable.items()})
    log, log_figures = progress.Log(out.with_name(out.name + ".log.jsonl"), tensorboard, first), dict[str, float]()
    pace = progress.Pace()
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, unit="step", mininterval=5)
    for step in bar:
        loss, norm, figures = _update(trainable, run, loss_of, recipe, step)
        sums = distributed.add_up({"loss": loss, TOKENS: figures.pop(TOKENS, 0)})
        pace.count(sums[TOKENS])
        _check_numbers(step, sums["loss"], norm)
        _update_average(average, own_parameters, min(recipe.ema, (step + 1) / (step + 10)))
        if (last := step + 1 == recipe.steps) or (step + 1) % LOG_EVERY == 0:
            log_figures = {"loss": sums["loss"], **distributed.add_up(figures)}
            entry = {"step": step + 1, "norm": norm, "rate": recipe.compute_rate(step), **log_figures}
            log.add({**entry, **pace.report(recipe.steps - step - 1)})
        bar.set_postfix(progress.format_postfix(log_figures, pace), refresh=last)
        if last or (step + 1) % recipe.save_every == 0:
            _check_weights(step, own_parameters.values())
            if not last:
                resume.save(state_path, fingerprint, step + 1, run)
    log.close()
    return TrainingResult(
        distributed.gather_whole(trainable, average),
        recipe.steps,
        time.perf_counter() - start,
        pace.compute_mean(),
        log_figures,
    )


def make_optimizers(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> tuple[torch.optim.AdamW, Muon | None]:
    """Returns AdamW, with weight decay on matrices only, and Muon for the layers' matrices if the recipe has it.

    AdamW updates all parameters that Muon does not, such as matrices with one row per token. parameters: by name.
    """
    matrices = [name for name, p in parameters.items() if p.dim() == 2 and not name.startswith(TABLES)]
    muon_names = matrices if recipe.optimizer == "muon" else []
    others = [p for name, p in parameters.items() if name not in muon_names]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    if not muon_names:
        return adamw, None
    hidden = [parameters[name] for name in muon_names]
    return adamw, Muon(hidden, recipe.learning_rate, recipe.weight_decay, bf16=recipe.bf16)


def _update(
    trainable: Mapping[str, nn.Parameter], run: resume.Run, loss_of: Loss, recipe: Recipe, step: int
) -> tuple[float, float, dict[str, float]]:
    """Runs one optimizer step.

    Returns this process's part of the loss, the whole gradient's norm before clipping, and this process's part of the
    figures. trainable: the model's own parameters, which several processes shard.
    """
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        group["lr"] = recipe.compute_rate(step)
    torch.manual_seed(
        ((recipe.seed * 1_000_003) + step) * distributed.count_processes() + distributed.get_rank()
    )  # for dropout
    with torch.autocast(next(iter(run.average.values())).device.type, torch.bfloat16, recipe.bf16):
        loss, figures = loss_of(step)
    loss.backward()
    distributed.take_gradients(trainable, run.parameters)
    norm = distributed.clip(list(run.parameters.values()), recipe.clip)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item(), norm.item(), figures


def _update_average(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """Moves the averages towards the weights, in place."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - decay)


def _check_numbers(step: int, loss: float, norm: float) -> None:
    """Raises NumericalError unless the loss and the gradient's norm are finite."""
    for what, value in (("loss", loss), ("gradient's norm", norm)):
        if not math.isfinite(value):
            raise NumericalError(f"the {what} is {value} at update {step + 1}; lower --learning-rate")


def _check_weights(step: int, weights: Iterable[Tensor]) -> None:
    """Raises NumericalError unless all weights are finite.

    An update from a finite gradient may be too large all the same, which the next loss would show only after a save.
    """
    not_finite = [weight.isfinite().logical_not().any() for weight in weights]
    if distributed.sum_over_processes(torch.stack(not_finite).any().float()):
        raise NumericalError(f"a weight is not a number after update {step + 1}; lower --learning-rate")
