"""Makes a checkpoint of any shape, with random weights: a step costs the same with any weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from runtime.perf.op_counts import ModelShape
from train.checkpoint import Checkpoint, Decoding
from train.transformer.network import ModelConfig, Transformer

CONTEXT = 8192  # positions; only the rotary tables depend on it
BLOCK = 32


class RandomWeights(Mapping[str, Tensor]):
    """Maps names to random tensors, made at each read, always the same, and not kept; norms have weights of one."""

    def __init__(self, config: ModelConfig) -> None:
        with torch.device("meta"):
            self.sizes = {name: tuple(like.shape) for name, like in Transformer(config).state_dict().items()}

    def __getitem__(self, name: str) -> Tensor:
        size = self.sizes[name]
        if len(size) == 1:
            return torch.ones(size)
        # Uniform, of standard deviation 1 / sqrt(inputs): else the embedding would outweigh the layers, and every row
        # would predict its input.
        numbers = np.random.default_rng(zlib.crc32(name.encode())).random(size, np.float32)
        numbers -= 0.5
        numbers *= (12 / size[1]) ** 0.5
        return torch.from_numpy(numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


def make_standin(shape: ModelShape) -> Checkpoint:
    """Returns a checkpoint of that shape. Every id is a token, so only the mask is barred."""
    config = ModelConfig(
        shape.vocab, shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.head_dim, shape.ffn,
        rope_theta=1e6, qk_norm=shape.qk_norm, qkv_bias=shape.qkv_bias, tied=shape.tied,
    )  # fmt: skip
    decoding = Decoding(
        alignment="absolute", attention="block_causal", shift=False, block=BLOCK, canvas=BLOCK, context=CONTEXT,
        mask_id=shape.vocab - 1, eos_ids=(0,), pad_id=1, gate={"rule": "count", "min": 1},
    )  # fmt: skip
    return Checkpoint(config, decoding, RandomWeights(config), make_tokenizer(shape.vocab))


def make_tokenizer(vocab: int) -> str:
    """Returns a tokenizer of `vocab` words, as JSON."""
    words = {str(number): number for number in range(vocab)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "0"}
    unused = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    split = {"type": "WhitespaceSplit"}
    return json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model, **unused})
