"""The step graph: one forward of a checkpoint's model with everything the host decides by reduced inside it.

Its inputs and outputs are the step contract of DECISIONS.md. It is one module, traced to ONNX; only `attention` and the
two operators beside it differ between dialects. The operators are symbolic, so the module cannot be run in PyTorch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import UserError
from runtime.ort import cache_names
from train.checkpoint import Checkpoint
from train.model import Attention, Layer, ModelConfig, RMSNorm, rotary_tables

OPSET = 23
NEVER = -1e30  # finite, since a probability of 0 times -inf is NaN in the entropy


@dataclass(frozen=True, slots=True)
class Frame:
    """What all layers of a forward share.

    first int64 [batch] and last int32 [batch], indices of its positions; total int32 [], positions in all; cos, sin
    fp32 [capacity, head_dim / 2]; bias fp32 [batch, 1, width, total], 0 where a query sees and NEVER where not, None
    with `full`.
    """

    first: Tensor
    last: Tensor
    total: Tensor
    cos: Tensor
    sin: Tensor
    bias: Tensor | None


class AttentionDialect(Protocol):
    """Rotates and attends. query, key, value: [batch, width, heads * head_dim], or all of them packed in `query`.

    Returns the mixed values [batch, width, heads * head_dim] and, where there is a cache, its new keys and values.
    """

    def __call__(
        self, config: ModelConfig, frame: Frame, query: Tensor, key: Tensor | None, value: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, ...]: ...  # fmt: skip


def group_query_attention(
    config: ModelConfig, frame: Frame, query: Tensor, key: Tensor | None, value: Tensor | None,
    past: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """ONNX Runtime's `com.microsoft.GroupQueryAttention`, its cache in place where past and present share a buffer.

    It takes head sizes in multiples of 8 and rotates multiples of 16 itself; others are rotated before it.
    """
    batch, width = query.shape[:2]
    rotates = config.head_dim % 16 == 0
    if not rotates:
        query, key, value = (query, key, value) if key is not None else split_heads(config, query)
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


def rotary_embedding(x: Tensor, frame: Frame) -> Tensor:
    """Heads [batch, width, heads * head_dim] rotated to their positions by `com.microsoft.RotaryEmbedding`."""
    rotated: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::RotaryEmbedding", (x, frame.first, frame.cos, frame.sin), {"interleaved": 0},
        dtype=x.dtype, shape=x.shape, version=1,
    )  # fmt: skip
    return rotated


def split_heads(config: ModelConfig, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [batch, width, its heads * head_dim], of a packed projection."""
    sizes = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    query, key, value = torch.split(packed, sizes, dim=-1)
    return query, key, value


