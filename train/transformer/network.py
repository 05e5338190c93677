"""Defines the transformer that is distilled and exported: that of Llama, Qwen2 and Qwen3, but with prefix masks.

Every attention pattern of block decoding is a prefix mask: query `i` sees the first `visible[i]` positions. Causal
(`visible = i + 1`), bidirectional (`visible = length`) and block-causal models therefore share one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.checked_fields import OBJECT, number
from runtime.contract import size

from .rope import compute_frequencies

LARGEST_FLOAT = 1e12  # maximum of a float in a config; chosen for the largest of them, the base of rotary angles
ABOVE_0 = number(math.ulp(0.0), LARGEST_FLOAT, f"a number above 0, up to {LARGEST_FLOAT:g}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a model. `width` is the hidden size, `ffn` the inner size of the gated MLP; rope_scaling: see `rope`."""

    vocab: Annotated[int, size("vocab")]
    width: Annotated[int, size("width")]
    layers: Annotated[int, size("layers")]
    heads: Annotated[int, size("heads")]
    kv_heads: Annotated[int, size("kv_heads")]
    head_dim: Annotated[int, size("head_dim")]
    ffn: Annotated[int, size("ffn")]
    rope_theta: Annotated[float, ABOVE_0] = 10000.0
    norm_eps: Annotated[float, ABOVE_0] = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = True
    rope_scaling: Annotated[dict[str, Any], OBJECT] = field(default_factory=dict)


class KeyValueStore(Protocol):
    """A KV cache: `update` takes a layer's new keys and values, and returns all that can be visible."""

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]: ...


class RMSNorm(nn.Module):
    """Computes x / rms(x) * weight in fp32 (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


def compute_rotary_tables(
    positions: Tensor, head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines of rotary angles, fp32 [..., head_dim / 2] each (Su et al. 2021, arXiv 2104.09864)."""
    inverse, magnitude = compute_frequencies(head_dim, theta, scaling or {})
    angles = positions.double()[..., None] * inverse.to(positions.device)
    return (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates a head's halves against each other. x [batch, heads, width, head_dim], tables [batch, 1, width, half]."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def attend_with_basic_operators(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Computes grouped-query attention with torch's basic operators; query [batch, heads, width, head_dim].

    It is for training on a CPU, on which the backward pass of the fused kernel alone takes half of a step.
    """
    batch, heads, width, head_dim = query.shape
    query = query.reshape(batch, key.shape[1], -1, head_dim)
    scores = (query @ key.transpose(-1, -2)).unflatten(2, (-1, width)) * head_dim**-0.5
    weights = torch.softmax(scores.float() + mask[:, :, None], dim=-1).to(value.dtype)
    return (weights.flatten(2, 3) @ value).view(batch, heads, width, head_dim)


def attend_fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Computes the same with torch's fused kernel: faster without gradients; a GPU never stores attention weights."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype))


class Attention(nn.Module):
    """Grouped-query attention with an additive mask, over new keys alone or over a KV cache."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.width, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KeyValueStore | None) -> Tensor:
        batch, width, _ = x.shape
        c = self.config
        query = self.q_proj(x).view(batch, width, c.heads, c.head_dim)
        key = self.k_proj(x).view(batch, width, c.kv_heads, c.head_dim)
        value = self.v_proj(x).view(batch, width, c.kv_heads, c.head_dim).transpose(1, 2)
        if c.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(query.transpose(1, 2), cos, sin)  # [batch, heads, width, head_dim]
        key = rotate(key.transpose(1, 2), cos, sin)  # [batch, kv_heads, width, head_dim]
        if cache is not None:
            key, value = cache.update(self.layer, key, value)
        written_out = torch.is_grad_enabled() and x.device.type == "cpu"
        attend = attend_with_basic_operators if written_out else attend_fused
        mixed = attend(query, key, value, mask)  # [batch, heads, width, head_dim]
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, width, -1))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm transformer layer; parameter names are those of the published Llama and Qwen checkpoints."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KeyValueStore | None, kept: Tensor | None = None
    ) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        x = x + (mixed if kept is None else mixed * kept[0])
        inner = self.mlp(self.post_attention_layernorm(x))
        return x + (inner if kept is None else inner * kept[1])


