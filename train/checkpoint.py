"""Checkpoints on disk, read without running code from them: `student.pt`, and directories by way of `published`."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from runtime.bundle import sha256
from runtime.chat_template import with_arguments
from runtime.contract import LARGEST, MOST
from runtime.errors import UserError
from runtime.text import read_engine

from . import archive
from .families import Overrides
from .model import Model, ModelConfig
from .output_files import replace_file
from .rope import parse_scaling

FORMAT = 1
LARGEST_FLOAT = 1e12  # of a base of rotary angles, the largest number there is
MOST_IDS = 64  # end tokens
KINDS: dict[str, type | tuple[type, ...]] = {
    "int": int, "float": (int, float), "bool": bool, "str": str,
    "tuple[int, ...]": (list, tuple), "dict[str, Any]": dict,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decoding:
    """What the runtime has to know of a model beyond its weights; see `runtime.contract` for the meaning of each."""

    alignment: str
    attention: str
    shift: bool
    block: int
    canvas: int
    context: int
    mask_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    gate: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be decoded: its shape, how it decodes, its weights by name, its tokenizer as JSON text.

    weights: of a directory, each is read when it is asked for, so take one at a time where the model may be large.
    """

    model: ModelConfig
    decoding: Decoding
    weights: Mapping[str, Tensor]
    tokenizer: str
    chat_template: str | None = None

    def build(self) -> Model:
        """The model in fp32, in evaluation mode. Raises UserError where weights and shape do not fit."""
        with torch.device("meta"):
            model = Model(self.model)
        # Always copies: what trains the model must not change the checkpoint.
        weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in self.weights.items()}
        try:
            model.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the checkpoint's weights do not fit its config: {reason}") from None
        return model.eval()

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer; special-token strings inside a text are text to it. Raises UserError where it is none."""
        tokenizer = read_engine(self.tokenizer, "the checkpoint's tokenizer is damaged", "write it anew with train.*")
        tokenizer.encode_special_tokens = True
        return tokenizer

    def vocab(self) -> int:
        """How many ids count: embeddings are often padded, and an id behind the tokenizer's last is no token."""
        return min(self.model.vocab, max(self._ids()) + 1)

    def missing_ids(self) -> list[int]:
        """Ids below `vocab()` that are no token either, in order: some tokenizers leave gaps."""
        return sorted(set(range(self.vocab())) - self._ids())

    def _ids(self) -> set[int]:
        """The tokenizer's ids, and those that decoding needs."""
        special = {self.decoding.mask_id, self.decoding.pad_id, *self.decoding.eos_ids}
        return special | set(self.read_tokenizer().get_vocab(with_added_tokens=True).values())


