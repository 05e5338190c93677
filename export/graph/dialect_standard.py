"""Implements the dialects in standard ONNX: `standard` for ONNX Runtime on CUDA and the CPU, any batch size; `trt` for
TensorRT from 10.15 on and TensorRT for RTX; `plain` for older TensorRT.

`trt` and `plain` take a KV cache of a fixed capacity. Whatever the heads' dtype, norms and rotary embedding compute in
fp32, and in `plain` the softmax too; in the others, the library chooses the precision inside `Attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train.transformer.network import ModelConfig, rotate

from .dialect import AttentionPositions, Cache, Dialect, get_mask_value, split_qkv
from .dialect_ort import find_first_argmax, rms_normalization


@dataclass(frozen=True, slots=True)
class StandardFrame:
    """Holds what all layers of a forward pass share.

    past_length int64 [batch]; cos, sin fp32 [batch, 1, width, head_dim / 2], at the forward pass's positions; mask
    [batch, 1, width, keys], 0 if the query sees the key, else far below 0; None with `full` attention.
    """

    past_length: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor | None


def make_whole_frame(place: AttentionPositions) -> StandardFrame:
    """Makes a frame with a mask in the heads' dtype, over the whole KV cache, which includes the new keys."""
    if place.visible is None or place.length is None:
        return _make_frame(place, None)
    return _make_frame(place, make_prefix_mask(place.visible, torch.arange(place.length)[None], place.dtype))


def make_plain_frame(place: AttentionPositions) -> StandardFrame:
    """Makes a frame with an fp32 mask, over `past_length` valid positions of the KV cache and the new keys after it."""
    if place.visible is None:
        return _make_frame(place, None)
    capacity, past = len(place.cos), place.past_length[:, None]  # [batch, 1]
    cached = torch.arange(capacity)[None]  # [1, capacity]
    never = torch.full_like(cached, torch.iinfo(torch.int64).max)
    keys = torch.cat((torch.where(cached < past, cached, never), past + torch.arange(place.width)), dim=1)
    return _make_frame(place, make_prefix_mask(place.visible, keys, torch.float32))  # keys [batch, capacity + width]


def _make_frame(place: AttentionPositions, mask: Tensor | None) -> StandardFrame:
    positions = place.past_length[:, None] + torch.arange(place.width)  # [batch, width]
    # If sequences of several lengths share a width, the padding of a long one may exceed the tables.
    positions = positions.clamp(max=len(place.cos) - 1)
    cos, sin = (F.embedding(positions, table)[:, None] for table in (place.cos, place.sin))
    return StandardFrame(place.past_length, cos, sin, mask)


def make_prefix_mask(visible: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what attention adds to its scores, [batch, 1, width, keys]: 0 if a key's position is below `visible`.

    visible int64 [batch, width]; keys int64 [batch or 1, keys], the position of each key.
    """
    hidden = keys[:, None, None, :] >= visible[:, None, :, None]
    return torch.where(hidden, get_mask_value(dtype), 0.0).to(dtype)


def rotate_heads(
    config: ModelConfig, frame: StandardFrame, query: Tensor, key: Tensor | None, value: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rotated queries [batch, heads, width, head_dim]; rotated keys, values [batch, kv_heads, width, head_dim].

    Queries are scaled by head_dim ** -0.5 here: TensorRT's parser would apply the operator's `scale` to both queries
    and keys, and so multiply the whole KV cache at every step. Also, dot products with scaled queries stay in fp16's
    range.
    """
    if key is None or value is None:
        query, key, value = split_qkv(config, query)
    place = (*query.shape[:2], -1, config.head_dim)
    query, key, value = (x.reshape(place).transpose(1, 2) for x in (query, key, value))
    scaled = rotate(query.float(), frame.cos, frame.sin) * config.head_dim**-0.5
    return scaled.to(query.dtype), rotate(key, frame.cos, frame.sin), value


def scatter_attention(
    config: ModelConfig,
    frame: StandardFrame,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past: Cache | None,
) -> tuple[Tensor, ...]:
    """Attends by `TensorScatter` into the KV cache and `Attention` over all of it, both of opset 24.

    The mask is explicit, because TensorRT's parser accepts the operator's input `nonpad_kv_seqlen` but ignores it. The
    parser rejects `softmax_precision`, so the library chooses the precision of the softmax inside the operator.
    """
    query, key, value = rotate_heads(config, frame, query, key, value)
    present = tuple(_scatter(old, new, frame) for old, new in zip(past, (key, value), strict=True)) if past else ()
    keys, values = present or (key, value)
    mixed: Tensor = torch.onnx.ops.symbolic(
        "Attention", (query, keys, values, frame.mask), {"scale": 1.0}, dtype=query.dtype, shape=query.shape, version=24
    )
    return (mixed.transpose(1, 2).flatten(2), *present)


def _scatter(cache: Tensor, new: Tensor, frame: StandardFrame) -> Tensor:
    return torch.onnx.ops.symbolic(
        "TensorScatter",
        (cache, new, frame.past_length),
        {"axis": -2, "mode": "linear"},
        dtype=cache.dtype,
        shape=cache.shape,
        version=24,
    )


def attend_with_basic_operators(
    config: ModelConfig,
    frame: StandardFrame,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past: Cache | None,
) -> tuple[Tensor, ...]:
    """Attends with basic operators over the KV cache and the new keys after it; presents are new keys and values."""
    query, key, value = rotate_heads(config, frame, query, key, value)
    keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True)) if past else (key, value)
    batch, heads, width, head_dim = query.shape
    grouped = query.reshape(batch, config.kv_heads, -1, head_dim)  # a group's heads one after the other
    scores = (grouped @ keys.transpose(-1, -2)).float().view(batch, heads, width, -1)
    weights = torch.softmax(scores if frame.mask is None else scores + frame.mask, dim=-1).to(values.dtype)
    mixed = weights.view(batch, config.kv_heads, heads // config.kv_heads * width, -1) @ values
    mixed = mixed.view(batch, heads, width, head_dim).transpose(1, 2).flatten(2)
    return (mixed, key, value) if past else (mixed,)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Applies RMSNorm over the last axis with basic operators; x in fp16 would overflow when squared, from 256 on."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def find_argmax(logits: Tensor) -> Tensor:
    return logits.argmax(-1, keepdim=True)


STANDARD = Dialect(
    "standard", 24, "in_place", True, True, 1, make_whole_frame, scatter_attention, rms_normalization, find_first_argmax
)
TRT = Dialect("trt", 24, "in_place", False, False, 1, make_whole_frame, scatter_attention, rms_norm, find_argmax)
PLAIN = Dialect(
    "plain", 18, "delta", False, False, 1, make_plain_frame, attend_with_basic_operators, rms_norm, find_argmax
)
