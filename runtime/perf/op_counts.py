"""Counts the least cost of a model's forward pass, from the model's shape: operations, and bytes to move.

Only what no implementation can avoid is counted, so times computed from it are lower bounds. An operation is a
multiplication or an addition. The model has L layers of hidden size d, h heads and k key heads of size e, inner size f,
and vocabulary V. The forward pass has `batch` sequences, each of `width` tokens after `past` tokens, with `rows` logits
rows:

    weights of a layer   d (h + 2k) e  +  h e d  +  3 d f         queries, keys and values; output; gated MLP
    products with them   2 · tokens · weights; after the last layer's attention, and in the head, only for `rows`
    attention            4 · width · (past + width) · h e · L     scores and weighted values; no causal half subtracted
    weights moved        each once per pass, for any batch; of an untied embedding only the rows looked up
    KV cache moved       2 k e L numbers per position: past + width positions read, width written

Norms, rotary embedding, softmax and activations between operators are left out: they take thousands of operations per
token, products take millions, and their numbers fit into CPU caches. After CDLM's analysis (arXiv 2511.19269).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any

from ..checked_fields import find_first_wrong, whole
from ..errors import UserError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Holds the sizes of a transformer with a gated MLP. tied: whether the head shares the embedding's table."""

    hidden: Annotated[int, whole(1)]
    layers: Annotated[int, whole(1)]
    heads: Annotated[int, whole(1)]
    kv_heads: Annotated[int, whole(1)]
    head_dim: Annotated[int, whole(1)]
    ffn: Annotated[int, whole(1)]
    vocab: Annotated[int, whole(1)]
    tied: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False

    @property
    def qkv(self) -> int:
        """Returns the count of weights for a layer's queries, keys and values."""
        return self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def after_attention(self) -> int:
        """Returns the count of a layer's weights after its attention."""
        return self.heads * self.head_dim * self.hidden + 3 * self.hidden * self.ffn

    @property
    def head(self) -> int:
        """Returns the count of the head's weights."""
        return self.hidden * self.vocab

    @property
    def vectors(self) -> int:
        """Returns the count of numbers in norms and biases."""
        layer = 2 * self.hidden + 2 * self.head_dim * self.qk_norm
        layer += (self.heads + 2 * self.kv_heads) * self.head_dim * self.qkv_bias
        return self.layers * layer + self.hidden

    @property
    def parameters(self) -> int:
        """Returns the count of all the model's parameters."""
        tables = self.head * (1 if self.tied else 2)
        return self.layers * (self.qkv + self.after_attention) + tables + self.vectors

    @property
    def cached(self) -> int:
        """Returns the count of numbers in a position's keys and values, over all layers."""
        return 2 * self.kv_heads * self.head_dim * self.layers


@dataclass(frozen=True, slots=True)
class WeightSize:
    """Describes how matrices are stored.

    bits: bits per weight; block: inputs that share an fp32 scale, 0 for one scale per output, None without scales;
    number: bytes per number outside of matrices, KV cache included, None if the device decides.
    """

    bits: int
    block: int | None
    number: int | None

    def count_stored_bytes(self, inputs: int, outputs: int) -> float:
        """Returns the bytes of a matrix with its scales."""
        scales = 0 if self.block is None else outputs * math.ceil(inputs / (self.block or inputs))
        return inputs * outputs * self.bits / 8 + 4 * scales


WEIGHT_SIZES = {
    "fp32": WeightSize(32, None, 4),
    "fp16": WeightSize(16, None, 2),
    "int8": WeightSize(8, 0, None),
    "int4": WeightSize(4, 32, None),
}

SHAPES = {
    "qwen3-0.6b": ModelShape(1024, 28, 16, 8, 128, 3072, 151936, qk_norm=True),
    "sdar-1.7b": ModelShape(2048, 28, 16, 8, 128, 6144, 151936, qk_norm=True),
    "dream-7b": ModelShape(3584, 28, 28, 4, 128, 18944, 152064, tied=False, qkv_bias=True),
    "llada-8b": ModelShape(4096, 32, 32, 32, 128, 12288, 126464, tied=False),
}


@dataclass(frozen=True, slots=True)
class ForwardWork:
    """Holds what a forward pass costs. linear, attention: operations; weights, cache: bytes moved."""

    linear: float
    attention: float
    weights: float
    cache: float

    @property
    def intensity(self) -> float:
        """Returns operations per byte."""
        return (self.linear + self.attention) / (self.weights + self.cache)


@dataclass(frozen=True, slots=True)
class PassSize:
    """Describes a forward pass. batch: sequences; per sequence, width: new tokens; past: tokens in the KV cache before
    them; rows: logits rows. cached: whether keys and values are kept, which a model with full attention does not do.
    """

    batch: int
    width: int
    past: int
    rows: int
    cached: bool = True


def count_work(shape: ModelShape, precision: WeightSize, number: int, forward: PassSize) -> ForwardWork:
    """Returns what the forward pass costs. number: bytes per number outside of matrices, KV cache included."""
    tokens, rows = forward.batch * forward.width, forward.batch * forward.rows
    linear = 2 * tokens * (shape.layers * shape.qkv + (shape.layers - 1) * shape.after_attention)
    linear += 2 * rows * (shape.after_attention + shape.head)
    seen = forward.past + forward.width
    attention = 4 * tokens * seen * shape.heads * shape.head_dim * shape.layers
    positions = forward.batch * (seen + forward.width) if forward.cached else 0
    return ForwardWork(
        linear, attention, count_weight_bytes(shape, precision, tokens), positions * shape.cached * number
    )


def count_weight_bytes(shape: ModelShape, precision: WeightSize, tokens: int) -> float:
    """Returns the bytes of weights that a forward pass of `tokens` tokens reads; norms and biases are fp32."""
    mixed, stored = shape.heads * shape.head_dim, precision.count_stored_bytes
    layer = stored(shape.hidden, shape.qkv // shape.hidden) + stored(mixed, shape.hidden)
    layer += 2 * stored(shape.hidden, shape.ffn) + stored(shape.ffn, shape.hidden)
    looked_up = 0 if shape.tied else min(tokens, shape.vocab) * shape.hidden * precision.bits / 8
    return shape.layers * layer + stored(shape.hidden, shape.vocab) + looked_up + 4 * shape.vectors


def read_shape(values: Any, whose: str) -> ModelShape:
    """Returns a shape from plain values. Raises UserError naming the wrong value. whose: its source, for messages."""
    if not isinstance(values, dict):
        raise UserError(f"{whose} has no shape of the model; export it again, or name one with --model or --shape")
    known = {field.name: field for field in fields(ModelShape)}
    needed = [name for name, field in known.items() if field.default is field.default_factory]
    if wrong := [*sorted(values.keys() - known.keys()), *(name for name in needed if name not in values)]:
        raise UserError(f"{wrong[0]} of {whose} is unknown or missing; expected {', '.join(known)}")
    if found := find_first_wrong(ModelShape, values):
        name, value, expected = found
        raise UserError(f"{name} of {whose} is {value!r}; expected {expected}")
    return ModelShape(**values)


def parse_shape(text: str) -> dict[str, int | bool]:
    """Parses comma-separated name=value pairs."""
    words = {"true": True, "false": False}
    pairs = [pair.strip().partition("=")[::2] for pair in text.split(",")]
    return {name: words[value] if value in words else int(value) for name, value in pairs}
