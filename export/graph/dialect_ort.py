"""Implements the `ort` dialect: ONNX Runtime's attention operator also rotates, unpacks and writes the KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from train.transformer.network import ModelConfig

from .dialect import AttentionPositions, Cache, Dialect, get_mask_value, split_qkv

OPSET = 23
LARGE = 8192  # tokens of a vocabulary from which `find_first_argmax` searches it in groups


@dataclass(frozen=True, slots=True)
class OrtFrame:
    """Holds what all layers of a forward pass share.

    first int64 [batch] and last int32 [batch], its first and last position; total int32 [], positions up to the last;
    cos, sin [capacity, head_dim / 2]; bias [batch, 1, width, total], 0 if the query sees the key, else far below 0;
    None with `full` attention.
    """

    first: Tensor
    last: Tensor
    total: Tensor
    cos: Tensor
    sin: Tensor
    bias: Tensor | None


def make_frame(place: AttentionPositions) -> OrtFrame:
    """Makes the frame: lengths in the operator's form, tables and bias in the dtype of the heads."""
    end = place.past_length + place.width  # [batch]
    last, total = (end - 1).to(torch.int32), end[0].to(torch.int32)
    bias = None if place.visible is None else make_prefix_bias(place.visible, end, place.dtype)
    return OrtFrame(place.past_length, last, total, place.cos.to(place.dtype), place.sin.to(place.dtype), bias)


def make_prefix_bias(visible: Tensor, end: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what attention adds to its scores, [batch, 1, width, total]; visible int64 [batch, width], end [1]."""
    total = end[0].item()
    torch._check(total >= 1)  # type: ignore[no-untyped-call]
    hidden = torch.arange(total) >= visible[:, None, :, None]
    return torch.where(hidden, get_mask_value(dtype), 0.0).to(dtype)


def group_query_attention(
    config: ModelConfig, frame: OrtFrame, query: Tensor, key: Tensor | None, value: Tensor | None, past: Cache | None
) -> tuple[Tensor, ...]:
    """Attends by `com.microsoft.GroupQueryAttention`, in place if past and present share a buffer.

    The operator takes head sizes that are multiples of 8, and rotates those that are multiples of 16; other heads are
    rotated before it.
    """
    batch, width = query.shape[:2]
    rotates = config.head_dim % 16 == 0
    if not rotates:
        query, key, value = (query, key, value) if key is not None else split_qkv(config, query)
        query, key = rotary_embedding(query, frame), rotary_embedding(key, frame)
    keys, values = past or (None, None)
    heads = {"num_heads": config.heads, "kv_num_heads": config.kv_heads}
    tables = (frame.cos, frame.sin) if rotates else (None, None)
    mixed = (batch, width, config.heads * config.head_dim)
    new = (batch, config.kv_heads, width, config.head_dim)
    shapes = (mixed, *(cache.shape for cache in past)) if past else (mixed, new, new)
    out = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (query, key, value, keys, values, frame.last, frame.total, *tables, None, frame.bias),
        {**heads, "scale": config.head_dim**-0.5, "do_rotary": int(rotates), "causal": 0},
        dtypes=(query.dtype,) * 3,
        shapes=shapes,
        version=1,
    )
    return tuple(out) if past else (out[0],)


def rotary_embedding(x: Tensor, frame: OrtFrame) -> Tensor:
    """Rotates heads [batch, width, heads * head_dim] to their positions by `com.microsoft.RotaryEmbedding`."""
    return torch.onnx.ops.symbolic(
        "com.microsoft::RotaryEmbedding",
        (x, frame.first, frame.cos, frame.sin),
        {"interleaved": 0},
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )


def rms_normalization(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Applies RMSNorm over the last axis, as one operator."""
    return torch.onnx.ops.symbolic(
        "RMSNormalization",
        (x, weight),
        {"axis": -1, "epsilon": eps, "stash_type": 1},
        dtype=x.dtype,
        shape=x.shape,
        version=OPSET,
    )


def find_first_argmax(logits: Tensor) -> Tensor:
    """Returns the first top-1 token of each row.

    In a large vocabulary, ReduceMax first finds the group of tokens that it is in. ReduceMax reads many numbers at a
    time; ArgMax reads one, and takes ten times as long.
    """
    vocab = logits.shape[1]
    groups = max(n for n in range(1, isqrt(vocab) + 1) if vocab % n == 0)
    if vocab < LARGE or groups == 1:
        return logits.argmax(-1, keepdim=True)
    size = vocab // groups
    grouped = logits.view(-1, groups, size)
    group = grouped.amax(-1).argmax(-1, keepdim=True)  # [rows, 1]
    found = grouped.gather(1, group[:, :, None].expand(-1, -1, size))  # [rows, 1, size]
    return group * size + found.argmax(-1)


ORT = Dialect(
    "ort", OPSET, "in_place", True, True, 8, make_frame, group_query_attention, rms_normalization, find_first_argmax
)
