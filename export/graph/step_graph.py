"""Traces the step graph: one forward pass of a checkpoint's model, reduced inside the graph to what the host needs.

The graph's inputs and outputs are the step contract. A single module, `StepGraph`, is traced to ONNX; a `Dialect` holds
what differs between runtimes. Some operators of the dialects are symbolic, so the module cannot run in PyTorch.
Whatever the dtype of weights, heads and KV cache, hidden states, norms and everything after the logits are fp32.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnxscript import optimizer
from torch import Tensor, nn

from runtime.contract import CANDIDATE_INPUT, CANDIDATE_OUTPUT, REDUCED, TOP, name_cache_part
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.transformer.network import Attention, Layer, RMSNorm, compute_rotary_tables

from .dialect import MASKED_LOGIT, AttentionPositions, Cache, Dialect, split_qkv
from .dialect_ort import ORT
from .dialect_standard import PLAIN, STANDARD, TRT
from .lazy_weights import attach, make_skeleton, name_hidden_states, set_aside

DIALECTS: dict[str, Dialect[Any]] = {dialect.name: dialect for dialect in (ORT, STANDARD, TRT, PLAIN)}


class Norm(nn.Module):
    """Applies RMSNorm over the last axis, in fp32."""

    def __init__(self, norm: RMSNorm, dialect: Dialect[Any]) -> None:
        super().__init__()
        self.weight, self.eps, self.norm = freeze(norm.weight.float()), norm.eps, dialect.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float(), self.weight, self.eps)


class Projection(nn.Module):
    """Computes x @ weight + bias. The weight is [in, out], as MatMul takes it, so that loading transposes nothing."""

    def __init__(self, dtype: torch.dtype, *linears: nn.Linear) -> None:
        super().__init__()
        self.weight = freeze(torch.cat([linear.weight.data for linear in linears]).T.to(dtype))
        biases = [linear.bias.data for linear in linears if linear.bias is not None]
        self.bias = freeze(torch.cat(biases).to(dtype)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.weight.dtype) @ self.weight
        return y if self.bias is None else y + self.bias


class StepAttention(nn.Module):
    """Computes a packed projection, query and key norms if any, and attention; the caller applies `o_proj`."""

    def __init__(self, attention: Attention, dialect: Dialect[Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.attend = attention.config, dialect.attend
        self.qkv_proj = Projection(dtype, attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = Projection(dtype, attention.o_proj)
        self.q_norm = Norm(attention.q_norm, dialect) if self.config.qk_norm else None
        self.k_norm = Norm(attention.k_norm, dialect) if self.config.qk_norm else None

    def forward(self, x: Tensor, frame: Any, past: Cache | None) -> tuple[Tensor, ...]:
        """Returns mixed values [batch, width, heads * head_dim], not yet projected, and the new KV cache."""
        packed, c = self.qkv_proj(x), self.config
        if self.q_norm is None or self.k_norm is None:
            return self.attend(c, frame, packed, None, None, past)
        query, key, value = split_qkv(c, packed)
        query = self.q_norm(query.view(*x.shape[:2], c.heads, c.head_dim)).flatten(-2).to(packed.dtype)
        key = self.k_norm(key.view(*x.shape[:2], c.kv_heads, c.head_dim)).flatten(-2).to(packed.dtype)
        return self.attend(c, frame, query, key, value, past)


class StepLayer(nn.Module):
    """Computes one transformer layer; with `rows`, computes everything after its attention only for these rows."""

    def __init__(self, layer: Layer, dialect: Dialect[Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = Norm(layer.input_layernorm, dialect)
        self.post_attention_layernorm = Norm(layer.post_attention_layernorm, dialect)
        self.self_attn = StepAttention(layer.self_attn, dialect, dtype)
        self.gate_proj, self.up_proj = Projection(dtype, layer.mlp.gate_proj), Projection(dtype, layer.mlp.up_proj)
        self.down_proj = Projection(dtype, layer.mlp.down_proj)

    def forward(
        self, x: Tensor, frame: Any, past: Cache | None, rows: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        mixed, *present = self.self_attn(self.input_layernorm(x), frame, past)
        if rows is not None:
            x, mixed = pick(x, rows), pick(mixed, rows)
        x = x + self.self_attn.o_proj(mixed).float()
        inner = self.post_attention_layernorm(x)
        gated = F.silu(self.gate_proj(inner)) * self.up_proj(inner)
        return x + self.down_proj(gated).float(), tuple(present)


class StepGraph(nn.Module):
    """Computes one forward pass, over a KV cache or, with `full` attention, without one.

    capacity: maximum of the KV cache's positions. dtype: of weights, heads and KV cache. top_k: number of top tokens
    that are outputs, 0 for none. candidates: whether log-probabilities of tokens that the host names are outputs. The
    weights have only shape and dtype (`lazy_weights.make_skeleton`).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        capacity: int,
        dialect: Dialect[Any],
        dtype: torch.dtype,
        top_k: int,
        candidates: bool = False,
    ) -> None:
        super().__init__()
        self.candidates = candidates
        self.top_k, self.host_sets_top_k = top_k, bool(top_k) and dialect.host_sets_top_k
        model, config = make_skeleton(checkpoint.model), checkpoint.model
        self.full = not checkpoint.decoding.has_cache
        self.vocab, self.frame, self.dtype = checkpoint.count_vocab(), dialect.frame, dtype
        self.argmax = dialect.argmax
        self.kv_heads, self.head_dim = config.kv_heads, config.head_dim
        self.embedding = freeze(model.embed_tokens.weight.to(dtype))  # [vocab, hidden]
        # None if tied: if the embedding had a second name, the exporter would keep one of the two.
        self.head = None if config.tied else freeze(model.lm_head.weight.to(dtype))  # [vocab, hidden]
        self.layers = nn.ModuleList(StepLayer(layer, dialect, dtype) for layer in model.layers)  # type: ignore[arg-type]
        self.norm = Norm(model.norm, dialect)
        barred = torch.zeros(config.vocab)
        barred[[checkpoint.decoding.mask_id, *checkpoint.list_missing_ids()]] = MASKED_LOGIT
        barred[self.vocab :] = MASKED_LOGIT
        cos, sin = compute_rotary_tables(
            torch.arange(capacity), config.head_dim, config.rope_theta, config.rope_scaling
        )
        self.barred, self.cos, self.sin = freeze(barred), freeze(cos), freeze(sin)

    def forward(self, input_ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Runs the forward pass. rest: past_length, visible, rows and the KV cache; without a KV cache only rows.

        After these come the number of top tokens, int64 [1], if the host chooses it, and then the candidates, if any.
        """
        candidates = None
        if self.candidates:
            rest, candidates = rest[:-1], rest[-1]
        top_k: Tensor | int = self.top_k
        if self.host_sets_top_k:
            rest, top_k = rest[:-1], rest[-1]
        past_length, visible, cache = torch.zeros(1, dtype=torch.int64), None, rest[1:]
        rows = rest[0]
        if not self.full:
            past_length, visible, rows = rest[:3]
            cache = rest[3:]
        length = None if self.full else cache[0].shape[2]
        frame = self.frame(
            AttentionPositions(past_length, input_ids.shape[1], length, visible, self.cos, self.sin, self.dtype)
        )
        x = F.embedding(input_ids, self.embedding).float()
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            past = None if self.full else (cache[2 * i], cache[2 * i + 1])
            x, new = layer(x, frame, past, rows if i == len(self.layers) - 1 else None)
            present += new
        return (*self._predict(self.norm(x), top_k, candidates), *present)

    def _predict(self, x: Tensor, top_k: Tensor | int, candidates: Tensor | None) -> tuple[Tensor, ...]:
        """Returns token, confidence and entropy, each [batch, n], from hidden states [batch, n, hidden].

        After these, if requested, top_token and top_logprob [batch, n, K], and candidate_logprob [batch, n, C].
        """
        logits = self._logits(x.flatten(0, 1))  # [batch * n, vocab]
        token = self.argmax(logits)  # [batch * n, 1]
        probs = torch.softmax(logits, dim=-1)
        confidence = probs.gather(1, token)  # [batch * n, 1]
        behind = logits - logits.gather(1, token)  # <= 0, so a confident row's small entropy keeps its digits
        entropy = -(probs * behind).sum(-1, keepdim=True) - confidence.log()
        out = [part.view(*x.shape[:2]) for part in (token, confidence, entropy)]
        if not self.top_k and candidates is None:
            return tuple(out)
        best, log_best = (part.view(*x.shape[:2], 1) for part in (logits.gather(1, token), confidence.log()))
        each = logits.view(*x.shape[:2], -1)  # [batch, n, vocab]
        if self.top_k:
            values, top_token = torch.topk(each, count(top_k))  # [batch, n, K]
            out += [top_token, values - best + log_best]  # the difference is exact if it is small
        if candidates is not None:
            out.append(each.gather(2, candidates) - best + log_best)  # a log of the softmax would underflow
        return tuple(out)

    def _logits(self, x: Tensor) -> Tensor:
        """Returns the logits of every token, fp32 [rows, vocab]; the mask token and ids without a token are barred."""
        head = self.embedding if self.head is None else self.head
        if self.dtype == torch.float32:
            return F.linear(x, head, self.barred)  # one Gemm, which takes a tied head as it is
        return F.linear(x.to(self.dtype), head).float() + self.barred  # fp16 cannot hold MASKED_LOGIT


def count(top_k: Tensor | int) -> int:
    """Returns the number of top tokens; if it is an input, int64 [1], the tracer does not know its value."""
    wanted: Any = top_k if isinstance(top_k, int) else top_k[0].item()
    torch._check(wanted >= 0)  # type: ignore[no-untyped-call]
    return cast(int, wanted)


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """Picks the rows [batch, n] of x [batch, width, size]. Returns [batch, n, size]."""
    batch, width = x.shape[:2]
    if batch == 1:
        return x.index_select(1, rows[0])
    places = torch.arange(batch)[:, None] * width + rows  # [batch, n]
    return x.flatten(0, 1).index_select(0, places.flatten()).view(*rows.shape, -1)


def freeze(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def trace(
    checkpoint: Checkpoint,
    capacity: int,
    dialect: str = "ort",
    dtype: torch.dtype = torch.float32,
    batch: int | None = 1,
    top_k: int = 0,
    candidates: bool = False,
) -> ir.Model:
    """Traces the step graph to an ONNX model; width and n are open, and the KV-cache capacity if the dialect allows it.

    The weights are read from the checkpoint one by one when the model is written. The values between layers are named
    `hidden.0` (the embeddings) to `hidden.{layers}`.

    capacity: maximum of the KV cache's positions. dtype: of weights, heads and KV cache: fp32, fp16 or bf16. batch:
    number of sequences, None to leave it open. top_k: adds so many top tokens to the outputs; in the dialects `ort` and
    `standard` an input `top_k` gives their number. candidates: adds the input `candidates`, any number of tokens per
    row, and the output of their log-probabilities. Raises UserError for a head size that the dialect does not take.
    """
    shape, chosen = checkpoint.model, DIALECTS[dialect]
    if shape.head_dim % chosen.head_multiple:
        raise UserError(f"head_dim is {shape.head_dim}; ONNX Runtime's attention takes multiples of 8")
    graph = StepGraph(checkpoint, capacity, chosen, dtype, top_k, candidates).eval()
    names, inputs, axes = describe_inputs(graph, capacity, chosen, batch)
    presents = [name_cache_part(part)[1] for part in range(0 if graph.full else 2 * shape.layers)]
    outputs = [*REDUCED, *(TOP if top_k else ()), *((CANDIDATE_OUTPUT,) if candidates else ()), *presents]
    model, fake = translate(graph, chosen.opset, names, inputs, axes, outputs)
    for value in model.graph.outputs:
        if graph.host_sets_top_k and value.name in TOP and value.shape is not None:
            value.shape = ir.Shape([*value.shape[:2], "top_k"])  # named as the input that sets it
    name_hidden_states(model)
    remove_metadata(model)
    attach(model, fake, checkpoint.weights)
    return model


def translate(
    graph: StepGraph,
    opset: int,
    names: Sequence[str],
    inputs: Sequence[Tensor],
    axes: Sequence[dict[int, str]],
    outputs: Sequence[str],
) -> tuple[ir.Model, tuple[str, ...]]:
    """Returns the module as an optimized ONNX model without weights, and the weights' names, for `attach`."""
    with silence_exporter():
        program = torch.onnx.export(
            graph,
            tuple(inputs),
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(axes[0], tuple(axes[1:])),
            verbose=False,
            optimize=False,
        )
        if program is None:
            raise AssertionError("the exporter returned nothing")
        fake = set_aside(program.model)
        optimizer.optimize_ir(program.model)
    return program.model, fake


def describe_inputs(
    graph: StepGraph, capacity: int, dialect: Dialect[Any], batch: int | None
) -> tuple[list[str], list[Tensor], list[dict[int, str]]]:
    """Returns the graph's inputs: their names, example tensors, and the names of their dynamic axes."""
    size, some = batch or 2, {} if batch else {0: "batch"}
    ids, rows = torch.zeros(size, 8, dtype=torch.int64), torch.zeros(size, 3, dtype=torch.int64)
    wide, logits = {**some, 1: "width"}, {**some, 1: "n"}
    inputs: list[tuple[str, Tensor, dict[int, str]]] = [("input_ids", ids, wide), ("rows", rows, logits)]
    if not graph.full:
        between = [("past_length", torch.full((size,), 5), some), ("visible", torch.ones_like(ids), wide)]
        inputs = [inputs[0], *between, inputs[1]]
        # One tensor per input: the exporter takes a tensor given twice as one input, and so mixes up keys and values.
        length = 64 if dialect.host_sets_capacity else capacity
        shape = (size, graph.kv_heads, length, graph.head_dim)
        lengths = {**some, 2: "capacity"} if dialect.host_sets_capacity else some
        parts = range(2 * len(graph.layers))
        inputs += [(name_cache_part(part)[0], torch.zeros(shape, dtype=graph.dtype), lengths) for part in parts]
    if graph.host_sets_top_k:
        inputs.append(("top_k", torch.tensor([graph.top_k]), {}))
    if graph.candidates:
        inputs.append((CANDIDATE_INPUT, torch.zeros(size, 3, 5, dtype=torch.int64), {**logits, 2: "c"}))
    names, tensors, axes = zip(*inputs, strict=True)
    return list(names), list(tensors), list(axes)


def remove_metadata(model: ir.Model) -> None:
    """Removes the exporter's metadata: its stack traces name folders of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def silence_exporter() -> Iterator[None]:
    """Silences the exporter's warnings, which are about its internals and packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
