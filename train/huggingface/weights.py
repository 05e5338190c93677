"""Tensors of a Hugging Face directory by the model's own names, exactly: none missing, extra or misshapen.

Names, shapes and types are checked by the files' headers; a tensor itself is read each time it is asked for and kept by
nobody here, so that a model of any size can be walked through in the memory of its largest tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.errors import UserError
from train.transformer.network import ModelConfig, Transformer

from .tokenizer_files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
FLOATS = ("F32", "F16", "BF16", "F64")
DERIVED = re.compile(r".*\brotary_emb\.(inv_freq|cos_cached|sin_cached)")  # made from the config again
Renames = Sequence[tuple[str, str]]
TensorShape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file, as its header tells of it. kind: its type in safetensors' own words."""

    file: Path
    name: str
    shape: TensorShape
    kind: str

    def read(self) -> Tensor:
        """Its values in their own dtype; they lie in the file, which stays mapped while they live and no longer."""
        with _opened(self.file) as handle:
            return handle.get_tensor(self.name)


@dataclass(frozen=True, slots=True)
class DirectoryWeights(Mapping[str, Tensor]):
    """A model's tensors by name, each made anew when it is asked for. shapes: of all of them, without reading any."""

    readers: Mapping[str, Callable[[], Tensor]]
    shapes: Mapping[str, TensorShape]

    def __getitem__(self, name: str) -> Tensor:
        return self.readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self.readers  # a Mapping's own way is to get it

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def expected_shapes(config: ModelConfig) -> dict[str, TensorShape]:
    """Every tensor that a model of this shape has."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


def read_weights(folder: Path, config: ModelConfig, renames: Renames) -> DirectoryWeights:
    """The directory's tensors, none of them read yet.

    renames: (pattern, replacement) of whole names, the first match wins. Raises UserError naming the tensor or file.
    """
    expected, found = expected_shapes(config), dict[str, StoredTensor]()
    head: StoredTensor | None = None
    for stored in _all_stored(folder):
        name = renamed(stored.name, renames)
        if DERIVED.fullmatch(stored.name):
            continue
        if config.tied and name == HEAD:
            head = stored
            continue
        if name not in expected:
            raise UserError(
                f"{stored.file} has an extra tensor {stored.name}, which a model of this config.json has not"
            )
        if name in found:
            raise UserError(f"{stored.file} has {stored.name} a second time; expected each tensor once")
        check_stored(stored, expected[name])
        found[name] = stored
    missing = sorted(expected.keys() - found.keys())
    if missing == [HEAD]:
        raise UserError(
            f"{folder} has no output head ({HEAD}), and its config.json does not tie it to the embedding; if the model "
            'has one matrix for both, write "tie_word_embeddings": true there, else download it again'
        )
    if missing:
        raise UserError(f"{folder} lacks the tensor {missing[0]} ({len(missing)} in all); download it again")
    if head is not None and not torch.equal(head.read(), found["embed_tokens.weight"].read()):
        raise UserError(
            f"{folder} has a head of its own, but config.json ties it to the embedding; one of them is wrong"
        )
    return DirectoryWeights({name: stored.read for name, stored in found.items()}, expected)


def stored_names(folder: Path, renames: Renames) -> dict[str, str]:
    """What the directory's files call each of the model's tensors."""
    found = (stored.name for file, _ in _files(folder) for stored in read_header(file))
    return {renamed(theirs, renames): theirs for theirs in found if not DERIVED.fullmatch(theirs)}


def renamed(name: str, renames: Renames) -> str:
    """The model's name of a stored tensor; the stored one where no rule knows it."""
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def check_stored(stored: StoredTensor, shape: TensorShape) -> None:
    """Raises UserError for another shape than the config's, or numbers that are no plain floats."""
    where = f"{stored.file}: {stored.name}"
    if stored.shape != shape:
        raise UserError(f"{where} is {list(stored.shape)}; by its config it should be {list(shape)}")
    if stored.kind not in FLOATS:
        raise UserError(f"{where} is {stored.kind}, quantised weights are not supported; expected fp32, fp16 or bf16")


def read_header(file: Path) -> list[StoredTensor]:
    """What lies in a safetensors file. Raises UserError for a damaged one."""
    with _opened(file) as handle:
        parts = [(name, handle.get_slice(name)) for name in handle.keys()]  # noqa: SIM118 - it is no mapping
        return [StoredTensor(file, name, tuple(part.get_shape()), part.get_dtype()) for name, part in parts]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is truncated or damaged ({reason}); download it again") from None


def _all_stored(folder: Path) -> Iterator[StoredTensor]:
    """All files' tensors, and with an index exactly those it names for each file."""
    for file, named in _files(folder):
        there = read_header(file)
        for stored in there:
            if named is not None and stored.name not in named:
                raise UserError(f"{file} has a tensor {stored.name} that {INDEX} does not name; download both again")
        if named is not None and (gone := sorted(named.keys() - {stored.name for stored in there})):
            raise UserError(f"{file} lacks the tensor {gone[0]} that {INDEX} names in it; download it again")
        yield from there


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
