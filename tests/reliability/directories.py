"""Hugging Face directories with damage in weights, header, configs, tokenizer or template: read, built and asked.

What safetensors reads is held equal to a reader of a few lines: header, offsets, bytes.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import torch
from checkpoints import asked
from corpus import copied
from mutants import of_bytes, of_json, of_text
from section import Section
from tally import tallied
from texts import COMMON, WORDS

from train.huggingface.families import Overrides
from train.huggingface.reader import make_model_config, read_settings
from train.huggingface.weights import read_weights
from train.open_checkpoint import load

FULL = 3000
KINDS = (
    "safetensors: bytes changed", "safetensors: header changed", "config.json changed", "blockstep.json changed",
    "tokenizer_config.json changed", "safetensors: header changed", "index of shards changed", "tokenizer.json changed",
    "chat template changed", "adapter's config changed", "safetensors: numbers changed",
)  # fmt: skip
FILES = {
    "config.json changed": "config.json", "blockstep.json changed": "blockstep.json",
    "tokenizer_config.json changed": "tokenizer_config.json", "tokenizer.json changed": "tokenizer.json",
    "index of shards changed": "model.safetensors.index.json",
    "adapter's config changed": "adapter/adapter_config.json",
}  # fmt: skip


def run(scale: float) -> Section:
    return tallied("Hugging Face directories", "directories", int(FULL * scale))


def kind(number: int) -> str:
    return KINDS[number % len(KINDS)]


def make(number: int, folder: Path) -> Path:
    rng, what = random.Random(f"directory {number}"), kind(number)
    made = copied("directory", folder)
    weights = made / "model.safetensors"
    content = weights.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    if what in FILES:
        if "index" in what:
            shards(made)
        if "adapter" in what:
            adapt(made)
        file = made / FILES[what]
        file.write_bytes(of_json(rng, json.loads(file.read_text())).encode("utf-8", "surrogateescape"))
    elif "template" in what:
        file = made / "chat_template.jinja"
        file.write_bytes(of_text(rng, file.read_text(), WORDS[:COMMON]).encode())
    elif "header" in what:
        header = of_json(rng, json.loads(content[8:end])).encode("utf-8", "surrogateescape")
        weights.write_bytes(struct.pack("<Q", len(header)) + header + content[end:])
    elif "numbers" in what:
        weights.write_bytes(
            content[:end] + of_bytes(rng, content[end:])[: len(content) - end].ljust(len(content) - end)
        )
    else:
        weights.write_bytes(of_bytes(rng, content, front=end))
    return made


def shards(folder: Path) -> None:
    """Splits the weights into two files with an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def adapt(folder: Path) -> None:
    """Puts a LoRA adapter beside them."""
    from safetensors.torch import save_file

    (folder / "adapter").mkdir()
    name, generator = "base_model.model.model.layers.0.self_attn.q_proj", torch.Generator().manual_seed(0)
    parts = {"A": torch.randn(2, 16, generator=generator), "B": torch.randn(16, 2, generator=generator)}
    save_file(
        {f"{name}.lora_{part}.weight": value for part, value in parts.items()},
        folder / "adapter" / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def attempt(number: int, folder: Path) -> str:
    made = make(number, folder)
    if "safetensors" in kind(number):
        held_equal(made)
    adapter = made / "adapter" if (made / "adapter").exists() else None
    return asked(load(made, Overrides(adapter=adapter)))


def held_equal(folder: Path) -> None:
    """What was read of the weights is what the slow reader finds."""
    settings = read_settings(folder, Overrides())
    weights = read_weights(folder, make_model_config(settings), settings.family.renames)
    slow = slowly(folder / "model.safetensors")
    for name, tensor in weights.items():
        theirs = slow[f"model.{name}"]
        assert tensor.dtype == theirs.dtype and tensor.shape == theirs.shape, name
        assert torch.equal(tensor.view(torch.uint8), theirs.view(torch.uint8)), name


def slowly(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by its format's own words: length, JSON, bytes."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
    found = {}
    for name, part in header.items():
        if name != "__metadata__":
            first, last = (8 + length + offset for offset in part["data_offsets"])
            raw = torch.frombuffer(bytearray(content[first:last]), dtype=torch.uint8)
            found[name] = raw.view(kinds[part["dtype"]]).view(part["shape"])
    return found
