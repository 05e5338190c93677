"""Writes the stand-in checkpoint as a GGUF file for llama.cpp: its Qwen3 architecture, without a tokenizer."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tqdm import tqdm

from train.checkpoint import Checkpoint

NAMES = (
    (r"embed_tokens", "token_embd"), (r"lm_head", "output"), (r"norm", "output_norm"),
    (r"layers\.(\d+)\.input_layernorm", r"blk.\1.attn_norm"),
    (r"layers\.(\d+)\.post_attention_layernorm", r"blk.\1.ffn_norm"),
    (r"layers\.(\d+)\.self_attn\.o_proj", r"blk.\1.attn_output"),
    (r"layers\.(\d+)\.self_attn\.([qk])_norm", r"blk.\1.attn_\2_norm"),
    (r"layers\.(\d+)\.self_attn\.([qkv])_proj", r"blk.\1.attn_\2"),
    (r"layers\.(\d+)\.mlp\.(gate|up|down)_proj", r"blk.\1.ffn_\2"),
)  # fmt: skip


def write(source: Checkpoint, kind: str, path: Path) -> None:
    """Writes the file, matrices as `kind` (F32, Q8_0, Q4_0, ...), norms in fp32; a tied head stays the embedding."""
    writer = gguf.GGUFWriter(path, "qwen3")
    describe(writer, source)
    chosen = Kind[kind]
    for name in source.weights:
        size = source.weights[name].shape
        stored = chosen if len(size) == 2 else Kind.F32
        shape = gguf.quant_shape_to_byte_shape(size, stored) if stored != Kind.F32 else tuple(size)
        dtype = np.dtype(np.float32 if stored == Kind.F32 else np.uint8)
        writer.add_tensor_info(name_tensor(name), shape, dtype, int(np.prod(shape)) * dtype.itemsize, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in tqdm(source.weights, unit="tensor", desc=kind, disable=None):
        weight = source.weights[name].numpy()
        writer.write_tensor_data(gguf.quantize(weight, chosen) if weight.ndim == 2 else weight)
    writer.close()


def describe(writer: gguf.GGUFWriter, source: Checkpoint) -> None:
    """Writes sizes and counts. Raises ValueError unless there are norms of queries and keys and no biases (Qwen3)."""
    shape = source.model
    if not shape.qk_norm or shape.qkv_bias:
        raise ValueError("the architecture qwen3 has norms of queries and keys, and no biases")
    writer.add_context_length(source.decoding.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")


def name_tensor(name: str) -> str:
    """Returns the GGUF name of a tensor."""
    stem, _, kind = name.rpartition(".")
    for pattern, replacement in NAMES:
        if found := re.fullmatch(pattern, stem):
            return f"{found.expand(replacement)}.{kind}"
    raise ValueError(f"{name} has no name in GGUF")
