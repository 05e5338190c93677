"""Proves parity layer by layer: each part of a written graph against PyTorch, for models too large to hold whole.

The graph is cut at its named hidden states into the embedding, the layers, and what follows the last layer; together
the parts are the whole graph. Layers run over a partly filled KV cache. Inputs are random; only one part's weights are
read at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from export.precisions import PRECISIONS
from export.quantization.ort_formats import OrtFormats
from export.quantization.ort_int8 import Int8Linear, restore_rows
from runtime.backend import Floats, Forward, Proposal
from runtime.contract import CANDIDATE_INPUT, CANDIDATE_OUTPUT, REDUCED, TOP, Contract, name_cache_part
from runtime.engines.ort.ort_session import load_session
from runtime.proof.judge import Check
from train.checkpoint import Checkpoint
from train.torch_backend import StaticCache, TorchBackend
from train.transformer.network import Layer, RMSNorm, Transformer, compute_rotary_tables, make_prefix_mask

from .compare import find_worst
from .log_prob_gaps import add_candidates, subtract_candidates, subtract_top
from .quantized_reference import quantize_module

LENGTH = 256  # maximum of the KV cache's positions, if the graph leaves the capacity open
SCALE = 0.1  # of random hidden states; small, so that they do not hide an error in what a layer adds to them
ROWS, IDS, SEED = 8, 64, 30
SLICE = 8192  # tokens of the head that are computed at a time, so that it is never held in fp32 as a whole

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """Holds how far a part's output is from PyTorch's, and how far it may be.

    A graph with quantized weights is compared with its own arithmetic in PyTorch (`quantized_reference`). Its bound is
    the distance of that arithmetic from the unquantized model: usual gaps are far smaller, and a wrong scale or product
    exceeds it.
    """

    apart: float
    bound: float

    @property
    def kept(self) -> bool:
        return self.apart <= self.bound  # False for a NaN

    def __str__(self) -> str:
        return f"{self.apart:.1e} (bound {self.bound:.0e})"


def check_by_layer(
    source: Checkpoint, contract: Contract, model: Path, precision: str, formats: OrtFormats | None = None
) -> Iterator[Check]:
    """Yields the checks `embedding`, `layers` and `head` of the graph in `model`, whose weights are in or next to it.

    formats: of the weights, if PyTorch can repeat the graph's arithmetic; the graph is then compared with that, as
    exactly as in fp32. Each part is written next to the model while it runs. Peak memory is that of the largest part.
    """
    # Integer products are computed by other kernels if their weights are not packed: they keep the layout that runs.
    parts, exact = Parts(model, prepacking=formats is not None), "fp32" if formats else precision
    looked_up = measure_embedding(source, contract, parts, exact, formats)
    yield Check("embedding", looked_up.kept, f"{looked_up} of its rms")
    numbers = tqdm(range(contract.layers), unit="layer", disable=None)
    found = [measure_layer(source, contract, parts, i, exact, formats) for i in numbers]
    beside = f"; compared with {precision} in PyTorch, bound: what that loses" if formats else ""
    first, *cached = (find_weakest(column) for column in zip(*found, strict=True))
    detail = f"layer by layer, {len(found)} of them: {first[1]} of what a layer adds (layer {first[0]})"
    if cached:
        detail += f", keys {cached[0][1]} and values {cached[1][1]} of their rms"
    yield Check("layers", all(gap.kept for gaps in found for gap in gaps), detail + beside)
    gap, figures = measure_head(source, contract, parts, exact, formats)
    what = f"max |d log p|{' of the top-1 and the top tokens' if contract.top_k else ''}"
    what += " and of candidates" if contract.candidates else ""
    yield Check("head", gap.kept, f"{what} {gap}, {figures}" + beside)


def find_weakest(gaps: Sequence[LayerDifference]) -> tuple[int, LayerDifference]:
    """Returns the layer that comes closest to its bound, or one with a NaN, and its gap."""
    shares = [gap.apart / gap.bound if gap.apart == gap.apart else math.inf for gap in gaps]
    place = int(np.argmax(shares))
    return place, gaps[place]


class Parts:
    """Runs parts of a written graph, each in a session of its own.

    prepacking: as in `load_session`. Without it, a head in fp16, whose product a CPU computes in fp32, is in memory
    twice (2 + 4 bytes per weight) and not three times.
    """

    def __init__(self, model: Path, prepacking: bool = True) -> None:
        self.path, self.model, self._prepacking = model, ir.load(model), prepacking
        self._values = ir.convenience.create_value_mapping(self.model.graph)

    def read_dtype(self, name: str) -> np.dtype[Any]:
        """Returns the dtype of a value of the graph."""
        kind = self._values[name].dtype
        if kind is None:
            raise AssertionError(f"{name} has no type")
        return kind.numpy()

    def takes(self, name: str) -> bool:
        """Returns whether the graph has an input of that name."""
        return any(value.name == name for value in self.model.graph.inputs)

    def choose_length(self, capacity: int) -> int:
        """Returns the KV-cache capacity: the graph's, or the smaller of LENGTH and `capacity` if it is left open."""
        shape = self._values[name_cache_part(0)[0]].shape
        size = shape[2] if shape is not None else None
        return size if isinstance(size, int) else min(LENGTH, capacity)

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Returns the graph's values with the names `outputs`, computed from the values in `feeds`."""
        graph = ir.convenience.extract(self.model.graph, list(feeds), list(outputs))
        file = self.path.with_name("part.onnx")  # next to the weight files, which it refers to
        ir.save(ir.Model(graph, ir_version=self.model.ir_version), file)
        try:
            session = load_session(file, allow_spinning=False, prepacking=self._prepacking)
            made: list[NDArray[Any]] = session.run(list(outputs), dict(feeds))
        finally:
            file.unlink()
        return made