def save(checkpoint: Checkpoint, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes the checkpoint with its weights in `dtype`; an older file stays whole until the new one is.

    Raises UserError where `path` cannot be written.
    """
    config = {**asdict(checkpoint.model), **asdict(checkpoint.decoding)}
    config["eos_ids"] = list(checkpoint.decoding.eos_ids)
    state = {
        "format": FORMAT,
        "config": config,
        "model": {name: tensor.detach().to(dtype).contiguous() for name, tensor in checkpoint.weights.items()},
        "tokenizer": checkpoint.tokenizer,
        "chat_template": checkpoint.chat_template,
    }
    write_state(state, path)


def write_state(state: dict[str, Any], path: Path) -> None:
    """torch.save in one rename. Raises UserError where `path` cannot be written."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # torch's own writer tells a full disk as a RuntimeError
            try:
                torch.save(state, file)
            except RuntimeError as error:  # so it does of a file of ours too, when it then cannot write its end
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    replace_file(path, write)


def set_gate(path: Path, gate: Mapping[str, Any]) -> None:
    """Writes another default gate into a student.pt; the rest stays as it is stored, and the file whole throughout.

    Raises UserError where `path` is no such file or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory, which has no gate of its own; export it and calibrate its --bundle")
    load(path)
    state = archive.read(path)
    state["config"]["gate"] = dict(gate)
    write_state(state, path)


def load(path: Path, overrides: Overrides | None = None) -> Checkpoint:
    """Reads a checkpoint: a file of train.*, or a Hugging Face directory, of which `overrides` may know better.

    Raises UserError, in one line, for anything that is not one.
    """
    if path.is_dir():
        from .published import load_directory  # which needs this module's classes

        return _with_template_args(load_directory(path, overrides or Overrides()), overrides)
    if not path.is_file():
        raise UserError(
            f"no checkpoint at {path}; give a .pt file that train.distill or train.teacher wrote, or a Hugging Face "
            "directory"
        )
    _refuse(overrides, path)
    return _with_template_args(_parse(path, archive.read(path)), overrides)


def _with_template_args(saved: Checkpoint, overrides: Overrides | None) -> Checkpoint:
    """With the arguments that were given as the chat template's defaults."""
    if overrides is None or not overrides.template_args:
        return saved
    return replace(saved, chat_template=with_arguments(saved.chat_template, overrides.template_args))


def _refuse(overrides: Overrides | None, path: Path) -> None:
    """Raises UserError where something was given that a student.pt says itself."""
    names = (name for name in Overrides.__slots__ if name != "template_args")
    if given := [name for name in names if getattr(overrides, name, None) is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{option} was given with {path}, which says that itself; it is for a Hugging Face directory")


def _parse(path: Path, state: Any) -> Checkpoint:
    needed = {"format", "config", "model", "tokenizer", "chat_template"}
    if not isinstance(state, dict) or not needed <= state.keys():
        got = ", ".join(map(reprlib.repr, list(state)[:5])) if isinstance(state, dict) else type(state).__name__
        raise UserError(
            f"{path} is not a blockstep checkpoint: got {got}; expected the keys {', '.join(sorted(needed))}"
        )
    if state["format"] != FORMAT:
        raise UserError(
            f"{path} has format {reprlib.repr(state['format'])}; this version reads formats up to {FORMAT}; install "
            "the version that wrote it, or train it again: python -m train.distill"
        )
    weights, config = state["model"], state["config"]
    if not archive.plain_tensors(weights, path.stat().st_size):
        raise UserError(f"{path} has no whole tensors by name under model; expected a file written by train.*")
    if not isinstance(config, dict) or not isinstance(state["tokenizer"], str):
        raise UserError(f"{path} has no object under config or no text under tokenizer; write it anew with train.*")
    if not isinstance(state["chat_template"], str | None):
        raise UserError(f"{path} has no text under chat_template; write it anew with train.*")
    config = checked(path, {"rope_scaling": {}, **config}, ModelConfig, Decoding)  # older files have no rope_scaling
    shape = ModelConfig(**{field.name: config[field.name] for field in fields(ModelConfig)})
    decoding = Decoding(**{field.name: config[field.name] for field in fields(Decoding)})
    _check_fit(path, shape, decoding)
    shape = replace(shape, rope_scaling=parse_scaling(shape.rope_scaling))
    return Checkpoint(shape, decoding, weights, state["tokenizer"], state["chat_template"])


def _check_fit(path: Path, shape: ModelConfig, decoding: Decoding) -> None:
    """Raises UserError for values that are possible each and impossible together."""
    ids = {"mask_id": decoding.mask_id, "pad_id": decoding.pad_id, "eos_ids": max(decoding.eos_ids, default=-1)}
    wrong = [f"{name} {token}" for name, token in ids.items() if not 0 <= token < shape.vocab]
    wrong += [f"head_dim {shape.head_dim}"] if shape.head_dim % 2 else []
    wrong += [f"kv_heads {shape.kv_heads}"] if shape.heads % shape.kv_heads else []
    wrong += [f"canvas {decoding.canvas}"] if decoding.canvas % decoding.block else []
    if wrong:
        raise UserError(f"{path} has {wrong[0]}, which does not fit the rest of its config; write it anew with train.*")


def checked(path: Path, config: dict[str, Any], *kinds: Any) -> dict[str, Any]:
    """The values of `config`, exactly the fields of these dataclasses. Raises UserError naming the first wrong one."""
    wanted = {field.name: str(field.type) for kind in kinds for field in fields(kind)}
    unknown, missing = sorted(config.keys() - wanted.keys()), sorted(wanted.keys() - config.keys())
    if unknown or missing:
        wrong = f"unknown config keys {', '.join(unknown)}" if unknown else f"no config keys {', '.join(missing)}"
        raise UserError(f"{path} has {wrong}; it was written by another version, write it anew with train.*")
    for name, kind in wanted.items():
        if not possible(name, kind, value := config[name]):
            got = reprlib.repr(value)
            raise UserError(f"{path} has {got} as {name}; expected {asked(name, kind)}; write it anew with train.*")
    return {**config, "eos_ids": tuple(config["eos_ids"])}


def possible(name: str, kind: str, value: Any) -> bool:
    """Whether a field of that name and kind can have this value."""
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
        return False
    if kind == "tuple[int, ...]":
        return 0 < len(value) <= MOST_IDS and all(possible("_id", "int", token) for token in value)
    if kind == "int":
        return (0 if name.endswith("_id") else 1) <= value <= MOST.get(name, LARGEST)
    return kind != "float" or 0 < value <= LARGEST_FLOAT


def asked(name: str, kind: str) -> str:
    """What `possible` wants, in words."""
    if kind == "int":
        return f"a whole number from {0 if name.endswith('_id') else 1} to {MOST.get(name, LARGEST)}"
    return {"float": "a number above 0", "tuple[int, ...]": f"1 to {MOST_IDS} token ids"}.get(kind, kind)


def fingerprint(path: Path, overrides: Overrides | None = None) -> str:
    """What tells a checkpoint from another: a file's sha256, or one over all that is read of a directory."""
    if path.is_dir():
        from .published import fingerprint as of_directory

        return of_directory(path, overrides.adapter if overrides else None)
    return sha256(path)
