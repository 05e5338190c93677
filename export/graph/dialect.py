"""Defines `Dialect`: the operators and the kind of KV cache by which step graphs for different runtimes differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from train.transformer.network import ModelConfig

# What logits of barred tokens and attention scores of masked keys become, so that their probabilities are 0.
MASKED_LOGIT = -1e30  # finite, since 0 * -inf in the entropy would be NaN
FP16_MASKED_LOGIT = -3e4  # half of fp16's range, so that a score added to it stays finite
FrameT = TypeVar("FrameT")
FrameT_contra = TypeVar("FrameT_contra", contravariant=True)
Cache = tuple[Tensor, Tensor]  # keys and values of a layer, each [batch, kv_heads, capacity, head_dim]


@dataclass(frozen=True, slots=True)
class AttentionPositions:
    """Holds the positions of a forward pass's tokens and what they attend to.

    Attributes:
        past_length: Number of committed tokens. int64 [batch]
        width: Number of tokens of the forward pass.
        length: Number of positions of the KV cache; None without one.
        visible: Attention prefix lengths; None with `full` attention. int64 [batch, width]
        cos, sin: Rotary tables of all positions. fp32 [capacity, head_dim / 2]
        dtype: Of heads and KV cache.
    """

    past_length: Tensor
    width: int
    length: int | None
    visible: Tensor | None
    cos: Tensor
    sin: Tensor
    dtype: torch.dtype


class Attend(Protocol[FrameT_contra]):
    """Applies rotary embedding and attention.

    query [batch, width, heads * head_dim]; key, value [batch, width, kv_heads * head_dim], or None if `query` has all
    three, packed along the last axis; past: the layer's KV cache, None without one.

    Returns the attention output [batch, width, heads * head_dim] and, if there is a KV cache, present keys and values.
    """

    def __call__(
        self,
        config: ModelConfig,
        frame: FrameT_contra,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        past: Cache | None,
    ) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True, slots=True)
class Dialect(Generic[FrameT]):
    """Holds the operators of the step graphs for one runtime, and the kind of its KV cache.

    Attributes:
        name: The dialect's name, as in the option `--dialect`.
        opset: Version of ONNX's operator set.
        cache: `in_place` if present keys and values share the past's buffer; `delta` if they are only those of the new
            positions.
        host_sets_capacity: Whether the host chooses the KV-cache capacity at run time; otherwise it is a constant.
        host_sets_top_k: Whether the host chooses the number of top tokens per run, so that a greedy step computes none;
            otherwise it is a constant, since TensorRT takes nothing else.
        head_multiple: Number of which head_dim must be a multiple.
        frame: Computes the values that all layers of a forward pass share.
        attend: Applies rotary embedding and attention.
        norm: Applies RMSNorm. It takes x fp32 [..., size], weight fp32 [size] and epsilon.
        argmax: Returns the top-1 tokens [rows, 1] of logits [rows, vocab].
    """

    name: str
    opset: int
    cache: str
    host_sets_capacity: bool
    host_sets_top_k: bool
    head_multiple: int
    frame: Callable[[AttentionPositions], FrameT]
    attend: Attend[FrameT]
    norm: Callable[[Tensor, Tensor, float], Tensor]
    argmax: Callable[[Tensor], Tensor]


def get_mask_value(dtype: torch.dtype) -> float:
    """Returns the number that masks a key if it is added to the key's attention score, which has this dtype."""
    return FP16_MASKED_LOGIT if dtype == torch.float16 else MASKED_LOGIT


def split_qkv(config: ModelConfig, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Splits a packed projection into queries, keys and values, each [batch, width, its heads * head_dim]."""
    sizes = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    query, key, value = torch.split(packed, sizes, dim=-1)
    return query, key, value
