"""Defines options that several commands share: for Hugging Face directories, prompts, step graphs and training."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from runtime.cli import TEMPLATE_OPTION, Option, add_options, option, parse_at_least_1, parse_number, parse_whole
from runtime.contract import ALIGNMENTS, ATTENTIONS, GateSpec
from runtime.errors import UserError

from .huggingface.families import FAMILY_NAMES, Overrides

DEVICE_CHOICES = ("cpu", "cuda")
MOST_SEED = (1 << 32) - 1
HELP = {  # help texts that do not fit on the line of their option below
    "eos-ids": "ids of the end tokens, as in 151643,151645",
    "canvas": "maximum answer tokens of a full model, in whole blocks (default: 256, or as many as the context holds)",
    "raw": "use prompts as they are, without the checkpoint's chat template (default: with it, if there is one)",
    "top-k": (
        "number K of top tokens per row that the graph outputs, to sample from; 32 suits (default: 0, the top-1 token "
        "alone)"
    ),
    "candidates": (
        "maximum number N of candidate tokens per row whose log-probabilities the graph outputs, for typed decisions; "
        "64 suits (default: 0, a bundle without decisions)"
    ),
    "tensorboard": (
        "folder for TensorBoard's curves: loss, its parts, learning rate, gradient norm, tokens per second; needs pip "
        "install tensorboard (default: none)"
    ),
    "json": (
        "print one JSON object with the output path, updates, seconds, mean tokens per second (prompts and answers, "
        "each once per update, without padding) and the last losses"
    ),
    "optimizer": (
        "optimizer; muon: Muon for the layers' matrices and AdamW for the rest, not under torchrun (default: adamw)"
    ),
    "dropout": "share of each layer's output channels that is dropped per update, for small data sets (default: 0)",
    "device": "device to run on; under torchrun each process uses its own GPU (default: cpu)",
}


def parse_above_0(text: str) -> float:
    """Parses a rate, which must be above 0, for argparse."""
    value = parse_finite_number(text)
    if value is None or not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def parse_share_below_1(text: str) -> float:
    """Parses a share from 0 to below 1, for argparse."""
    value = parse_finite_number(text)
    if value is None or not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 1")
    return value


def parse_seed(text: str) -> int:
    """Parses a seed; the limit keeps the seeds that are derived from it, per update and process, within 64 bits."""
    try:
        value = int(text)
    except ValueError:
        value = MOST_SEED + 1
    if abs(value) > MOST_SEED:
        raise argparse.ArgumentTypeError(f"{text[:30]!r} is not a whole number from -{MOST_SEED} to {MOST_SEED}")
    return value


def parse_token_ids(text: str) -> tuple[int, ...]:
    """Parses token ids such as `1,2`; they are checked against the vocabulary when the directory is read."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ids with commas, as in 151643,151645") from None


