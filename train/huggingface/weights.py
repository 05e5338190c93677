"""Reads the tensors of a Hugging Face directory under the model's own names; none may be missing, extra or misshapen.

The files' headers are enough to check names, shapes and types. A tensor is read anew on each access and not kept, so a
loop over a model of any size needs only the memory of its largest tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from runtime.errors import UserError
from train.transformer.network import ModelConfig, Transformer

from .packed_weights import PART, PackedWeight, read_packed_weight
from .quantization_config import KEY, Scheme
from .stored_tensor import StoredTensor, TensorShape, check_stored, read_header
from .tokenizer_files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
DERIVED = re.compile(r".*\brotary_emb\.(inv_freq|cos_cached|sin_cached)")  # recomputed from the config
Renames = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class DirectoryWeights(Mapping[str, Tensor]):
    """A model's tensors by name, each read anew on access.

    readers: functions that read one tensor each. shapes: every tensor's shape, known without reading it. packed: the
    quantized weights, unless an adapter was merged into them; merged: the names of those that one was merged into.
    """

    readers: Mapping[str, Callable[[], Tensor]]
    shapes: Mapping[str, TensorShape]
    packed: Mapping[str, PackedWeight] = field(default_factory=dict)
    merged: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        return self.readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self.readers  # Mapping's own implementation would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def list_expected_shapes(config: ModelConfig) -> dict[str, TensorShape]:
    """Returns the shape of every tensor that a model of this shape has."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


def read_weights(folder: Path, config: ModelConfig, renames: Renames, scheme: Scheme | None = None) -> DirectoryWeights:
    """Returns the directory's tensors, to be read on access.

    renames: pairs of a pattern, which has to match a whole name, and a replacement; the first match is used. scheme:
    how the directory's quantized weights are stored, None if it has none. Raises UserError, naming the tensor or file,
    if they do not fit the config.
    """
    expected, found = list_expected_shapes(config), dict[str, StoredTensor]()
    parts, biases = dict[str, dict[str, StoredTensor]](), dict[str, StoredTensor]()
    head: StoredTensor | None = None
    for stored in _read_all_stored(folder):
        name = rename(stored.name, renames)
        if DERIVED.fullmatch(stored.name):
            continue
        if config.tied and name == HEAD:
            head = stored
            continue
        if (part := PART.fullmatch(name)) and f"{part[1]}weight" in expected:
            if scheme is None:
                raise UserError(
                    f"{stored.file} has the quantized weight {stored.name}, but config.json has no {KEY}; copy it "
                    "there from quantize_config.json, with quant_method"
                )
            _add_once(stored, part[2], parts.setdefault(f"{part[1]}weight", {}))
            continue
        if scheme is not None and name.endswith("_proj.bias") and name not in expected:
            _add_once(stored, name, biases)
            continue
        if name not in expected:
            raise _make_extra_error(stored)
        _add_once(stored, name, found)
        check_stored(stored, expected[name])
    packed = {
        name: read_packed_weight(name, expected[name], scheme, each.values()) for name, each in parts.items() if scheme
    }
    if scheme is not None:
        _check_packed(folder, packed, found, biases)
    missing = sorted(expected.keys() - found.keys() - packed.keys())
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
    readers = {name: stored.read for name, stored in found.items()}
    return DirectoryWeights({**readers, **{name: each.read for name, each in packed.items()}}, expected, packed)


def _add_once(stored: StoredTensor, name: str, tensors: dict[str, StoredTensor]) -> None:
    """Adds a tensor under a name. Raises UserError if the name is taken."""
    if name in tensors:
        raise UserError(f"{stored.file} has {stored.name} a second time; expected each tensor once")
    tensors[name] = stored


def _make_extra_error(stored: StoredTensor) -> UserError:
    return UserError(f"{stored.file} has an extra tensor {stored.name}, which a model of this config.json lacks")


def _check_packed(
    folder: Path,
    packed: Mapping[str, PackedWeight],
    found: Mapping[str, StoredTensor],
    biases: Mapping[str, StoredTensor],
) -> None:
    """Raises UserError if no weight is quantized, one is stored unquantized too, or an extra bias is not zero.

    Older libraries store a bias of zeros next to every quantized weight (AutoGPTQ before 0.5).
    """
    if not packed:
        raise UserError(f"{folder} has a {KEY} in its config.json but no quantized weights; remove it there")
    if both := sorted(packed.keys() & found.keys()):
        raise UserError(f"{folder} has {both[0]} both quantized and unquantized; remove one of them")
    for name, stored in biases.items():
        if name.replace(".bias", ".weight") not in packed or stored.read().any():
            raise _make_extra_error(stored)


def map_stored_names(folder: Path, renames: Renames) -> dict[str, str]:
    """Returns, for each tensor's name in the model, its name in the directory's files."""
    found = {stored.name for file, _ in _list_files(folder) for stored in read_header(file)}
    packed = {name.removesuffix(".qweight"): name for name in found if name.endswith(".qweight")}
    plain = (name for name in found if name.rpartition(".")[0] not in packed or name.endswith((".weight", ".bias")))
    names = (*plain, *(f"{module}.weight" for module in packed))
    return {rename(theirs, renames): theirs for theirs in names if not DERIVED.fullmatch(theirs)}


def rename(name: str, renames: Renames) -> str:
    """Returns the model's name for a stored tensor; the stored name if no pattern matches."""
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def _read_all_stored(folder: Path) -> Iterator[StoredTensor]:
    """Yields the tensors of all files. Raises UserError if a file's tensors are not those that the index names."""
    for file, named in _list_files(folder):
        tensors = read_header(file)
        for stored in tensors:
            if named is not None and stored.name not in named:
                raise UserError(f"{file} has a tensor {stored.name} that {INDEX} does not name; download both again")
        if named is not None and (missing := sorted(named.keys() - {stored.name for stored in tensors})):
            raise UserError(f"{file} lacks the tensor {missing[0]} that {INDEX} names in it; download it again")
        yield from tensors


def _list_files(folder: Path) -> list[tuple[Path, dict[str, str] | None]]:
    """Returns the safetensors files, each with the tensors that the index names in it, None without an index."""
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
            raise UserError(f"{folder / INDEX} names {name!r}; expected a .safetensors file next to it")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, {INDEX} names it; download it again")
        files.append((folder / name, {tensor: place for tensor, place in places.items() if place == name}))
    return files