class Norm(nn.Module):
    """RMSNorm over the last axis, as one operator."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = torch.onnx.ops.symbolic(
            "RMSNormalization", (x, self.weight), {"axis": -1, "epsilon": self.eps, "stash_type": 1},
            dtype=x.dtype, shape=x.shape, version=OPSET,
        )  # fmt: skip
        return normed


class Projection(nn.Module):
    """x @ weight + bias, the weight [in, out] as the operator wants it, so that nothing is transposed at load."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.weight = frozen(torch.cat([linear.weight.data for linear in linears]).T)
        biases = [linear.bias.data for linear in linears if linear.bias is not None]
        self.bias = frozen(torch.cat(biases)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class StepAttention(nn.Module):
    """One packed projection, norms of queries and keys where the model has them, attention; `o_proj` for the caller."""

    def __init__(self, attention: Attention, attend: AttentionDialect) -> None:
        super().__init__()
        self.config, self.attend = attention.config, attend
        self.qkv_proj = Projection(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = Projection(attention.o_proj)
        self.q_norm = Norm(attention.q_norm) if self.config.qk_norm else None
        self.k_norm = Norm(attention.k_norm) if self.config.qk_norm else None

    def forward(self, x: Tensor, frame: Frame, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        """Mixed values [batch, width, heads * head_dim], not yet projected, and the new cache."""
        packed, c = self.qkv_proj(x), self.config
        if self.q_norm is None or self.k_norm is None:
            return self.attend(c, frame, packed, None, None, past)
        query, key, value = split_heads(c, packed)
        query = self.q_norm(query.view(*x.shape[:2], c.heads, c.head_dim)).flatten(-2)
        key = self.k_norm(key.view(*x.shape[:2], c.kv_heads, c.head_dim)).flatten(-2)
        return self.attend(c, frame, query, key, value, past)


class StepLayer(nn.Module):
    """One transformer layer; with `rows`, everything behind its attention is done for these rows alone."""

    def __init__(self, layer: Layer, attend: AttentionDialect) -> None:
        super().__init__()
        self.input_layernorm = Norm(layer.input_layernorm)
        self.post_attention_layernorm = Norm(layer.post_attention_layernorm)
        self.self_attn = StepAttention(layer.self_attn, attend)
        self.gate_proj, self.up_proj = Projection(layer.mlp.gate_proj), Projection(layer.mlp.up_proj)
        self.down_proj = Projection(layer.mlp.down_proj)

    def forward(
        self, x: Tensor, frame: Frame, past: tuple[Tensor, Tensor] | None, rows: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        mixed, *present = self.self_attn(self.input_layernorm(x), frame, past)
        if rows is not None:
            x, mixed = x.index_select(1, rows), mixed.index_select(1, rows)
        x = x + self.self_attn.o_proj(mixed)
        inner = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(inner)) * self.up_proj(inner)), tuple(present)


class StepGraph(nn.Module):
    """The whole step of a block-causal (over a cache) or full (without one) model, for one sequence.

    capacity: the most positions a cache of it may hold. logits: adds them, fp32 [batch, n, vocab], as an output.
    """

    def __init__(
        self, checkpoint: Checkpoint, capacity: int, logits: bool = False,
        attend: AttentionDialect = group_query_attention,
    ) -> None:  # fmt: skip
        super().__init__()
        model, config = checkpoint.build(), checkpoint.model
        self.full, self.with_logits = checkpoint.decoding.attention == "full", logits
        self.vocab = checkpoint.vocab()
        self.embed_tokens, self.norm = model.embed_tokens, Norm(model.norm)
        self.layers = nn.ModuleList(StepLayer(layer, attend) for layer in model.layers)  # type: ignore[arg-type]
        self.head = self.embed_tokens.weight if config.tied else model.lm_head.weight  # [vocab, hidden]
        barred = torch.zeros(config.vocab)
        barred[checkpoint.decoding.mask_id] = NEVER
        barred[self.vocab :] = NEVER
        cos, sin = rotary_tables(torch.arange(capacity), config.head_dim, config.rope_theta, config.rope_scaling)
        self.barred, self.cos, self.sin = frozen(barred), frozen(cos), frozen(sin)

    def forward(self, input_ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """With a cache `rest` is past_length, visible, rows and the layers' keys and values; otherwise rows."""
        cache: tuple[Tensor, ...] = ()
        if self.full:
            rows = rest[0]
            frame = self._frame(torch.zeros(1, dtype=torch.int64), input_ids.shape[1], None)
        else:
            past_length, visible, rows = rest[:3]
            cache = rest[3:]
            frame = self._frame(past_length, input_ids.shape[1], visible)
        x: Tensor = self.embed_tokens(input_ids)
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            past = None if self.full else (cache[2 * i], cache[2 * i + 1])
            last = rows[0] if i == len(self.layers) - 1 else None
            x, new = layer(x, frame, past, last)
            present += new
        return (*self._predict(self.norm(x)), *present)

    def _frame(self, past_length: Tensor, width: int, visible: Tensor | None) -> Frame:
        end = past_length + width  # [batch]
        last, total = (end - 1).to(torch.int32), end[0].to(torch.int32)
        bias = None if visible is None else prefix_bias(visible, end)
        return Frame(past_length, last, total, self.cos, self.sin, bias)

    def _predict(self, x: Tensor) -> tuple[Tensor, ...]:
        """token, confidence, entropy, each [batch, n], of hidden states [batch, n, hidden]; and logits where asked."""
        logits = F.linear(x.squeeze(0), self.head, self.barred)  # [n, vocab], one Gemm: it takes a tied head as it is
        token = logits.argmax(-1, keepdim=True)  # [n, 1]
        probs = torch.softmax(logits, dim=-1)
        confidence = probs.gather(-1, token)  # [n, 1]
        behind = logits - logits.gather(-1, token)  # <= 0, so a confident row's small entropy keeps its digits
        entropy = -(probs * behind).sum(-1, keepdim=True) - confidence.log()
        reduced = tuple(part.view(1, -1) for part in (token, confidence, entropy))
        return (*reduced, logits[None, :, : self.vocab]) if self.with_logits else reduced


def prefix_bias(visible: Tensor, end: Tensor) -> Tensor:
    """What attention adds to its scores, fp32 [batch, 1, width, total]; visible int64 [batch, width], end [1]."""
    total = end[0].item()
    torch._check(total >= 1)  # type: ignore[no-untyped-call]
    hidden = torch.arange(total) >= visible[:, None, :, None]
    return torch.where(hidden, NEVER, 0.0)


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def trace(checkpoint: Checkpoint, capacity: int, logits: bool = False) -> ir.Model:
    """The step graph as an ONNX model in the `ort` dialect, with width, n and the cache's capacity left open.

    capacity: the most positions a cache may hold. Raises UserError for a head size that the operator does not take.
    """
    shape = checkpoint.model
    if shape.head_dim % 8:
        raise UserError(f"head_dim is {shape.head_dim}; ONNX Runtime's attention takes multiples of 8")
    graph = StepGraph(checkpoint, capacity, logits).eval()
    ids, rows = torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)
    names, inputs, open_axes = ["input_ids", "rows"], [ids, rows], [{1: "width"}, {1: "n"}]
    caches: list[tuple[str, str]] = []
    if not graph.full:
        caches = [cache_names(i) for i in range(2 * shape.layers)]
        names = ["input_ids", "past_length", "visible", "rows", *(past for past, _ in caches)]
        # Each its own tensor: one given twice is one input to the exporter, which then mixes keys and values up.
        cache = [torch.zeros(1, shape.kv_heads, 64, shape.head_dim) for _ in caches]
        inputs = [ids, torch.tensor([5]), torch.ones_like(ids), rows, *cache]
        open_axes = [{1: "width"}, {}, {1: "width"}, {1: "n"}, *[{2: "capacity"}] * len(caches)]
    outputs = ["token", "confidence", "entropy", *(["logits"] if logits else []), *(present for _, present in caches)]
    with quiet():
        program = torch.onnx.export(
            graph, tuple(inputs), dynamo=True, opset_version=OPSET, input_names=names, output_names=outputs,
            dynamic_shapes=(open_axes[0], tuple(open_axes[1:])), verbose=False,
        )  # fmt: skip
    if program is None:
        raise AssertionError("the exporter returned nothing")
    without_metadata(program.model)
    return program.model


def without_metadata(model: ir.Model) -> None:
    """Drops what the exporter notes beside the graph: the stack traces in it name folders of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's warnings, which are about its own insides and packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
