"""Tiny random checkpoints as the published families store them, and the stock transformers model of each."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from speaking import make_byte_tokenizer
from tokenizers import AddedToken, processors
from torch import Tensor, nn

VOCAB, CONTEXT, BLOCK, CANVAS = 288, 64, 4, 12
OURS_TO_LLADA = (  # as LLaDA's own modeling file names what Llama names otherwise
    ("model.embed_tokens", "model.transformer.wte"), ("model.norm", "model.transformer.ln_f"),
    ("lm_head", "model.transformer.ff_out"), ("model.layers", "model.transformer.blocks"),
    ("self_attn.o_proj", "attn_out"), ("self_attn.", ""), ("mlp.gate_proj", "ff_proj"), ("mlp.up_proj", "up_proj"),
    ("mlp.down_proj", "ff_out"), ("post_attention_layernorm", "ff_norm"), ("input_layernorm", "attn_norm"),
)  # fmt: skip


LLADA_KEYS = {"vocab_size": "embedding_size", "hidden_size": "d_model", "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "max_sequence_length", "tie_word_embeddings": "weight_tying"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Foreign:
    """How one family's tiny checkpoint is made. stock: transformers' names; own: config.json beyond the shape.

    keys: what config.json has in place of stock names, which then lacks hidden_act; told: whether it tells the
    family, which the user has to name otherwise.
    """

    stock: str
    own: dict[str, Any]
    mask: str
    ends: tuple[str, ...]
    head_dim: int = 8
    tied: bool = False
    names: tuple[tuple[str, str], ...] = ()  # what tensor names have in place of stock ones
    kv_heads: int = 2
    keys: dict[str, str] = field(default_factory=dict)
    told: bool = True


def code(name: str) -> dict[str, Any]:
    return {"auto_map": {"AutoModelForCausalLM": f"modeling.{name}"}, "architectures": [name]}


FOREIGN = {
    "dream": Foreign("Qwen2", {"model_type": "Dream", **code("DreamModel"), "mask_token_id": "<|mask|>",
        "use_mrope": False, "use_sliding_window": False, "sliding_window": None}, "<|mask|>", ("<|endoftext|>",)),
    "llada": Foreign("Llama", {"model_type": "llada", **code("LLaDAModelLM"), "mask_token_id": "<|mdm_mask|>",
        "block_type": "llama", "layer_norm_type": "rms", "alibi": False, "rope": True, "include_bias": False,
        "include_qkv_bias": False, "attention_layer_norm": False, "block_group_size": 1, "clip_qkv": None,
        "activation_type": "silu", "scale_logits": False}, "<|mdm_mask|>", ("<|endoftext|>", "<|eot_id|>"),
        names=OURS_TO_LLADA, kv_heads=4, keys=LLADA_KEYS),
    "fast-dllm-v2": Foreign("Qwen2", {"model_type": "Fast_dLLM_Qwen", **code("Fast_dLLM_QwenForCausalLM"),
        "bd_size": BLOCK}, "|<MASK>|", ("<|im_end|>",), tied=True),
    "sdar": Foreign("Qwen3", {"model_type": "sdar", **code("SDARForCausalLM"), "attention_bias": False},
        "<|MASK|>", ("<|im_end|>", "<|endoftext|>"), head_dim=16),
    "bd3lm-qwen3": Foreign("Qwen3", {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"],
        "attention_bias": False}, "<|mask|>", ("<|im_end|>",), head_dim=16, tied=True),
    "bd3lm-qwen2": Foreign("Qwen2", {"model_type": "a2d-qwen2", "architectures": ["A2DQwen2LMHeadModel"]},
        "<|mask|>", ("<|im_end|>",), tied=True),
    "dream-reasoner": Foreign("Qwen3", {"model_type": "Dream", **code("DreamForCausalLM"), "mask_token_id": "<|MASK|>",
        "block_size": BLOCK, "attention_bias": False}, "<|MASK|>", ("<|im_end|>", "<|endoftext|>")),
    "illada": Foreign("Llama", {"model_type": "illada", **code("ILLaDAForCausalLM"), "layer_norm_eps": None,
        "attention_bias": False, "mlp_bias": False}, "<[MASK]>", ("<[end]>",), tied=True),
    "stable-diffcoder": Foreign("Llama", {"model_type": "llama", **code("StableDiffcoderForCausalLM"),
        "attention_bias": False, "mlp_bias": False}, "<[MASK_TOKEN]>", ("<[end]>",)),
    "efficient-dlm": Foreign("Qwen3", {"model_type": "qwen3", **code("EfficientDLM"), "attention_bias": False,
        "dlm_paradigm": "block_diff"}, "<|fim_pad|>", ("<|endoftext|>",), head_dim=16),
    "open-dcoder": Foreign("Qwen2", {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": False}, "[MASK]", ("<|endoftext|>",), tied=True, told=False),
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 0.25, "original_max_position_embeddings": 64, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}  # fmt: skip
CAUSAL = {  # models that are autoregressive too
    "nemotron": Foreign("Ministral3", {"model_type": "nemotron_labs_diffusion", **code("NemotronLabsDiffusionModel"),
        "mask_token_id": "<SPECIAL_100>", "block_size": BLOCK, "dlm_paradigm": "bidirectional", "sliding_window": None,
        "attention_bias": False, "mlp_bias": False}, "<SPECIAL_100>", ("</s>", "<|im_end|>"), head_dim=16,
        names=(("model.", "encoder."), ("lm_head.", "diffusion_head."))),
    "idlm": Foreign("Qwen3", {"model_type": "sdar", **code("SDARForCausalLM"), "mask_token_id": "<|MASK|>",
        "block_size": BLOCK - 1, "attention_bias": False}, "<|MASK|>", ("<|im_end|>", "<|endoftext|>"), head_dim=16,
        told=False),
}  # fmt: skip
KNOWN = {**FOREIGN, **CAUSAL}


def find_family(name: str) -> str | None:
    """What --family has to be for a directory that `write` made: None if its config.json tells."""
    return None if KNOWN[name].told else name


def make_shape(foreign: Foreign, rope: dict[str, Any]) -> dict[str, Any]:
    """The keys that transformers' own configs have."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": foreign.kv_heads}
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **heads}
    if foreign.stock in ("Qwen3", "Ministral3"):
        sizes["head_dim"] = foreign.head_dim
    rest = {"max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    return {**sizes, **rest, "rope_theta": 5000.0, "rope_scaling": rope or None, "tie_word_embeddings": foreign.tied}


def make_stock_model(foreign: Foreign, seed: int, rope: dict[str, Any] | None = None, sharp: float = 1.0) -> nn.Module:
    """The stock class with random weights, so large that its tokens vary, norms included; `sharp` scales its head."""
    kind = foreign.stock
    shape = make_shape(foreign, rope or {})
    parameters = {"rope_theta": shape.pop("rope_theta"), **(shape.pop("rope_scaling") or {"rope_type": "default"})}
    config = getattr(transformers, f"{kind}Config")(**shape, rope_parameters=parameters, attn_implementation="eager")
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.3 * noise if norm else (0.16 if parameter.dim() > 1 else 0.3) * noise)
        model.get_output_embeddings().weight *= sharp
    return model


