"""Records a reference of a model that is too large to hold whole, one layer after the other.

Every layer runs two forward passes of one prompt: the prompt with a masked block, then the block half unmasked over the
prompt's KV cache. The engine is too large as well, so bounds are not measured with it. They come from the same passes
over slightly changed embeddings, which change results more than another machine's rounding does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from export.precisions import PRECISIONS
from export.quantization.ort_formats import OrtFormats, choose_formats
from export.quantization.ort_int8 import restore_rows
from runtime.backend import Floats, Forward, Proposal
from runtime.bundle.manifest import Engine
from runtime.bundle.reference import TOP, RecordedForward, Reference
from runtime.contract import Contract
from runtime.decoding.loop import decode_steps
from runtime.decoding.options import Request
from runtime.proof.judge import Check
from runtime.proof.replay import ReplayResult, compute_mean_norms
from train.checkpoint import Checkpoint
from train.torch_backend import StaticCache
from train.transformer.network import Layer, ModelConfig, compute_rotary_tables, make_prefix_mask

from .by_layer import load_module, predict_states
from .quantized_reference import RowsLayer, quantize_module
from .record import Recording, compute_scatter, copy_of, derive_bounds, write_recording

FORWARDS = 2
# Relative change of embeddings, by the dtype of an engine's products: more than their rounding.
OFF = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}
SEED = 40


def record_streamed(
    source: Checkpoint, contract: Contract, engine: Engine, request: Request, formats: OrtFormats | None, folder: Path
) -> Recording:
    """Records a reference for an engine and writes it into a folder. Peak memory is that of the largest part."""
    forwards = draft(contract, request)
    passes = [StreamedPasses(source, forwards, formats, each) for each in (0.0, OFF[derive_dtype(engine)])]
    for i in tqdm(range(contract.layers), unit="layer", disable=None):
        alone = load_module(Layer, (source.model, 0), source.weights, f"layers.{i}.")
        layer = RowsLayer(quantize_module(alone, formats.bind_layer(i, contract.layers)) if formats else alone)
        for each in passes:
            each.run_layer(source.model, contract, layer, i == contract.layers - 1)
        del alone, layer  # before the next one is read
    states = [each.take_logits_states(place) for each in passes for place in range(len(forwards))]
    found = predict_states(source, contract, states, bool(formats))
    halves = found[: len(forwards)], found[len(forwards) :]
    recorded, scattered = (each.make_recorded(half) for each, half in zip(passes, halves, strict=True))
    replayed = make_replay(scattered, contract.top_k)
    bounds = derive_bounds(engine, recorded, replayed, compute_scatter(recorded, replayed))
    rows = sum(each.entropy.size for each in recorded)
    check = Check("reference", True, f"{len(recorded)} forward passes, {rows} logits rows, recorded layer by layer")
    return write_recording(engine, Reference(tuple(recorded)), bounds, len(recorded), bounds, check, folder)


def derive_dtype(engine: Engine) -> str:
    """Returns the type of an engine's products; ONNX Runtime computes quantized products in fp32 or exactly."""
    row = PRECISIONS[engine.precision]
    return "float32" if choose_formats(engine.dialect, engine.precision) else row.dtype


