"""Lists the published block-diffusion families: how configs are recognized, weights named, answers decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.errors import UserError

LLAMA_NAMES = ((r"(?:model\.)?(.+)", r"\1"),)
LLADA_NAMES = (
    (r"(?:model\.)?transformer\.wte\.(.+)", r"embed_tokens.\1"),
    (r"(?:model\.)?transformer\.ln_f\.(.+)", r"norm.\1"),
    (r"(?:model\.)?transformer\.ff_out\.(.+)", r"lm_head.\1"),
    (r"(?:model\.)?transformer\.blocks\.(\d+)\.([qkv]_proj)\.(.+)", r"layers.\1.self_attn.\2.\3"),
    (r"(?:model\.)?transformer\.blocks\.(\d+)\.attn_out\.(.+)", r"layers.\1.self_attn.o_proj.\2"),
    (r"(?:model\.)?transformer\.blocks\.(\d+)\.ff_proj\.(.+)", r"layers.\1.mlp.gate_proj.\2"),
    (r"(?:model\.)?transformer\.blocks\.(\d+)\.up_proj\.(.+)", r"layers.\1.mlp.up_proj.\2"),
    (r"(?:model\.)?transformer\.blocks\.(\d+)\.ff_out\.(.+)", r"layers.\1.mlp.down_proj.\2"),
    (r"(?:model\.)?transformer\.blocks\.(\d+)\.attn_norm\.(.+)", r"layers.\1.input_layernorm.\2"),
    (r"(?:model\.)?transformer\.blocks\.(\d+)\.ff_norm\.(.+)", r"layers.\1.post_attention_layernorm.\2"),
)
LLADA_KEYS = {
    "vocab_size": ("embedding_size", "vocab_size"), "hidden_size": ("d_model",), "num_hidden_layers": ("n_layers",),
    "num_attention_heads": ("n_heads",), "num_key_value_heads": ("n_kv_heads",),
    "intermediate_size": ("mlp_hidden_size",), "tie_word_embeddings": ("weight_tying",),
    "max_position_embeddings": ("max_sequence_length",),
}  # fmt: skip
LLADA_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",), "block_type": ("llama",), "layer_norm_type": ("rms",), "rope": (True,),
    "alibi": (False,), "attention_layer_norm": (False,), "block_group_size": (1,), "bias_for_layer_norm": (False,),
    "clip_qkv": (None,), "include_bias": (False,), "input_emb_norm": (False,), "scale_logits": (False,),
}  # fmt: skip
QWEN_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "use_sliding_window": (False,), "use_mrope": (False,), "mlp_bias": (False,)
}  # fmt: skip
QWEN3_FIXED: dict[str, tuple[Any, ...]] = {**QWEN_FIXED, "attention_bias": (False,)}
LLAMA_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "layer_norm_eps": (None,),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """What one family's config.json does not have, or has under its own names.

    Attributes:
        model_types, classes: values of `model_type`, and class names, by which a config.json is recognized. Classes are
            tried first, as some configs have another model's model_type. Both are empty if only --family can tell.
        gate, modes: as the authors decode; see `runtime.contract`.
        mask, ends: token strings, looked up in the tokenizer, whose own end token is added.
        block_key, block: the config's name for the block size, and its default, which is None if models of the family
            differ and only the user can tell.
        qkv_bias: None if the config's `include_qkv_bias` gives it.
        renames: (pattern, replacement) for tensor names; the first pattern that matches a whole name is used.
        keys: the config's names for Qwen's keys.
        fixed: the values that are supported for a key of the config, if the key is present.
        template_args: what the authors pass to the chat template, if it reads them.
        drafts_adapter: folder next to the weights, with an adapter for drafts alone.
        unlike: a token, and a model that has this config but is decoded differently; its tokenizer has the token.
    """

    name: str
    model_types: tuple[str, ...]
    gate: dict[str, Any]
    mask: str
    ends: tuple[str, ...]
    shift: bool
    alignment: str
    attention: str
    block: int | None = 32
    block_key: str | None = None
    qkv_bias: bool | None = False
    qk_norm: bool = False
    head_dim: int | None = None
    renames: tuple[tuple[str, str], ...] = LLAMA_NAMES
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    template_args: dict[str, Any] = field(default_factory=dict)
    modes: tuple[str, ...] = ("block",)
    drafts_adapter: str | None = None
    classes: tuple[str, ...] = ()
    unlike: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """Options that replace values of a Hugging Face directory; None keeps the directory's value.

    gate: the fields of the gate to replace. adapter: a PEFT LoRA folder, merged into the weights. template_args:
    arguments of the chat template, also of a student.pt's.
    """

    family: str | None = None
    block: int | None = None
    alignment: str | None = None
    attention: str | None = None
    mask_id: int | None = None
    eos_ids: tuple[int, ...] | None = None
    gate: dict[str, int | float | str] | None = None
    shift: bool | None = None
    canvas: int | None = None
    adapter: Path | None = None
    template_args: dict[str, Any] | None = None


CONFIDENT = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.9}
CERTAIN = {"rule": "threshold", "metric": "entropy", "comparator": "<=", "threshold": 0.5}
ONE_A_STEP = {"rule": "count", "min": 1}

DREAM = Family(
    "dream", ("Dream",), CONFIDENT, "<|mask|>", ("<|endoftext|>", "<|dlm_pad|>"), shift=True, alignment="prompt",
    attention="full", qkv_bias=True, fixed=QWEN_FIXED,
    unlike=("<|expand|>", "DreamOn, which lengthens and shortens its canvas by such tokens while it is decoded"),
)  # fmt: skip
DREAM_REASONER = Family(
    "dream-reasoner", (), {**CONFIDENT, "comparator": ">"}, "<|MASK|>", ("<|im_end|>", "<|endoftext|>"), shift=False,
    alignment="absolute", attention="block_causal", block_key="block_size", qk_norm=True, fixed=QWEN3_FIXED,
    classes=("DreamForCausalLM",),
)  # fmt: skip
LLADA = Family(
    "llada", ("llada",), CONFIDENT, "<|mdm_mask|>", ("<|endoftext|>", "<|eot_id|>"), shift=False, alignment="prompt",
    attention="full", qkv_bias=None, renames=LLADA_NAMES, keys=LLADA_KEYS, fixed=LLADA_FIXED,
)  # fmt: skip
ILLADA = Family(
    "illada", ("illada",), CONFIDENT, "<[MASK]>", (), shift=False, alignment="prompt", attention="full",
    fixed=LLAMA_FIXED,
)  # fmt: skip
STABLE_DIFFCODER = Family(
    "stable-diffcoder", (), {**CONFIDENT, "threshold": 0.95}, "<[MASK_TOKEN]>", (), shift=False, alignment="absolute",
    attention="block_causal", block=4, fixed=LLAMA_FIXED, classes=("StableDiffcoderForCausalLM",),
)  # fmt: skip
EFFICIENT_DLM = Family(
    "efficient-dlm", (), CONFIDENT, "<|fim_pad|>", (), shift=False, alignment="prompt", attention="block_causal",
    qk_norm=True, head_dim=128, fixed={**QWEN3_FIXED, "dlm_type": ("llada",)}, classes=("EfficientDLM",),
    renames=((r"(?:model|encoder)\.(.+)", r"\1"), (r"(?:lm|diffusion)_head\.(.+)", r"lm_head.\1")),
)  # fmt: skip
OPEN_DCODER = Family(
    "open-dcoder", (), CONFIDENT, "[MASK]", (), shift=True, alignment="prompt", attention="full", qkv_bias=True,
    fixed=QWEN_FIXED,
)  # fmt: skip
FAST_DLLM = Family(
    "fast-dllm-v2", ("Fast_dLLM_Qwen",), {**CONFIDENT, "comparator": ">", "sub_block": 8}, "|<MASK>|", ("<|im_end|>",),
    shift=True, alignment="absolute", attention="block_causal", block_key="bd_size", qkv_bias=True, fixed=QWEN_FIXED,
)  # fmt: skip
SDAR = Family(
    "sdar", ("sdar",), {**CONFIDENT, "comparator": ">", "threshold": 0.85}, "<|MASK|>",
    ("<|im_end|>", "<|endoftext|>"), shift=False, alignment="absolute", attention="block_causal", block=None,
    block_key="block_size", qk_norm=True, head_dim=128, fixed=QWEN3_FIXED,
)  # fmt: skip
BD3LM_QWEN3 = Family(
    "bd3lm-qwen3", ("a2d-qwen3",), ONE_A_STEP, "<|mask|>", (), shift=False, alignment="end", attention="block_causal",
    qk_norm=True, head_dim=128, fixed=QWEN3_FIXED,
    template_args={"enable_thinking": False},  # as in dllm's samplers and evaluations
)  # fmt: skip
BD3LM_QWEN2 = replace(
    BD3LM_QWEN3, name="bd3lm-qwen2", model_types=("a2d-qwen2",), qk_norm=False, head_dim=None, qkv_bias=True,
    fixed=QWEN_FIXED,
)  # fmt: skip
NEMOTRON = Family(
    "nemotron", ("nemotron_labs_diffusion",), CONFIDENT, "<SPECIAL_100>", ("</s>", "<|im_end|>"), shift=False,
    alignment="prompt", attention="causal_context", block_key="block_size", head_dim=128,
    renames=((r"encoder\.(.+)", r"\1"), (r"diffusion_head\.(.+)", r"lm_head.\1")),
    fixed={
        "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "sliding_window": (None,),
        "dlm_type": ("llada",),
    },
    modes=("block", "speculative", "causal"), drafts_adapter="linear_spec_lora",
)  # fmt: skip
IDLM = Family(
    "idlm", (), ONE_A_STEP, "<|MASK|>", ("<|im_end|>", "<|endoftext|>"), shift=True, alignment="absolute",
    attention="causal", block=None, qk_norm=True, head_dim=128, fixed=QWEN3_FIXED,
    modes=("speculative", "causal"),
)  # fmt: skip
FAMILIES = (
    DREAM, LLADA, FAST_DLLM, SDAR, BD3LM_QWEN3, BD3LM_QWEN2, NEMOTRON, IDLM, DREAM_REASONER, ILLADA, STABLE_DIFFCODER,
    EFFICIENT_DLM, OPEN_DCODER,
    # These have the configs of their base models, so only --family can tell them apart.
    replace(DREAM, name="cdlm-dream", model_types=(), attention="block_causal"),
    replace(LLADA, name="cdlm-llada", model_types=(), attention="block_causal"),
    replace(DREAM, name="dparallel-dream", model_types=(), gate=CERTAIN),
    replace(LLADA, name="dparallel-llada", model_types=(), gate=CERTAIN),
    replace(LLADA, name="cd4lm-llada", model_types=(), gate={**CONFIDENT, "threshold": 0.95}),
)  # fmt: skip
FAMILY_NAMES = tuple(family.name for family in FAMILIES)
# Stock models in whose form a student is written that started from a .pt file; its blockstep.json alone records that
# it is a diffusion model.
PLAIN_FAMILIES = (
    replace(BD3LM_QWEN3, name="qwen3", model_types=(), template_args={}),
    replace(BD3LM_QWEN2, name="qwen2", model_types=(), template_args={}),
    replace(BD3LM_QWEN2, name="llama", model_types=(), template_args={}, qkv_bias=False),
)
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_intermediate_size")
REFUSED = (  # pattern of model types and classes, family, why it cannot be decoded here
    (r"diffusion_?gemma", "DiffusionGemma", "each of its steps is conditioned on the last one's predictions"),
    (
        r"lfm2", "LFM2 (LFM2.5-Diffusion is one)",
        "some of its layers are convolutions, and LFM2.5-Diffusion starts from random tokens instead of masks",
    ),
)  # fmt: skip


def find_family(config: dict[str, Any], name: str | None, path: Path) -> Family:
    """Returns the family called `name`, which may be one of PLAIN_FAMILIES, or if that is None the config.json's.

    Raises UserError if there is none, or if the model is not supported: mixtures of experts, vision models, REFUSED.
    """
    kind, classes = config.get("model_type"), _list_classes(config)
    _refuse_by_name(config, kind, classes, path)
    if name is not None:
        if found := [family for family in (*FAMILIES, *PLAIN_FAMILIES) if family.name == name]:
            return found[0]
        raise UserError(f"the family of {path.parent} is {name}; expected one of {', '.join(FAMILY_NAMES)}")
    if found := [family for family in FAMILIES if set(classes) & set(family.classes)]:
        return found[0]
    if found := [family for family in FAMILIES if kind in family.model_types]:
        _check_not_idlm(found[0], config, path)
        return found[0]
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    code = ", which code of its own defines (auto_map), and no such code is run" if config.get("auto_map") else ""
    raise UserError(
        f"{path} has model_type {kind!r}{code}; expected one of {known}, or name its "
        f"--family: {', '.join(FAMILY_NAMES)}"
    )


def _list_classes(config: dict[str, Any]) -> list[str]:
    """Returns the class names in a config.json: those of `architectures`, and of `auto_map` without their module."""
    listed, mapped = config.get("architectures"), config.get("auto_map")
    names = [*(listed if isinstance(listed, list) else []), *(mapped.values() if isinstance(mapped, dict) else [])]
    return [str(name).rpartition(".")[2] for name in names]


def _refuse_by_name(config: dict[str, Any], kind: Any, classes: list[str], path: Path) -> None:
    """Raises UserError for models that are not supported, even if their config looks like a family's."""
    words = [str(kind), *classes]
    for pattern, family, why in REFUSED:
        if any(re.search(pattern, word, re.IGNORECASE) for word in words):
            raise UserError(f"{path} is {family}, which is not supported: {why}; give a model of another family")
    if any(config.get(key) for key in EXPERTS) or any("moe" in word.lower() for word in words):
        raise UserError(
            f"{path} is a mixture of experts ({kind}), which is not supported: a step over a whole block reads most of "
            "the experts; give a dense model"
        )
    if config.get("vision_config") or any(re.search(r"_vlm?$|VLM?(?=Model|For)", word) for word in words):
        raise UserError(
            f"{path} is a vision model ({kind}), which is not supported: only text can be given here; give a model of "
            "text alone"
        )


def _check_not_idlm(family: Family, config: dict[str, Any], path: Path) -> None:
    """Raises UserError if a config that is recognized as SDAR's may be I-DLM's, which has the same `model_type`.

    SDAR's block sizes are powers of two, at least 4. I-DLM's `block_size` is N - 1 or 2 N - 1: 3 or 7 as published.
    """
    size = config.get("block_size")
    odd = isinstance(size, int) and (size < 4 or size & (size - 1) != 0)
    if family is SDAR and (odd or re.search(r"i-?dlm", path.parent.name, re.IGNORECASE)):
        raise UserError(
            f"{path} has model_type sdar and block_size {size!r}, which may be SDAR or I-DLM; name its --family, sdar "
            "or idlm, and its --block"
        )
