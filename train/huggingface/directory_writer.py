"""Writes students as Hugging Face directories, with their teacher's tensor names; one rename puts each in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from runtime import files
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.storage.output_files import stage_file
from train.storage.swap import swap

from . import blockstep_json
from .families import PLAIN_FAMILIES, Overrides
from .quantization_config import KEY as QUANTIZATION
from .reader import CONFIG, GENERATION, read_settings, read_template_args
from .weights import INDEX, SINGLE, map_stored_names

SHARD = 5 * 10**9  # maximum bytes of a weights file
COPIED = (
    GENERATION, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "vocab.txt", "chat_template.jinja", "chat_template.json", "LICENSE*",
    "*.py",  # its config.json may name them; other programs may run them, blockstep does not
)  # fmt: skip
CLASSES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


def write_directory(
    folder: Path, student: Checkpoint, teacher: Path, overrides: Overrides, dtype: torch.dtype, shard: int = SHARD
) -> None:
    """Writes a student into an empty folder: weights in `dtype` under its teacher's names, configs and tokenizer.

    teacher: the directory that the student started from, read with `overrides`. If it is a .pt file, the student gets
    the names, config and class of the stock model of its shape; raises UserError if there is none. shard: maximum
    bytes of a weights file.
    """
    if teacher.is_dir():
        settings = read_settings(teacher, overrides)
        family, config = settings.family.name, {**settings.values}
        config.pop(QUANTIZATION, None)  # a student's weights are not quantized
        arguments = read_template_args(teacher, overrides)
        names = map_stored_names(teacher, settings.family.renames)
        for file in sorted({file for pattern in COPIED for file in teacher.glob(pattern) if file.is_file()}):
            shutil.copyfile(file, folder / file.name)
    else:
        family, arguments = choose_plain_family(student), {}  # a student.pt has its arguments in its chat template
        config = make_plain_config(student, family)
        names = {name: name if name.startswith("lm_head.") else f"model.{name}" for name in student.weights}
        write_text(folder, student)
    for key in [key for key in ("torch_dtype", "dtype") if key in config] or ["torch_dtype"]:
        config[key] = str(dtype).removeprefix("torch.")
    _write_json(folder / CONFIG, config)
    write_weights(folder, {names[name]: tensor for name, tensor in student.weights.items()}, dtype, shard)
    blockstep_json.write(folder, family, student.decoding, arguments)


def choose_plain_family(student: Checkpoint) -> str:
    """Returns the name of the stock family with this model's shape. Raises UserError if there is none."""
    shape = student.model
    for family in PLAIN_FAMILIES:
        if (family.qk_norm, family.qkv_bias) == (shape.qk_norm, shape.qkv_bias):
            return family.name
    raise UserError(
        "the model has both norms and biases on its queries and keys, which no family has whose directory could be "
        "written; give --out a path that ends in .pt"
    )


def make_plain_config(student: Checkpoint, family: str) -> dict[str, Any]:
    """Returns the config.json of a stock transformers model of the student's shape."""
    shape, decoding = student.model, student.decoding
    return {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": decoding.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling or None,
        "tie_word_embeddings": shape.tied,
        "eos_token_id": list(decoding.eos_ids),
        "pad_token_id": decoding.pad_id,
    }


def write_text(folder: Path, student: Checkpoint) -> None:
    """Writes tokenizer and chat template of a student.pt, as transformers reads them."""
    decoding, tokenizer = student.decoding, student.read_tokenizer()
    special = {"eos_token": decoding.eos_ids[0], "pad_token": decoding.pad_id, "mask_token": decoding.mask_id}
    named = {name: token for name, i in special.items() if (token := tokenizer.id_to_token(i)) is not None}
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})
    (folder / "tokenizer.json").write_text(student.tokenizer, encoding="utf-8")
    if student.chat_template is not None:
        (folder / "chat_template.jinja").write_text(student.chat_template, encoding="utf-8")


def write_weights(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, limit: int) -> None:
    """Writes safetensors files of at most `limit` bytes, or one tensor, each; with an index if there are several."""
    parts: list[list[str]] = [[]]
    size = total = 0
    for name, tensor in tensors.items():
        needed = tensor.numel() * dtype.itemsize
        if parts[-1] and size + needed > limit:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size, total = size + needed, total + needed
    places: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = SINGLE if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        stored = {name: tensors[name].detach().to(dtype).contiguous() for name in part}
        save_file(stored, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    if len(parts) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def check_directory_place(out: Path) -> None:
    """Raises UserError if there is anything at `out` except a directory that train.distill wrote."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; give --out the path of a directory, or one that ends in .pt")
    there, ours = sorted(os.listdir(out)), blockstep_json.read(out)
    if other := [name for name in there if ours is None or name not in ours.files]:
        raise UserError(
            f"{out} has files that blockstep train distill did not write ({other[0]}); give --out another path"
        )


def replace_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Fills a new folder next to `out`, then renames it to `out`; an existing directory stays unchanged until then.

    Raises UserError if other files have appeared at `out`, or it cannot be written.
    """
    out = files.resolve_path(out)  # for a link, the folder that it points to is replaced
    with stage_file(out) as new:
        new.mkdir()
        write(new)
        files.flush_tree(new)
        check_directory_place(out)
        if not out.exists():
            os.rename(new, out)
        elif not swap(new, out):
            _move(new, out)
        files.flush(out.parent)


def _move(new: Path, out: Path) -> None:
    """Replaces `out` by `new` in two renames; if the process is killed between them, `out` is left as .NAME.old."""
    old = out.with_name(f".{out.name}.old")
    os.rename(out, old)
    try:
        os.rename(new, out)
    except BaseException:
        os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
