"""Defines `Dialect`, which holds what differs between the runtimes that a step graph is written for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from train.transformer.network import ModelConfig

NEVER = -1e30  # finite, since 0 * -inf in the entropy would be NaN
FP16_NEVER = -3e4  # half of fp16's range, so that a score added to it stays finite
FrameT = TypeVar("FrameT")
FrameT_contra = TypeVar("FrameT_contra", contravariant=True)
Cache = tuple[Tensor, Tensor]  # keys and values of a layer, each [batch, kv_heads, capacity, head_dim]


@dataclass(frozen=True, slots=True)
class AttentionPositions:
    """Holds the positions of a forward pass's tokens and what they attend to.

    past_length int64 [batch]; width: tokens of the forward pass; length: positions of the KV cache, None without one;
    visible int64 [batch, width], attention prefix lengths, None with `full` attention; cos, sin fp32 [capacity,
    head_dim / 2], the rotary tables of all positions; dtype: of heads and KV cache.
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

    query, key, value: [batch, width, heads * head_dim], or all of them packed in `query`.

    Returns the mixed values [batch, width, heads * head_dim] and, if there is a KV cache, its new keys and values.
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
    """Holds the operators that a runtime takes, and how it keeps its KV cache.

    cache: `in_place` if present keys and values share the past's buffer, `delta` if they are only the new positions.
    open_capacity: whether the host chooses the KV-cache capacity. open_top_k: whether the host chooses, per run, the
    number of top tokens, so that a greedy step pays for none; TensorRT takes only a constant. head_multiple: head_dim
    must be a multiple of it. frame: makes the values that all layers share. norm: maps x fp32 [..., size], weight fp32
    [size] and epsilon to the RMS-normalized x. `likeliest`: maps logits [rows, vocab] to the top-1 tokens [rows, 1].
    """

    name: str
    opset: int
    cache: str
    open_capacity: bool
    open_top_k: bool
    head_multiple: int
    frame: Callable[[AttentionPositions], FrameT]
    attend: Attend[FrameT]
    norm: Callable[[Tensor, Tensor, float], Tensor]
    likeliest: Callable[[Tensor], Tensor]


def get_mask_value(dtype: torch.dtype) -> float:
    """Returns the number that masks a key when it is added to a score of that dtype."""
    return FP16_NEVER if dtype == torch.float16 else NEVER


def split_heads(config: ModelConfig, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Splits a packed projection into queries, keys and values, each [batch, width, its heads * head_dim]."""
    sizes = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    query, key, value = torch.split(packed, sizes, dim=-1)
    return query, key, value