def measure_embedding(
    source: Checkpoint, contract: Contract, parts: Parts, precision: str, formats: OrtFormats | None = None
) -> LayerDifference:
    """Returns the gap of looked-up embeddings, among them those of the first id, the mask and the last id."""
    ids = np.random.default_rng(SEED).integers(0, contract.vocab, (1, IDS))
    ids[0, :3] = 0, contract.mask_id, contract.vocab - 1
    [made] = parts.run({"input_ids": ids}, ["hidden.0"])
    rows = source.weights["embed_tokens.weight"][torch.from_numpy(ids)].float()  # [1, IDS, hidden]
    near = restore_rows(rows[0])[None] if formats else rows
    # No activation is rounded here, so the bound is the precision's (fp32's if quantized), not what int8 loses.
    return LayerDifference(measure_distance(made, near.numpy(), rows.numpy()), PRECISIONS[precision].layer)


@dataclass(frozen=True, slots=True)
class Case:
    """Holds random inputs of a layer.

    x [1, width, hidden], hidden states after `past` positions of the KV cache; visible int64 [1, width], attention
    prefix lengths; rows int64 [1, width], the order in which the last layer keeps rows; cache: keys and values
    [1, kv_heads, length, head_dim] by name, filled up to `past`, empty with `full` attention.
    """

    x: Floats
    visible: NDArray[np.int64]
    past: int
    rows: NDArray[np.int64]
    cache: dict[str, NDArray[Any]]


