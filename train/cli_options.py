"""The command-line options that several commands share: how a Hugging Face directory is read, and prompts encoded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from runtime.cli import add_template_option
from runtime.contract import ALIGNMENTS, ATTENTIONS, GateSpec
from runtime.errors import UserError

from .huggingface.families import FAMILY_NAMES, Overrides

DEVICE_CHOICES = ("cpu", "cuda")


def add_directory_options(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """Adds them, but for those that the command uses otherwise, and --template-args, of every checkpoint."""
    add_template_option(parser)
    group = parser.add_argument_group("where the checkpoint is a Hugging Face directory (defaults: what it says)")

    def add(name: str, text: str, **settings: object) -> None:
        if name not in leave_out:
            group.add_argument(name, help=text, **settings)  # type: ignore[arg-type]

    add("--family", "how it decodes, where its config.json does not tell", choices=FAMILY_NAMES)
    add("--block", "tokens a block", type=int)
    add("--alignment", "where blocks start", choices=ALIGNMENTS)
    add("--attention", "full: no cache, both directions", choices=ATTENTIONS)
    add("--mask-id", "id of the mask token", type=int)
    add("--eos-ids", "ids of the tokens that end an answer, as in 151643,151645", type=parse_token_ids, metavar="IDS")
    add("--gate", "changes of its gate, as in threshold=0.8,min=2", type=gate_changes, metavar="KEY=VALUE,...")
    add("--shift", "whether row i predicts position i + 1", action=argparse.BooleanOptionalAction)
    add(
        "--canvas",
        "most answer tokens of a full model, in whole blocks (default 256, less if they do not fit)",
        type=int,
    )
    add("--adapter", "folder of a PEFT LoRA adapter, merged into the weights", type=Path, metavar="DIR")


def at_least_1(text: str) -> int:
    """A count, as argparse wants it checked."""
    if not text.isascii() or not text.isdecimal() or not 1 <= len(text.lstrip("0")) <= 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def above_0(text: str) -> float:
    """A rate, as argparse wants it checked."""
    value = number(text)
    if isinstance(value, str) or not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def parse_token_ids(text: str) -> tuple[int, ...]:
    """The ids of `1,2`, of which `published` knows the vocabulary."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ids with commas, as in 151643,151645") from None


def gate_changes(text: str) -> dict[str, int | float | str]:
    """The values of `threshold=0.8,min=2`; the contract knows what each may be."""
    changes: dict[str, int | float | str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or name not in GateSpec.__slots__:
            known = ", ".join(GateSpec.__slots__)
            raise argparse.ArgumentTypeError(f"{part!r} is no KEY=VALUE with a key of {known}")
        changes[name] = number(value)
    return changes


def number(text: str) -> int | float | str:
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def overrides_of(args: argparse.Namespace, leave_out: Collection[str] = ()) -> Overrides:
    """What was given of them."""
    names = [name for name in Overrides.__slots__ if f"--{name.replace('_', '-')}" not in leave_out]
    return Overrides(**{name: getattr(args, name) for name in names})


def add_raw_option(parser: argparse.ArgumentParser) -> None:
    """Adds --raw, of commands that give prompts to a model."""
    text = "leave the checkpoint's chat template out (default: prompts go through it, where there is one)"
    parser.add_argument("--raw", action="store_true", help=text)


def add_top_k_option(parser: argparse.ArgumentParser) -> None:
    """Adds --top-k, of commands that write a step graph."""
    text = "the K most likely tokens of a row as outputs, of which a request with a temperature is drawn; 32 suits "
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help=text + "(default 0: the best alone)")


def add_bf16_option(parser: argparse.ArgumentParser) -> None:
    """Adds --bf16, of commands that run forwards by the thousand."""
    faster = bf16_is_faster()
    text = f"bf16 autocast (default where this processor multiplies bf16 itself, here {'on' if faster else 'off'})"
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=faster, help=text)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Adds --device, of commands that several processes may run."""
    text = "where it runs; under torchrun each process has a GPU of its own (default cpu)"
    parser.add_argument("--device", choices=DEVICE_CHOICES, default="cpu", help=text)


def bf16_is_faster() -> bool:
    """Whether this processor has instructions for products of bf16 that PyTorch uses: AVX-512 BF16 or AMX.

    Elsewhere bf16 is emulated in fp32. ARM's are not counted: not measured here.
    """
    import torch  # commands that build from a bundle share these options and have none

    ask: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # older versions lack it
    found = ask()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def parse_numbers(text: str, option: str) -> list[float]:
    """The numbers of `0,0.5`. Raises UserError for anything else, and for negative ones."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= number < math.inf for number in found):
        raise UserError(f"{option} is {text!r}; expected numbers of at least 0 with commas, as in 0,0.5")
    return found
