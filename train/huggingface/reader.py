"""Reads a published Hugging Face directory as a checkpoint; never runs code from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.bundle.store import hash_file
from runtime.checked_fields import FLAG, FieldRule, whole
from runtime.contract import ALIGNMENTS, ATTENTIONS
from runtime.errors import UserError
from runtime.text.chat_template import add_defaults, reads
from train.checkpoint import MOST_IDS, Checkpoint, Decoding
from train.transformer.network import ABOVE_0, ModelConfig
from train.transformer.rope import LARGEST, find_longest, parse_scaling

from . import blockstep_json, peft_merge
from .blockstep_json import StudentFile
from .families import Family, Overrides, find_family
from .quantization_config import find_scheme
from .tokenizer_files import Text, read_json, read_text
from .weights import read_weights

CONFIG, GENERATION = "config.json", "generation_config.json"
UNSET = -1  # a pad_token_id that means none
CANVAS = 256  # default answer positions of a full model, and default maximum of train.collect
TEXTS = (
    CONFIG, GENERATION, "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json",
    "chat_template.jinja", peft_merge.CONFIG, blockstep_json.FILE,
)  # fmt: skip


def load_directory(folder: Path, overrides: Overrides) -> Checkpoint:
    """Reads the checkpoint in a Hugging Face directory; weights keep their stored dtype until the model is built.

    Raises UserError for anything that is missing, unknown, ambiguous or not supported.
    """
    settings = read_settings(folder, overrides)
    if (folder / peft_merge.CONFIG).is_file() and overrides.adapter is None:
        raise UserError(
            f"{folder} has an adapter next to its weights, which transformers loads too; give --adapter {folder} to "
            f"merge it, or remove {peft_merge.CONFIG}"
        )
    scheme = find_scheme(settings.values, settings.path)
    shape, stored = make_model_config(settings), read_student_file(folder, overrides)
    text = read_text(folder, shape.vocab)
    decoding = _override(stored.decoding if stored else derive_decoding(settings, text, overrides, shape), overrides)
    _check(decoding, settings, shape.vocab)
    weights = read_weights(folder, shape, settings.family.renames, scheme)
    if overrides.adapter is not None:
        _check_adapter(settings.family, overrides.adapter)
        weights = peft_merge.merge(weights, overrides.adapter, settings.family.renames)
    template = text.chat_template
    if template is not None:
        arguments = read_template_args(folder, replace(overrides, template_args=None))
        template = add_defaults(template, {name: v for name, v in arguments.items() if reads(template, name)})
    return Checkpoint(shape, decoding, weights, text.tokenizer, template)


def _check_adapter(family: Family, folder: Path) -> None:
    if folder.resolve().name == family.drafts_adapter:
        raise UserError(
            f"{folder} is an adapter for the drafts of {family.name} alone; merged it would change what is verified: "
            "leave --adapter out"
        )


def read_settings(folder: Path, overrides: Overrides) -> NormalizedConfig:
    """Reads a directory's config.json and finds its family: by --family, else by blockstep.json, else by the config."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"no checkpoint at {folder}: it has no {CONFIG}; give a whole Hugging Face directory, or a .pt file that "
            "blockstep train wrote"
        )
    values, noted = read_json(path), blockstep_json.read(folder)
    name = overrides.family or (noted.family if noted else None)
    return NormalizedConfig(path, values, find_family(values, name, path))


def read_template_args(folder: Path, overrides: Overrides) -> dict[str, Any]:
    """Returns the chat template's arguments: the family's, overridden by blockstep.json's, then by `overrides`."""
    stored = read_student_file(folder, overrides)
    own = read_settings(folder, overrides).family.template_args
    return {**own, **(stored.template_args if stored else {}), **(overrides.template_args or {})}


def read_student_file(folder: Path, overrides: Overrides) -> StudentFile | None:
    """Returns the blockstep.json of the adapter, else of the directory; None if there is none or --family is given."""
    places = [place for place in (overrides.adapter, folder) if place is not None and overrides.family is None]
    noted = [found for place in places if (found := blockstep_json.read(place)) is not None]
    return noted[0] if noted else None


