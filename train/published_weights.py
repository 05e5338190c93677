"""Tensors of a Hugging Face directory by the model's own names, exactly: none missing, extra or misshapen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.errors import UserError

from .model import Model, ModelConfig
from .published_text import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DERIVED = re.compile(r".*\brotary_emb\.(inv_freq|cos_cached|sin_cached)")  # made from the config again
Renames = Sequence[tuple[str, str]]


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this shape has."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Model(config).state_dict().items()}


def read_weights(folder: Path, config: ModelConfig, renames: Renames) -> dict[str, Tensor]:
    """The directory's tensors, in their own dtype and mapped from the files, not read into memory where that can be.

    renames: (pattern, replacement) of whole names, the first match wins. Raises UserError naming the tensor or file.
    """
    expected, found = expected_shapes(config), dict[str, Tensor]()
    head: Tensor | None = None
    for file, stored in _files(folder):
        for theirs, tensor in _tensors(file, stored):
            name = renamed(theirs, renames)
            if DERIVED.fullmatch(theirs):
                continue
            if config.tied and name == "lm_head.weight":
                head = tensor
                continue
            if name not in expected:
                raise UserError(f"{file} has an extra tensor {theirs}, which a model of this config.json has not")
            if name in found:
                raise UserError(f"{file} has {theirs} a second time; expected each tensor once")
            check_tensor(file, theirs, tensor, expected[name])
            found[name] = tensor
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{folder} lacks the tensor {missing[0]} ({len(missing)} in all); download it again")
    if head is not None and not torch.equal(head, found["embed_tokens.weight"]):
        raise UserError(
            f"{folder} has a head of its own, but config.json ties it to the embedding; one of them is wrong"
        )
    return found


def stored_names(folder: Path, renames: Renames) -> dict[str, str]:
    """What the directory's files call each of the model's tensors."""
    found: list[str] = []
    for file, _ in _files(folder):
        with safe_open(file, framework="pt") as handle:
            found += handle.keys()
    return {renamed(theirs, renames): theirs for theirs in found if not DERIVED.fullmatch(theirs)}


def renamed(name: str, renames: Renames) -> str:
    """The model's name of a stored tensor; the stored one where no rule knows it."""
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def check_tensor(file: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises UserError for another shape than the config's, or numbers that are no plain floats."""
    if tuple(tensor.shape) != shape:
        raise UserError(f"{file}: {name} is {list(tensor.shape)}; by its config it should be {list(shape)}")
    if tensor.dtype not in FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{file}: {name} is {kind}, quantised weights are not supported; expected fp32, fp16 or bf16")


def read_file(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file. Raises UserError for a damaged one."""
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - it is no mapping
                yield name, handle.get_tensor(name)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is truncated or damaged ({reason}); download it again") from None


def _tensors(file: Path, stored: Mapping[str, str] | None) -> Iterator[tuple[str, Tensor]]:
    """A file's tensors, and with an index exactly those it names for this file."""
    seen = set()
    for name, tensor in read_file(file):
        if stored is not None and name not in stored:
            raise UserError(f"{file} has a tensor {name} that {INDEX} does not name; download both again")
        seen.add(name)
        yield name, tensor
    if stored is not None and (gone := sorted(stored.keys() - seen)):
        raise UserError(f"{file} lacks the tensor {gone[0]} that {INDEX} names in it; download it again")


def _files(folder: Path) -> list[tuple[Path, dict[str, str] | None]]:
    if (folder / SINGLE).is_file():
        return [(folder / SINGLE, None)]
    if not (folder / INDEX).is_file():
        pickles = sorted(file.name for ending in ("*.bin", "*.pt", "*.pth") for file in folder.glob(ending))
        if pickles:
            raise UserError(
                f"{folder} has its weights as pickles ({pickles[0]}), which can run code and are not read; convert "
                "them to safetensors"
            )
        raise UserError(f"{folder} has no weights; expected {SINGLE} or {INDEX}")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{folder / INDEX} has no weight_map of tensors and files; download it again")
    files: list[tuple[Path, dict[str, str] | None]] = []
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX} names {name!r}; expected a .safetensors file beside it")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, {INDEX} names it; download it again")
        files.append((folder / name, {tensor: place for tensor, place in places.items() if place == name}))
    return files