def sample_case(source: Checkpoint, contract: Contract, parts: Parts, i: int) -> Case:
    """Samples inputs of layer i: the positions of a fused step, each with its own attention prefix length."""
    rng, full = np.random.default_rng(SEED + i), not contract.has_cache
    length = contract.canvas if full else parts.choose_length(contract.capacity)
    width = length if full else min(2 * contract.block, length // 2)
    past = length - width
    x = SCALE * rng.standard_normal((1, width, source.model.width))
    visible = np.full((1, width), width) if full else rng.integers(1, length + 1, (1, width))
    cache = {}
    for name, _ in () if full else (name_cache_part(2 * i), name_cache_part(2 * i + 1)):
        cache[name] = np.zeros((1, contract.kv_heads, length, contract.head_dim), parts.read_dtype(name))
        cache[name][:, :, :past] = rng.standard_normal(cache[name][:, :, :past].shape)
    rows = rng.permutation(width)[None]  # all rows, since int8 has one scale over the rows that are kept
    return Case(x.astype(parts.read_dtype(f"hidden.{i}")), visible, past, rows, cache)


def measure_layer(
    source: Checkpoint, contract: Contract, parts: Parts, i: int, precision: str, formats: OrtFormats | None = None
) -> list[LayerDifference]:
    """Returns the gap of a layer's output and, with a KV cache, those of its new keys and values."""
    case = sample_case(source, contract, parts, i)
    made = [each.astype(np.float32) for each in run_layer(parts, i, case)]
    exact = run_reference_layer(source, contract, i, case)
    near = run_reference_layer(source, contract, i, case, formats) if formats else exact
    units = [exact[0] - case.x, *exact[1:]]
    if i == contract.layers - 1:  # [1, width, hidden], in the order of its rows
        exact[0], near[0] = exact[0][:, case.rows[0]], near[0][:, case.rows[0]]
    return [
        LayerDifference(
            measure_distance(ours, theirs, unit), max(PRECISIONS[precision].layer, measure_distance(theirs, best, unit))
        )
        for ours, theirs, best, unit in zip(made, near, exact, units, strict=True)
    ]


def run_layer(parts: Parts, i: int, case: Case) -> list[NDArray[Any]]:
    """Runs the graph's layer: returns its output [1, width, hidden], and new keys and values as in `Case`."""
    width = case.x.shape[1]
    feeds: dict[str, NDArray[Any]] = {
        f"hidden.{i}": case.x,
        "input_ids": np.zeros((1, width), np.int64),
        "rows": case.rows,
        **case.cache,
    }
    if case.cache:
        feeds |= {"past_length": np.array([case.past]), "visible": case.visible}
    names = [name_cache_part(2 * i + kind)[1] for kind in range(len(case.cache))]
    made, *present = parts.run(feeds, [f"hidden.{i + 1}", *names])
    # A present is the whole KV cache, or only the new positions.
    new = [each if each.shape[2] == width else each[:, :, case.past : case.past + width] for each in present]
    return [made, *new]


@torch.no_grad()
def run_reference_layer(
    source: Checkpoint, contract: Contract, i: int, case: Case, formats: OrtFormats | None = None
) -> list[Floats]:
    """Runs one layer in PyTorch: returns its output [1, width, hidden], and the keys and values that it wrote."""
    c, past, end = source.model, case.past, case.past + case.x.shape[1]
    alone = load_module(Layer, (c, 0), source.weights, f"layers.{i}.")
    if formats:
        quantize_module(alone, formats.bind_layer(i, contract.layers))
    cos, sin = compute_rotary_tables(torch.arange(past, end)[None, None], c.head_dim, c.rope_theta, c.rope_scaling)
    store = StaticCache(replace(contract, layers=1), 1, end, torch.float32) if case.cache else None
    kept = [] if store is None else [store.keys[0], store.values[0]]  # [1, kv_heads, positions, head_dim]
    if store is not None:
        store.past = torch.tensor([past])
        for whole, given in zip(kept, case.cache.values(), strict=True):
            whole[:, :, :past] = torch.from_numpy(given[:, :, :past])
    mask = make_prefix_mask(torch.from_numpy(case.visible), end)
    made = alone(torch.from_numpy(case.x).float(), cos, sin, mask, store)
    return [made.numpy(), *(each[:, :, past:end].numpy() for each in kept)]


def measure_head(
    source: Checkpoint, contract: Contract, parts: Parts, precision: str, formats: OrtFormats | None = None
) -> tuple[LayerDifference, str]:
    """Returns the gap of log-probabilities for random states after the last layer, and more figures as text.

    The gap is the largest of the top-1 tokens and, if the graph outputs them, of top tokens and candidates.
    """
    name = f"hidden.{contract.layers}"
    x = np.random.default_rng(SEED).standard_normal((1, ROWS, source.model.width)).astype(parts.read_dtype(name))
    feeds: dict[str, NDArray[Any]] = {name: x}
    if parts.takes("top_k"):
        feeds["top_k"] = np.array([contract.top_k])
    rows = np.zeros((1, ROWS), np.int64)
    forward = Forward(rows, rows[0], rows, rows)
    forward = add_candidates(forward, contract, [contract.mask_id, *source.list_missing_ids()], SEED)
    if forward.candidates is not None:
        feeds[CANDIDATE_INPUT] = forward.candidates
    names = (*REDUCED, *(TOP if contract.top_k else ()), *((CANDIDATE_OUTPUT,) if contract.candidates else ()))
    found = dict(zip(names, parts.run(feeds, names), strict=True))
    made = Proposal(**found)
    exact, every = predict_in_pytorch(source, contract, x)
    near, all_near = predict_in_pytorch(source, contract, x, int8=True) if formats else (exact, every)
    bound = max(PRECISIONS[precision].log_prob, measure_log_prob_gap(near, exact, every))
    entropy, tokens = find_worst(0.0, near.entropy - made.entropy), int((near.token != made.token).sum())
    apart = measure_log_prob_gap(made, near, all_near)
    if contract.candidates:
        apart = find_worst(apart, subtract_candidates(all_near, forward, made))
    return LayerDifference(apart, bound), f"entropy {entropy:.1e}, {tokens} of {made.token.size} tokens differ"


def predict_in_pytorch(
    source: Checkpoint, contract: Contract, x: Floats, int8: bool = False
) -> tuple[Proposal, Tensor]:
    """Returns PyTorch's predictions, and all log-probabilities [1, n, vocab], for last states x [1, n, hidden]."""
    [found] = predict_states(source, contract, [x], int8)
    return found


@torch.no_grad()
def predict_states(
    source: Checkpoint, contract: Contract, states: Sequence[Floats], int8: bool = False
) -> list[tuple[Proposal, Tensor]]:
    """Predicts like `predict_in_pytorch` for several states; reads (int8: quantizes) each slice of the head once."""
    config = source.model
    norm = load_module(RMSNorm, (config.width, config.norm_eps), source.weights, "norm.")
    normed = [norm(torch.from_numpy(x).float()) for x in states]
    weight = source.weights["embed_tokens.weight" if config.tied else "lm_head.weight"]  # [vocab, hidden]
    columns: list[list[Tensor]] = [[] for _ in states]
    for some in torch.split(weight, SLICE):
        product = Int8Linear(some) if int8 else partial(torch.matmul, other=some.float().T)
        for made, x in zip(columns, normed, strict=True):
            made.append(product(x))
    with torch.device("meta"):
        empty = Transformer(config)
    backend, found = TorchBackend(empty, contract, barred=source.list_missing_ids()), list[tuple[Proposal, Tensor]]()
    for made in columns:
        proposal = backend.propose(torch.cat(made, dim=-1)[..., : contract.vocab], top=bool(contract.top_k))
        assert backend.log_probs is not None  # they were just made
        found.append((proposal, backend.log_probs))
    return found


def measure_log_prob_gap(ours: Proposal, theirs: Proposal, log_probs: Tensor) -> float:
    """Returns the largest difference, in nats, over the top-1 tokens and the top tokens, if any.

    log_probs [1, n, vocab]: those of all tokens of `theirs`.
    """
    best = np.log(ours.confidence) - np.log(theirs.confidence)
    return find_worst(0.0, best, *([] if ours.top_token is None else [subtract_top(log_probs, ours)]))


def load_module(kind: Any, sizes: tuple[Any, ...], weights: Mapping[str, Tensor], prefix: str) -> Any:
    """Returns a module in fp32 with the weights whose names begin with `prefix`; loads no others."""
    with torch.device("meta"):
        module = kind(*sizes)
    state = {name: weights[prefix + name].float() for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def measure_distance(ours: NDArray[Any], theirs: Floats, unit: Floats) -> float:
    """Returns the largest difference in units of the root mean square of `unit`, NaN if there is a NaN."""
    return float(find_worst(0.0, ours - theirs) / np.sqrt(np.mean(np.square(unit, dtype=np.float64))))