def compute_fingerprint(folder: Path, adapter_folder: Path | None) -> str:
    """Returns a sha256 over the names and hashes of all files read: configs, tokenizer, template, all safetensors."""
    digest = hashlib.sha256()
    for place in (folder, *([adapter_folder] if adapter_folder else [])):
        files = [place / name for name in TEXTS] + sorted(place.glob("*.safetensors*"))
        for file in files:
            if file.is_file():
                digest.update(f"{file.name} {hash_file(file)}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class NormalizedConfig:
    """A config.json whose values are read under Qwen's names, whatever the family's names are."""

    path: Path
    values: dict[str, Any]
    family: Family

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value; the default if it is absent or null."""
        for key in self.family.keys.get(name, (name,)):
            if self.values.get(key) is not None:
                return self.values[key]
        return default

    def read_integer(self, name: str, default: int | None = None, most: int = 1 << 24) -> int:
        """Returns a whole number from 1 to `most`. Raises UserError for anything else."""
        return int(self._check(self._name(name), self.get(name, default), whole(1, most)))

    def read_flag(self, name: str) -> bool:
        """Returns a boolean, False if it is absent. Raises UserError for anything else."""
        return bool(self._check(self._name(name), self.get(name, False), FLAG))

    def read_number(self, name: str, value: Any) -> float:
        """Returns `value`, which config.json has as `name`, as a float. Raises UserError unless it is above 0."""
        return float(self._check(name, value, ABOVE_0))

    def _check(self, name: str, value: Any, expected: FieldRule) -> Any:
        if not expected.holds(value):
            raise UserError(f"{self.path} has {value!r} as {name}; expected {expected.text}")
        return value

    def _name(self, name: str) -> str:
        return self.family.keys.get(name, (name,))[0]


def make_model_config(settings: NormalizedConfig) -> ModelConfig:
    """Returns the model's shape. Raises UserError for a config that `Transformer` cannot represent."""
    _refuse_others(settings)
    family, get = settings.family, settings.get
    heads, width = settings.read_integer("num_attention_heads"), settings.read_integer("hidden_size")
    kv_heads = settings.read_integer("num_key_value_heads", heads)
    head_dim = settings.read_integer("head_dim", family.head_dim or max(1, width // heads))
    if heads % kv_heads or head_dim % 2:
        raise UserError(f"{settings.path} has {heads} heads of {head_dim} over {kv_heads}; expected multiples, even")
    rope = find_rope(settings)
    found = [value for value in (rope.pop("rope_theta", None), settings.values.get("rope_theta")) if value is not None]
    if any(value != found[0] for value in found):
        raise UserError(f"{settings.path} has rope_theta {found[1]!r} and {found[0]!r}; remove the one that is wrong")
    theta = settings.read_number("rope_theta", found[0] if found else None)
    if rope.pop("partial_rotary_factor", 1.0) != 1.0 or get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{settings.path} has partial_rotary_factor, which is not supported")
    return ModelConfig(
        vocab=settings.read_integer("vocab_size"),
        width=width,
        layers=settings.read_integer("num_hidden_layers", most=1024),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=settings.read_integer("intermediate_size"),
        rope_theta=theta,
        norm_eps=settings.read_number("rms_norm_eps", get("rms_norm_eps")),
        qk_norm=family.qk_norm,
        qkv_bias=settings.read_flag("include_qkv_bias") if family.qkv_bias is None else family.qkv_bias,
        tied=settings.read_flag("tie_word_embeddings"),
        rope_scaling=parse_scaling(rope),
    )


def find_rope(settings: NormalizedConfig) -> dict[str, Any]:
    """Returns config.json's object about rotary angles: their scaling, and in transformers 5 their base too.

    Raises UserError if it is not an object, or if there are two that differ.
    """
    found = {name: settings.get(name) for name in ("rope_scaling", "rope_parameters") if settings.get(name)}
    for name, value in found.items():
        if not isinstance(value, dict):
            raise UserError(f"{settings.path} has {value!r} as {name}; expected an object")
    values = list(found.values())
    if any(value != values[0] for value in values):
        raise UserError(f"{settings.path} has a rope_scaling and other rope_parameters; remove the one that is wrong")
    return dict(values[0]) if values else {}


def _refuse_others(settings: NormalizedConfig) -> None:
    """Raises UserError if config.json has a setting that `Transformer` cannot represent."""
    for key, allowed in settings.family.fixed.items():
        if key in settings.values and settings.values[key] not in allowed and settings.values[key] is not None:
            raise UserError(f"{settings.path} has {key} {settings.values[key]!r}; only {allowed[0]!r} is supported")
    for key in ("sliding_window_pattern", "no_rope_layers"):
        if settings.values.get(key):
            raise UserError(f"{settings.path} has {key}, which is not supported; give a plain, dense checkpoint")
    kinds = settings.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise UserError(f"{settings.path} has layer_types other than full_attention, which are not supported")


def derive_decoding(settings: NormalizedConfig, text: Text, overrides: Overrides, shape: ModelConfig) -> Decoding:
    """Returns how a family's model is decoded. Raises UserError if that cannot be known.

    overrides: its block, canvas, mask token and end tokens are used if they are given.
    """
    family, most = settings.family, find_longest(shape.rope_scaling)
    if family.unlike is not None and family.unlike[0] in text.ids:
        token, why = family.unlike
        raise UserError(f"{settings.path.parent} has the token {token}, so that it is {why}; it is not supported")
    context = min(settings.read_integer("max_position_embeddings"), most or LARGEST)
    block = _check_above_0("--block", overrides.block) or choose_block(settings)
    canvas = _check_above_0("--canvas", overrides.canvas) or max(1, min(CANVAS, context - 1) // block) * block
    gate, mask = dict(family.gate), find_mask_id(settings, text, overrides.mask_id, shape.vocab)
    if gate.get("sub_block", block) > block:  # a sub-block larger than the block has no effect
        del gate["sub_block"]
    ends = overrides.eos_ids or find_end_ids(settings, text)
    pad = settings.get("pad_token_id", UNSET)
    if pad == UNSET:
        pad = text.ids.get(text.special.get("pad_token", ""), ends[0])
    how = (family.alignment, family.attention, family.shift)
    return Decoding(*how, block, canvas, context, mask, ends, pad, gate, family.modes)


def choose_block(settings: NormalizedConfig) -> int:
    """Returns the config's block size, else the family's. Raises UserError if the family has no single one."""
    family = settings.family
    if family.block_key is not None and settings.get(family.block_key) is not None:
        return settings.read_integer(family.block_key)
    if family.block is None and family.block_key is None:
        raise UserError(
            f"{settings.path} does not say how many tokens {family.name} confirms at once; give --block (4 in the "
            "published models)"
        )
    if family.block is None:
        raise UserError(f"{settings.path} has no {family.block_key}, and {family.name} comes in several; give --block")
    return family.block


def _override(stored: Decoding, overrides: Overrides) -> Decoding:
    """Returns the decoding settings with the command line's changes."""
    names = ("block", "canvas", "alignment", "attention", "mask_id", "eos_ids", "shift")
    given = {name: value for name in names if (value := getattr(overrides, name)) is not None}
    return replace(stored, **given, gate={**stored.gate, **(overrides.gate or {})})


def _check(decoding: Decoding, settings: NormalizedConfig, vocab: int) -> None:
    """Raises UserError for values that do not fit each other or the model."""
    block, canvas, context, mask = decoding.block, decoding.canvas, decoding.context, decoding.mask_id
    if block < 1 or canvas < 1 or canvas % block or canvas >= context:
        raise UserError(
            f"canvas {canvas} with blocks of {block} and a context of {context}; expected whole blocks and room for a "
            "prompt: give --canvas and --block"
        )
    attention, alignment = decoding.attention, decoding.alignment
    if attention not in ATTENTIONS or alignment not in ALIGNMENTS:
        raise UserError(f"attention {attention}, alignment {alignment}; expected one of {ATTENTIONS} and {ALIGNMENTS}")
    if not 0 <= mask < vocab:
        raise UserError(f"the mask token's id is {mask}; expected one below the vocabulary of {vocab}, give --mask-id")
    for name, token in (("pad_token_id", decoding.pad_id), *(("eos_token_id", end) for end in decoding.eos_ids)):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab or token == mask:
            advice = "give --eos-ids" if name == "eos_token_id" else "remove it there, and the end token pads"
            raise UserError(
                f"{settings.path} has {token!r} as {name}; expected an id below {vocab}, not the mask {mask}: {advice}"
            )


def find_mask_id(settings: NormalizedConfig, text: Text, given: int | None, vocab: int) -> int:
    """Returns the mask token's id: `given`, else by config, tokenizer or family. Raises UserError if none is valid."""
    family = settings.family
    token = text.special.get("mask_token", family.mask)
    found = given if given is not None else settings.get("mask_token_id", text.ids.get(token))
    if found is None:
        raise UserError(
            f"{settings.path.parent} has a tokenizer without the mask token {token!r} and a config.json without "
            "mask_token_id; give --mask-id"
        )
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < vocab:
        raise UserError(
            f"the mask token's id is {found!r}; expected one below the vocabulary of {vocab}, give --mask-id"
        )
    if given is None and found not in text.ids.values():
        raise UserError(
            f"{settings.path} has mask_token_id {found}, but its tokenizer is without the mask token; give "
            "--mask-id if that is meant"
        )
    if given is None and "mask_token" in text.special and text.ids.get(token, found) != found:
        raise UserError(
            f"{settings.path} has mask_token_id {found}, but its tokenizer's mask_token {token!r} is "
            f"{text.ids[token]}; give --mask-id"
        )
    return found


def find_end_ids(settings: NormalizedConfig, text: Text) -> tuple[int, ...]:
    """Returns the end tokens' ids: the family's and the tokenizer's, else the configs'.

    Raises UserError if there are none, or more than MOST_IDS.
    """
    tokens = (*settings.family.ends, text.special.get("eos_token", ""))
    named = [text.ids[token] for token in tokens if token in text.ids]
    if not named:
        generation = settings.path.with_name(GENERATION)
        written = [settings.values, read_json(generation) if generation.is_file() else {}]
        for value in (values.get("eos_token_id") for values in written):
            named += value if isinstance(value, list) else [value] if value is not None else []
    if not named or len(named) > MOST_IDS:
        what = f"more than {MOST_IDS} end tokens" if named else "no end token"
        raise UserError(f"{settings.path.parent} names {what}; add eos_token_id to config.json")
    return tuple(token for i, token in enumerate(named) if token not in named[:i])


def _check_above_0(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise UserError(f"{option} is {value}; expected at least 1")
    return value