def make_config(foreign: Foreign, ids: dict[str, int], rope: dict[str, Any]) -> dict[str, Any]:
    """config.json in the family's own keys; token strings in it mean their ids."""
    shape = make_shape(foreign, rope)
    if foreign.keys:
        shape = {foreign.keys.get(name, name): value for name, value in shape.items() if name != "hidden_act"}
    own = {k: ids[v] if isinstance(v, str) and v in ids else v for k, v in foreign.own.items()}
    end = ids[foreign.ends[0]]
    return {**shape, **own, "eos_token_id": end, "pad_token_id": end, "torch_dtype": "float32"}


def rename_tensors(foreign: Foreign, model: nn.Module) -> dict[str, Tensor]:
    """The weights under the family's names."""
    found = {}
    for name, tensor in model.state_dict().items():
        if foreign.tied and name == "lm_head.weight":
            continue
        for ours, theirs in foreign.names:
            name = name.replace(ours, theirs)
        found[name] = tensor.contiguous().clone()
    return found


def write(
    folder: Path, name: str, seed: int = 0, rope: dict[str, Any] | None = None, template: str = "", sharp: float = 1.0
) -> nn.Module:  # fmt: skip
    """Writes the family's directory and returns the stock model with the same weights."""
    foreign = KNOWN[name]
    folder.mkdir(parents=True, exist_ok=True)
    engine = make_byte_tokenizer()
    specials = ("<|startoftext|>", foreign.mask, *foreign.ends)
    engine.add_special_tokens([AddedToken(text, special=True) for text in specials if engine.token_to_id(text) is None])
    start = ("<|startoftext|>", engine.token_to_id("<|startoftext|>"))
    # Many published tokenizers put a token before a text of their own accord; a prompt is never encoded so.
    engine.post_processor = processors.TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    engine.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>"}
    settings |= {
        "eos_token": foreign.ends[0],
        "pad_token": {"__type": "AddedToken", "content": foreign.ends[0]},
        "mask_token": foreign.mask,
    }
    if template:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(make_config(foreign, engine.get_vocab(), rope or {}), indent=1))
    model = make_stock_model(foreign, seed, rope, sharp)
    save_file(rename_tensors(foreign, model), folder / "model.safetensors", {"format": "pt"})
    return model


def shard(folder: Path) -> None:
    """The single weights file of a directory, as two shards with an index."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for i, name in enumerate(sorted(tensors)):
        places[name] = f"model-{i % 2 + 1:05}-of-00002.safetensors"
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(folder: Path, **changes: Any) -> None:
    """Changes values of config.json; None removes one."""
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


class Stock:
    """A stock model in the shape that `slow_decode` walks through: its one layer is the whole model, mask included.

    vocab: of the tokenizer; the embedding's padding after it has no tokens.
    """

    def __init__(self, model: nn.Module, vocab: int) -> None:
        self.model, self.vocab, self.layers = model, vocab, [self.run]
        self.config = type("Rope", (), {"head_dim": 8, "rope_theta": 1.0})

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return ids

    def run(self, ids: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: None) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits[..., : self.vocab]

    def norm(self, logits: Tensor) -> Tensor:
        return logits

    def logits(self, logits: Tensor) -> Tensor:
        return logits


def write_adapter(
    folder: Path, model: nn.Module, pattern: str, name: str, rank: int, alpha: float, **config: Any
) -> None:
    """Writes a PEFT LoRA adapter over the linear layers that match, and applies it to the stock model as PEFT does."""
    foreign, tensors, targets = KNOWN[name], {}, []
    folder.mkdir()
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    generator = torch.Generator().manual_seed(7)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and re.search(pattern, path):
            a = torch.randn(rank, module.in_features, generator=generator) * 0.3
            b = torch.randn(module.out_features, rank, generator=generator) * 0.3
            stored = path
            for ours, theirs in foreign.names:
                stored = stored.replace(ours, theirs)
            targets.append(stored)
            tensors |= {f"base_model.model.{stored}.lora_A.weight": a, f"base_model.model.{stored}.lora_B.weight": b}

            def added(module: nn.Module, inputs: tuple[Tensor], out: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
                return out + scale * (inputs[0] @ a.T @ b.T)

            module.register_forward_hook(added)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "target_modules": targets, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