def parse_gate_changes(text: str) -> dict[str, int | float | str]:
    """Parses gate fields such as `threshold=0.8,min=2`; the contract checks their values."""
    changes: dict[str, int | float | str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or name not in GateSpec.__slots__:
            known = ", ".join(GateSpec.__slots__)
            raise argparse.ArgumentTypeError(f"{part!r} is not a KEY=VALUE with a key of {known}")
        changes[name] = parse_scalar(value)
    return changes


def parse_scalar(text: str) -> int | float | str:
    """Parses a number; returns other text, and what is not finite, as it is."""
    try:
        return parse_whole(text)
    except ValueError:
        found = parse_finite_number(text)
        return text if found is None else found


def parse_finite_number(text: str) -> float | None:
    """Parses a number; returns None for other text and for what is not finite."""
    try:
        return parse_number(text)
    except ValueError:
        return None


def make_overrides(args: argparse.Namespace, leave_out: Collection[str] = ()) -> Overrides:
    """Returns the overrides given as options, without those in `leave_out`, whose meaning differs in the command."""
    names = [name for name in Overrides.__slots__ if f"--{name.replace('_', '-')}" not in leave_out]
    return Overrides(**{name: getattr(args, name) for name in names})


GATE_OPTION = option(
    "--gate",
    type=parse_gate_changes,
    metavar="KEY=VALUE,...",
    help="changes to the model's gate, as in threshold=0.8,min=2 (default: none)",
)
DIRECTORY_OPTIONS = (
    option("--family", choices=FAMILY_NAMES, help="model family, if config.json does not name it"),
    option("--block", type=int, help="tokens per block"),
    option("--alignment", choices=ALIGNMENTS, help="positions that blocks start at (docs/bundle-format.md)"),
    option("--attention", choices=ATTENTIONS, help="attention mask; full: both directions, no KV cache"),
    option("--mask-id", type=int, help="id of the mask token"),
    option("--eos-ids", type=parse_token_ids, metavar="IDS", help=HELP["eos-ids"]),
    GATE_OPTION,
    option(
        "--shift",
        action=argparse.BooleanOptionalAction,
        help="read row i as the prediction of position i + 1 (next-token-shifted logits)",
    ),
    option("--canvas", type=int, help=HELP["canvas"]),
    option(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="folder of a PEFT LoRA adapter to merge into the weights (default: none)",
    ),
)
# RAW_OPTION is for commands that encode prompts, CANDIDATES_OPTION and TOP_K_OPTION for those that write a step graph,
# DEVICE_OPTION for those that may run under torchrun.
RAW_OPTION = option("--raw", action="store_true", help=HELP["raw"])
CANDIDATES_OPTION = option("--candidates", type=int, default=0, metavar="N", help=HELP["candidates"])
TOP_K_OPTION = option("--top-k", type=int, default=0, metavar="K", help=HELP["top-k"])
DEVICE_OPTION = option("--device", choices=DEVICE_CHOICES, default="cpu", help=HELP["device"])
TRAINING_OPTIONS = (  # for commands that train
    option("--data", type=Path, help="file of JSON lines with prompt and answer, instead of a task (default: none)"),
    option("--seed", type=parse_seed, default=0, metavar="N", help="seed of weights, data and noise (default: 0)"),
    option("--optimizer", choices=("adamw", "muon"), default="adamw", help=HELP["optimizer"]),
    option("--dropout", type=parse_share_below_1, default=0.0, metavar="SHARE", help=HELP["dropout"]),
    option(
        "--save-every", type=parse_at_least_1, default=500, help="updates between resumable checkpoints (default: 500)"
    ),
    DEVICE_OPTION,
    option(
        "--compile",
        action="store_true",
        help="compile the model with torch.compile, for speed (docs/distil.md); needs a C++ compiler (default: off)",
    ),
    option("--tensorboard", type=Path, metavar="DIR", help=HELP["tensorboard"]),
    option("--json", action="store_true", help=HELP["json"]),
)


def add_directory_options(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """Adds --template-args, and the options of Hugging Face directories except those in `leave_out`.

    --template-args applies to .pt files too.
    """
    add_options(parser, [TEMPLATE_OPTION])
    group = parser.add_argument_group("options of a Hugging Face directory (defaults: what its files say)")
    add_options(group, [(name, settings) for name, settings in DIRECTORY_OPTIONS if name not in leave_out])


def bf16_option() -> Option:
    """Returns the option --bf16, for commands that run thousands of forward passes; `choose_bf16` sets its default."""
    here = "on" if bf16_is_faster("cpu") else "off"
    text = f"use bf16 autocast (default: on if the CPU or GPU has bf16 product instructions; here: {here})"
    return option("--bf16", action=argparse.BooleanOptionalAction, help=text)


def choose_bf16(args: argparse.Namespace) -> None:
    """Sets --bf16 by the device if it was not given; call it once the device is known to exist."""
    if args.bf16 is None:
        args.bf16 = bf16_is_faster(args.device)


def bf16_is_faster(device: str) -> bool:
    """Returns whether the device multiplies bf16 in hardware that PyTorch uses; on a CPU, AVX-512 BF16 or AMX.

    Otherwise bf16 is emulated in fp32. ARM's bf16 instructions are not counted, as they were not measured here.
    """
    import torch  # not at the top: commands that build from a bundle use these options without torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    read: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # older versions lack it
    found = read()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def parse_numbers(text: str, option: str) -> list[float]:
    """Parses numbers such as `0,0.5`. Raises UserError for other text and for negative numbers."""
    found = [parse_finite_number(part) for part in text.split(",")]
    numbers = [number for number in found if number is not None and number >= 0]
    if len(numbers) < len(found):
        raise UserError(f"{option} is {text!r}; expected numbers of at least 0 with commas, as in 0,0.5")
    return numbers
