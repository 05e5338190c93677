"""The training loop that all `train.*` commands share: AdamW, warm-up and cosine, clipping, EMA, checkpoints, logs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from runtime.errors import NumericalError, UserError

from .checkpoint import replace_file

LOG_EVERY = 50  # updates


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to learn. `seed` and the step number determine every batch and every mask."""

    steps: int
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    floor: float = 0.02  # of the learning rate, at the end of the cosine
    bf16: bool = True
    save_every: int = 500

    def rate(self, step: int) -> float:
        """The learning rate at a step: linear warm-up, then a cosine down to `floor` of its peak."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        progress = min(1.0, max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup)))
        fall = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * rise * fall


Loss = Callable[[int], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished run. weights: the averaged (EMA) ones, by name, of all that was trained; figures: the last logged.

    seconds: since it was started, or last resumed.
    """

    weights: dict[str, Tensor]
    steps: int
    seconds: float
    figures: dict[str, float]

    def report(self, out: Path) -> dict[str, Any]:
        """What --json prints; a figure that is no number, as a share of nothing, is null."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        return {"out": str(out), "steps": self.steps, "seconds": round(self.seconds, 1), **figures}


def fit(model: nn.Module, loss_of: Loss, recipe: Recipe, out: Path, identity: dict[str, Any]) -> Fitted:
    """Trains in place those parameters of `model` that require gradients.

    `loss_of(step)` gives the loss and figures to log; it must depend on the step alone, so that a run that was stopped
    and resumed from `<out>.resume` equals an uninterrupted one. `identity` is stored there; another identity starts
    afresh. Progress goes to stderr and, a JSON object every 50 steps, to `<out>.log.jsonl`. Call `forget` when the
    weights are safe. Raises NumericalError where the loss is no number, UserError where nothing can be written.
    """
    started, learnt = time.perf_counter(), {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer, average = _adamw(learnt, recipe), {name: p.detach().clone() for name, p in learnt.items()}
    resume, identity = _resume_path(out), {**identity, **asdict(recipe)}
    first = _resume(resume, identity, learnt, optimizer, average)
    log, shown = _Log(out.with_name(out.name + ".log.jsonl"), first), dict[str, float]()
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, unit="step", mininterval=5)
    for step in bar:
        loss, norm, figures = _update(learnt, optimizer, loss_of, recipe, step)
        with torch.no_grad():
            decay = min(recipe.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), list(learnt.values()), 1 - decay)
        if step % LOG_EVERY == LOG_EVERY - 1 or step + 1 == recipe.steps:
            shown = {"loss": loss.item(), **figures}
            if not math.isfinite(shown["loss"]):
                raise NumericalError(f"the loss is {shown['loss']} at update {step + 1}; lower --learning-rate")
            log.add({"step": step + 1, "norm": float(norm), "rate": recipe.rate(step), **shown})
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
        if (step + 1) % recipe.save_every == 0 and step + 1 < recipe.steps:
            _save(resume, identity, step + 1, learnt, optimizer, average)
    return Fitted(average, recipe.steps, time.perf_counter() - started, shown)


def forget(out: Path) -> None:
    """Removes what a stopped run would have been resumed from, once `out` is written."""
    _resume_path(out).unlink(missing_ok=True)


def _resume_path(out: Path) -> Path:
    return out.with_name(out.name + ".resume")


def _adamw(learnt: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """Weight decay on matrices alone."""
    matrices = [p for p in learnt.values() if p.dim() >= 2]
    others = [p for p in learnt.values() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _update(
    learnt: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW, loss_of: Loss, recipe: Recipe, step: int
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """One optimiser step; the loss, the gradient's norm before clipping, and the loss's own figures."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    with torch.autocast("cpu", torch.bfloat16, recipe.bf16):
        loss, figures = loss_of(step)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(list(learnt.values()), recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm, figures


class _Log:
    """JSON lines with the seconds since the run was started; a resumed run drops what it will log again."""

    def __init__(self, path: Path, first: int) -> None:
        kept = (
            [line for line in path.read_text("utf-8").splitlines() if json.loads(line)["step"] <= first]
            if first
            else []
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); give --out another path") from None
        self.path, self.started = path, time.perf_counter()

    def add(self, entry: dict[str, float]) -> None:
        seconds = round(time.perf_counter() - self.started, 1)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**entry, "seconds": seconds}) + "\n")


def _save(
    path: Path, identity: dict[str, Any], step: int, learnt: Mapping[str, Tensor], optimizer: Any, average: Any
) -> None:
    state = {
        "identity": identity,
        "step": step,
        "model": {name: parameter.detach() for name, parameter in learnt.items()},
        "optimizer": optimizer.state_dict(),
        "average": average,
    }
    replace_file(path, lambda temporary: torch.save(state, temporary))


def _resume(
    path: Path, identity: dict[str, Any], learnt: Mapping[str, Tensor], optimizer: Any, average: Mapping[str, Tensor]
) -> int:
    """Restores a stopped run of the same identity; returns the step to go on with, 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    plain = {"rope_scaling": {}}  # what runs begun before models had one lack
    if {**plain, **state["identity"]} != {**plain, **identity}:
        return 0
    optimizer.load_state_dict(state["optimizer"])
    with torch.no_grad():
        for name, parameter in learnt.items():
            parameter.copy_(state["model"][name])
            average[name].copy_(state["average"][name])
    return int(state["step"])