class ModelFreeBackend:
    """Acts as a backend without a model, which is certain of the first half of the rows only."""

    name = "draft"

    def __init__(self, contract: Contract, token: int) -> None:
        self.contract, self.token, self.forwards = contract, token, list[Forward]()

    def open(self, batch: int, capacity: int) -> None:
        pass

    def keep(self, rows: NDArray[Any]) -> None:
        pass

    def forward(self, forward: Forward) -> Proposal:
        self.forwards.append(copy_of(forward, self.contract.top_k > 0))
        first = np.arange(forward.rows.shape[1])[None] < max(1, forward.rows.shape[1] // 2)  # [1, n]
        confidence = np.where(first, 1.0, 1e-3).astype(np.float32)
        return Proposal(np.full(forward.rows.shape, self.token), confidence, 5 * (1 - confidence))


def draft(contract: Contract, request: Request) -> list[Forward]:
    """Returns the first forward passes that the decode loop runs for a request if half of the block is accepted."""
    backend = ModelFreeBackend(contract, int(request.prompt[0]))
    for _ in decode_steps(backend, [request], mode=backend.contract.plainest_mode):
        if len(backend.forwards) >= FORWARDS:
            break
    return backend.forwards[:FORWARDS]


class StreamedPasses:
    """Holds the hidden states of forward passes between two layers.

    hidden: per forward pass, [1, width, hidden]; norms: those of new keys and values, [2], per forward pass and layer
    run so far. off: relative change of the embeddings.
    """

    def __init__(self, source: Checkpoint, forwards: Sequence[Forward], formats: OrtFormats | None, off: float) -> None:
        noise, table = torch.Generator().manual_seed(SEED), source.weights["embed_tokens.weight"]
        self.forwards, self.norms = forwards, [list[NDArray[np.float64]]() for _ in forwards]
        self.hidden: list[Tensor] = []
        for forward in forwards:
            rows = table[torch.from_numpy(forward.input_ids[0])].float()
            rows = restore_rows(rows) if formats else rows
            self.hidden.append((rows * (1 + off * torch.randn(rows.shape, generator=noise)))[None])

    @torch.no_grad()
    def run_layer(self, config: ModelConfig, contract: Contract, layer: RowsLayer, last: bool) -> None:
        """Runs one layer for all forward passes in turn, over one KV cache; the last layer only for logits rows."""
        end = max(int(each.past_length[0]) + each.input_ids.shape[1] for each in self.forwards)
        store = StaticCache(replace(contract, layers=1), 1, end, torch.float32) if contract.has_cache else None
        for place, forward in enumerate(self.forwards):
            past, width = int(forward.past_length[0]), forward.input_ids.shape[1]
            positions = torch.arange(past, past + width)[None, None]
            cos, sin = compute_rotary_tables(positions, config.head_dim, config.rope_theta, config.rope_scaling)
            mask = make_prefix_mask(torch.from_numpy(forward.visible), past + width)
            layer.rows = torch.from_numpy(forward.rows) if last else torch.arange(width)[None]
            if store is not None:
                store.past = torch.tensor([past])
            self.hidden[place] = layer(self.hidden[place], cos, sin, mask, store)
            if store is not None:
                new = [part[0][:, :, past : past + width] for part in (store.keys, store.values)]
                self.norms[place].append(compute_mean_norms(torch.stack(new).numpy())[0])

    def take_logits_states(self, place: int) -> Floats:
        """Returns the hidden states of a forward pass's logits rows, after the last layer. fp32 [1, n, hidden]"""
        states: Floats = self.hidden[place][:, self.forwards[place].rows[0]].numpy()
        return states

    def make_recorded(self, found: Sequence[tuple[Proposal, Tensor]]) -> list[RecordedForward]:
        """Returns the recorded forward passes, given the head's predictions for each."""
        made = []
        for place, (forward, (out, log_probs)) in enumerate(zip(self.forwards, found, strict=True)):
            best = log_probs[0].topk(min(TOP, int(torch.isfinite(log_probs[0]).sum(-1).min())))  # [n, K]
            norms = np.array(self.norms[place], np.float32).reshape(-1, 2)
            top = best.indices.numpy(), best.values.numpy()
            made.append(RecordedForward(place == 0, forward, *top, out.entropy[0], norms))
        return made


def make_replay(forwards: Sequence[RecordedForward], top_k: int) -> ReplayResult:
    """Returns recorded forward passes as a replay by an engine with `top_k` top tokens."""
    token, top = (np.concatenate([getattr(each, name) for each in forwards]) for name in ("top_token", "top_logprob"))
    norms = np.stack([each.norms for each in forwards]).astype(np.float64)
    entropy = np.concatenate([each.entropy for each in forwards])
    return ReplayResult(token[:, 0], top[:, 0], entropy, top[:, :top_k] if top_k else None, norms)
