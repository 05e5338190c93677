"""Lists the distillation methods: their names, their own options, and how to make their loss."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runtime.cli import add_options, option
from runtime.errors import UserError
from train.trainer.training_loop import Loss

from . import cd4lm, cdlm, dparallel, tad
from .setup import MethodInputs

WITH_CACHE = ("block_causal", "causal_context")  # attentions of students that have a KV cache
ATTENTIONS = (*WITH_CACHE, "full")
TARGETS = ("completed", "partial")
DEFAULTS: dict[str, Any] = {  # of the options that not every method has
    "weights": "1,0.5,1",
    "target": "partial",
    "temperature": 2.0,
    "shares": "0.9,0.5",
    "certainty": 2.0,
    "ordered": 0.7,
    "near": 0.25,
    "distant": 1.0,
    "trajectories": None,
    "only_right": True,
}
HELP = {  # help texts that do not fit on the line of their option below
    "attention": (
        "attention of the student; full (not for cdlm) has no KV cache; causal_context, for a teacher "
        "with shift, can decode speculatively if it learns with --next-token (default: block_causal)"
    ),
    "trajectories": "folders that blockstep train collect wrote with this teacher (required)",
    "weights": (
        "weights of the distillation, consistency and denoising losses (default: 1,0.5,1; the authors use "
        "1,0.5,0.01, for LLaDA 1,0.5,0.1)"
    ),
    "shares": (
        "share of the KL divergence in the loss, the rest being cross-entropy, at the start and at the end "
        "(default: 0.9,0.5)"
    ),
    "certainty": "weight of the entropy terms (default: 2; for Dream 1)",
    "ordered": (
        "share of blocks (of answers for dparallel and full cd4lm students) that are masked from a random position to "
        "their end, as in decoding; the authors use 0 (default: 0.7)"
    ),
    "near": (
        "share of a block's positions that are near: the ones that the teacher unmasks next, learned by cross-entropy; "
        "the authors use 8 or 6 of 32 (default: 0.25)"
    ),
    "distant": "weight of the KL divergence on the block's other masked positions (default: 1, as the authors have it)",
}


@dataclass(frozen=True, slots=True)
class Method:
    """Describes a distillation method.

    Attributes:
        options: names of its options that not every method has.
        from_examples: whether it learns from ground truth.
        stepwise: whether it learns from the states of trajectories, which must then be of one token per step.
        attentions: those that its students may have.
        gate: its students' gate before calibration, with a threshold equal or near to the authors'.
        plan: checks the options' values; returns a function that makes the loss from the method inputs.
    """

    options: tuple[str, ...]
    from_examples: bool
    stepwise: bool
    attentions: tuple[str, ...]
    gate: Mapping[str, Any]
    plan: Callable[[Mapping[str, Any]], Callable[[MethodInputs], Loss]]

    @property
    def from_trajectories(self) -> bool:
        """Returns whether it learns from trajectories."""
        return "trajectories" in self.options


def _plan_cdlm(values: Mapping[str, Any]) -> Callable[[MethodInputs], Loss]:
    return partial(cdlm.make_loss, weights=cdlm.parse_weights(values["weights"]), target=values["target"])


def _plan_cd4lm(values: Mapping[str, Any]) -> Callable[[MethodInputs], Loss]:
    if not 0 < values["temperature"] < math.inf:
        raise UserError(f"--temperature is {values['temperature']:g}; expected a number above 0")
    shares = cd4lm.parse_shares(values["shares"])
    return partial(
        cd4lm.make_loss, temperature=values["temperature"], shares=shares, ordered=_read_share(values, "ordered")
    )


def _plan_dparallel(values: Mapping[str, Any]) -> Callable[[MethodInputs], Loss]:
    if not 0 <= values["certainty"] < math.inf:
        raise UserError(f"--certainty is {values['certainty']:g}; expected a number of at least 0")
    return partial(dparallel.make_loss, certainty=values["certainty"], ordered=_read_share(values, "ordered"))


def _plan_tad(values: Mapping[str, Any]) -> Callable[[MethodInputs], Loss]:
    if not 0 <= values["distant"] < math.inf:
        raise UserError(f"--distant is {values['distant']:g}; expected a number of at least 0")
    return partial(tad.make_loss, near=_read_share(values, "near"), distant=values["distant"])


def _read_share(values: Mapping[str, Any], name: str) -> float:
    """Returns the value of an option. Raises UserError unless it is from 0 to 1."""
    share: float = values[name]
    if not 0 <= share <= 1:
        raise UserError(f"--{name} is {share:g}; expected a share from 0 to 1")
    return share


TRAJECTORY_OPTIONS = ("trajectories", "only_right")
METHODS = {
    "cdlm": Method(("weights", "target", *TRAJECTORY_OPTIONS), True, True, WITH_CACHE, cdlm.GATE, _plan_cdlm),
    "cd4lm": Method(("temperature", "shares", "ordered"), True, False, ATTENTIONS, cd4lm.GATE, _plan_cd4lm),
    "dparallel": Method(
        ("certainty", "ordered", *TRAJECTORY_OPTIONS), False, False, ATTENTIONS, dparallel.GATE, _plan_dparallel
    ),
    "tad": Method(("near", "distant", *TRAJECTORY_OPTIONS), False, True, ATTENTIONS, tad.GATE, _plan_tad),
}


METHOD_OPTIONS = (
    option("--method", choices=METHODS, default="cdlm", help="distillation method (docs/distil.md; default: cdlm)"),
    option("--attention", choices=ATTENTIONS, default="block_causal", help=HELP["attention"]),
)
OWN_OPTIONS = {  # options by the methods that have them
    "cdlm, dparallel and tad": (
        option("--trajectories", type=Path, nargs="+", metavar="DIR", help=HELP["trajectories"]),
        option(
            "--only-right",
            action=argparse.BooleanOptionalAction,
            help="drop trajectories whose answer is wrong (default: on)",
        ),
    ),
    "cdlm": (
        option("--weights", help=HELP["weights"]),
        option(
            "--target",
            choices=TARGETS,
            help="later state y* of the consistency loss: the completed block, or a state between (default: partial)",
        ),
    ),
    "cd4lm": (
        option(
            "--temperature", type=float, metavar="T", help="temperature of both sides of the KL divergence (default: 2)"
        ),
        option("--shares", help=HELP["shares"]),
    ),
    "cd4lm and dparallel": (option("--ordered", type=float, metavar="SHARE", help=HELP["ordered"]),),
    "dparallel": (option("--certainty", type=float, metavar="W", help=HELP["certainty"]),),
    "tad": (
        option("--near", type=float, metavar="SHARE", help=HELP["near"]),
        option("--distant", type=float, metavar="W", help=HELP["distant"]),
    ),
}


def add_own_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that not every method has, one group per set of methods."""
    for methods, options in OWN_OPTIONS.items():
        add_options(parser.add_argument_group(methods), options)


def choose_method(name: str, attention: str, values: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """Returns the method and the values of its own options, by name.

    values: those of all options in DEFAULTS, by name; None for the default. Raises UserError for an option or attention
    that only other methods have, or without the --trajectories that the method needs.
    """
    method = METHODS[name]
    for key, value in values.items():
        if value is not None and key not in method.options:
            owners = " or ".join(each for each, other in METHODS.items() if key in other.options)
            raise UserError(
                f"--{key.replace('_', '-')} was given with --method {name}; it is of {owners}: leave it out"
            )
    if attention not in method.attentions:
        allowed = " or ".join(method.attentions)
        raise UserError(f"--method {name} makes {allowed} students; got --attention {attention}")
    if method.from_trajectories and values["trajectories"] is None:
        raise UserError(f"--method {name} needs --trajectories; write some with blockstep train collect")
    return method, {each: DEFAULTS[each] if values[each] is None else values[each] for each in method.options}
