"""Reads and writes `student.pt`, a checkpoint in one file, without running code from it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from runtime.contract import put_first
from runtime.errors import UserError
from train.checkpoint import Checkpoint, Decoding
from train.transformer.network import ModelConfig
from train.transformer.rope import parse_scaling

from . import safe_torch_load
from .file_fields import check_fields
from .output_files import replace_file

FORMAT = 1


def save(checkpoint: Checkpoint, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes the checkpoint with its weights in `dtype`; an existing file is replaced once the new one is complete.

    Raises UserError if `path` cannot be written.
    """
    config = {**asdict(checkpoint.model), **checkpoint.decoding.as_dict()}
    state = {
        "format": FORMAT,
        "config": config,
        "model": {name: tensor.detach().to(dtype).contiguous() for name, tensor in checkpoint.weights.items()},
        "tokenizer": checkpoint.tokenizer,
        "chat_template": checkpoint.chat_template,
    }
    write_state(state, path)


def write_state(state: dict[str, Any], path: Path) -> None:
    """Writes a state with torch.save and one rename. Raises UserError if `path` cannot be written."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # torch's own writer reports a full disk as a RuntimeError
            try:
                torch.save(state, file)
            except RuntimeError as error:  # also for our file, if it then cannot write the archive's end
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    replace_file(path, write)


def set_gate(path: Path, gate: Mapping[str, Any], mode: str | None = None) -> None:
    """Writes another default gate into a student.pt, in one rename; all else stays as stored.

    mode: becomes the model's default mode, if it is given. Raises UserError if `path` is not a student.pt, the model
    lacks that mode, or nothing can be written.
    """
    change: dict[str, Any] = {"gate": dict(gate)}
    if mode is not None and not path.is_dir() and len(modes := put_first(read(path).decoding.modes, mode)) > 1:
        change["modes"] = list(modes)
    _change_config(path, change)


def set_decision_temperature(path: Path, temperature: float) -> None:
    """Writes the temperature of decisions into a student.pt; writes and raises UserError as `set_gate` does."""
    _change_config(path, {"decision_temperature": temperature})


def _change_config(path: Path, change: Mapping[str, Any]) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory, which has no gate of its own; export it and calibrate its --bundle")
    read(path)
    state = safe_torch_load.read(path)
    state["config"].update(change)
    write_state(state, path)


def read(path: Path) -> Checkpoint:
    """Reads a student.pt. Raises UserError for anything else."""
    if not path.is_file():
        raise UserError(
            f"no checkpoint at {path}; give a .pt file that blockstep train wrote, or a Hugging Face directory"
        )
    return _parse(path, safe_torch_load.read(path))


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
            "the version that wrote it, or train it again: blockstep train distill"
        )
    weights, config = state["model"], state["config"]
    if not safe_torch_load.are_plain_tensors(weights, path.stat().st_size):
        raise UserError(f"{path} has no whole tensors by name under model; expected a file that blockstep train wrote")
    if not isinstance(config, dict) or not isinstance(state["tokenizer"], str):
        raise UserError(
            f"{path} has no object under config or no text under tokenizer; write it again with blockstep train"
        )
    if not isinstance(state["chat_template"], str | None):
        raise UserError(f"{path} has no text under chat_template; write it again with blockstep train")
    config = check_fields(
        path, {"rope_scaling": {}, **config}, ModelConfig, Decoding
    )  # older files have no rope_scaling
    shape = ModelConfig(**{field.name: config[field.name] for field in fields(ModelConfig)})
    decoding = Decoding(**{field.name: config[field.name] for field in fields(Decoding)})
    _check_fit(path, shape, decoding)
    shape = replace(shape, rope_scaling=parse_scaling(shape.rope_scaling))
    return Checkpoint(shape, decoding, weights, state["tokenizer"], state["chat_template"])


def _check_fit(path: Path, shape: ModelConfig, decoding: Decoding) -> None:
    """Raises UserError for values that are valid one by one, but not together."""
    ids = {"mask_id": decoding.mask_id, "pad_id": decoding.pad_id, "eos_ids": max(decoding.eos_ids, default=-1)}
    wrong = [f"{name} {token}" for name, token in ids.items() if not 0 <= token < shape.vocab]
    wrong += [f"head_dim {shape.head_dim}"] if shape.head_dim % 2 else []
    wrong += [f"kv_heads {shape.kv_heads}"] if shape.heads % shape.kv_heads else []
    wrong += [f"canvas {decoding.canvas}"] if decoding.canvas % decoding.block else []
    if wrong:
        raise UserError(
            f"{path} has {wrong[0]}, which does not fit the rest of its config; write it again with blockstep train"
        )