class Transformer(nn.Module):
    """Maps token ids and a prefix mask to normalized hidden states; `logits` applies the head to chosen rows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.dropout = config, 0.0
        self.embed_tokens = make_embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueStore | None = None,
        length: int | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states [batch, width, hidden].

        input_ids int64 [batch, width]; visible int64 [batch, width], how many positions each query sees, at least 1;
        positions int64 [batch, width], by default 0 to width - 1; length: cached and new positions together, by default
        the width; mask fp32 [batch, 1, width, length], additive, given in training instead of `visible` if the
        attention is not a prefix mask.
        """
        cos, sin = self.compute_position_tables(input_ids, positions)
        if mask is None:
            if visible is None:
                raise ValueError("neither visible nor mask was given")
            mask = make_prefix_mask(visible, length or input_ids.shape[1])
        return self.run_layers(input_ids, cos, sin, mask, cache, self.sample_dropout(input_ids))

    def sample_dropout(self, input_ids: Tensor) -> Tensor | None:
        """Returns a factor for each channel that a layer adds, [layers, 2, batch, 1, hidden]; None if all are kept.

        All positions of a sequence share a sample, from torch's global generator (Gal and Ghahramani 2016, arXiv
        1512.05287). That regularizes as much as a sample per position and costs little. Nothing is
        dropped unless the model trains with gradients.
        """
        if not self.dropout or not self.training or not torch.is_grad_enabled():
            return None
        shape = (self.config.layers, 2, len(input_ids), 1, self.config.width)
        left: Tensor = (torch.rand(shape, device=input_ids.device) >= self.dropout) / (1 - self.dropout)
        return left

    def compute_position_tables(self, input_ids: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines of all tokens' angles, each fp32 [batch, 1, width, head_dim / 2]."""
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
        c = self.config
        return compute_rotary_tables(positions[:, None, :], c.head_dim, c.rope_theta, c.rope_scaling)

    def run_layers(
        self,
        input_ids: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        cache: KeyValueStore | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Returns hidden states [batch, width, hidden] under an additive mask; kept: see `sample_dropout`."""
        x = self.embed_tokens(input_ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, cache, *(() if kept is None else (kept[i],)))
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns scores of every token, [..., vocab], in the dtype of `hidden`."""
        weight = self.embed_tokens.weight if self.config.tied else self.lm_head.weight
        return F.linear(hidden, weight)


def make_embedding(vocab: int, width: int) -> nn.Embedding:
    """Returns `nn.Embedding(vocab, width)`, but samples no weights on the meta device.

    The constructor of `nn.Embedding` does, although there are no numbers to sample, and so imports torch._dynamo, which
    takes a second or more.
    """
    made = nn.Embedding.from_pretrained(torch.empty(vocab, width), freeze=False)
    if not made.weight.is_meta:
        nn.init.normal_(made.weight)
    return made


def make_prefix_mask(visible: Tensor, length: int) -> Tensor:
    """Returns the additive fp32 mask [batch, 1, width, length]: 0 at keys among the first `visible`, else -inf.

    Additive and not boolean: attention that adds its mask to the scores would be silently wrong with a boolean one.
    """
    seen = torch.arange(length, device=visible.device) < visible[:, None, :, None]
    return torch.zeros(seen.shape, device=visible.device).masked_fill(~seen, float("-inf"))


def initialize(model: Transformer, seed: int) -> Transformer:
    """Samples normal weights of deviation 0.02, over sqrt(2 * layers) in o_proj and down_proj (GPT-2); biases are 0."""
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / (2 * model.config.layers) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            deviation = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            nn.init.normal_(parameter, std=deviation, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model
