"""What differs between the runtimes that a step graph is written for, as a value: the graph never asks which it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from train.transformer.network import ModelConfig

NEVER = -1e30  # finite, since a probability of 0 times -inf is NaN in the entropy
FP16_NEVER = -3e4  # half of fp16's range, so that a score added to it stays finite
FrameT = TypeVar("FrameT")
FrameT_contra = TypeVar("FrameT_contra", contravariant=True)
Cache = tuple[Tensor, Tensor]  # keys and values of a layer, each [batch, kv_heads, capacity, head_dim]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tokens of a forward lie and what they see.

    past_length int64 [batch]; width: tokens of the forward; length: positions of the cache, None without one; visible
    int64 [batch, width], None with `full` attention; cos, sin fp32 [capacity, head_dim / 2], the rotary tables of all
    positions; dtype: of heads and cache.
    """

    past_length: Tensor
    width: int
    length: int | None
    visible: Tensor | None
    cos: Tensor
    sin: Tensor
    dtype: torch.dtype


class Attend(Protocol[FrameT_contra]):
    """Rotates and attends. query, key, value: [batch, width, heads * head_dim], or all of them packed in `query`.

    Returns the mixed values [batch, width, heads * head_dim] and, where there is a cache, its new keys and values.
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
    """The operators that a runtime takes, and how it keeps its cache.

    cache: `in_place`, the present is the past's own buffer, or `delta`, it holds the new positions alone.
    open_capacity: whether the cache's length is left to the host. open_top_k: whether the host says at each run how
    many top tokens it wants, so that a greedy step pays for none; TensorRT takes a constant alone. head_multiple: of
    what a head's size has to be a multiple. frame: what all layers share. norm: x fp32 [..., size], weight fp32 [size]
    and epsilon to the RMS-normalised x.
    """

    name: str
    opset: int
    cache: str
    open_capacity: bool
    open_top_k: bool
    head_multiple: int
    frame: Callable[[Place], FrameT]
    attend: Attend[FrameT]
    norm: Callable[[Tensor, Tensor, float], Tensor]
    likeliest: Callable[[Tensor], Tensor]


def never(dtype: torch.dtype) -> float:
    """What hides a key when it is added to a score of that dtype."""
    return FP16_NEVER if dtype == torch.float16 else NEVER


def split_heads(config: ModelConfig, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [batch, width, its heads * head_dim], of a packed projection."""
    sizes = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    query, key, value = torch.split(packed, sizes, dim=-1)
    return query, key, value
