"""Parity layer by layer: each part of a written graph alone against PyTorch, where the whole is too large to hold.

The parts meet at the hidden states that the graph names, and together they are the graph: the embedding, every layer
over a cache that is partly filled, and what follows the last. Inputs are random; weights are read for one part alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from runtime.backend import Floats, Proposal
from runtime.contract import Contract, cache_names
from runtime.ort import REDUCED, load_session
from train.checkpoint import Checkpoint
from train.model import Layer, Model, RMSNorm, prefix_mask, rotary_tables
from train.torch_backend import StaticCache, TorchBackend

from .parity import BOUNDS as LOG_PROBS
from .parity import Check, worst

# The largest difference of a number, in units of the root mean square of what the part adds (a layer), makes (keys,
# values) or looks up (the embedding).
BOUNDS = {"fp32": 1e-4, "fp16": 0.05, "int8": 1.0, "int8-static": 2.0, "fp8": 1.0, "int4": 2.0, "nvfp4": 2.0}
LENGTH = 256  # of the cache at the most, where the graph leaves it open
SCALE = 0.1  # of random hidden states: so small that the sum with them hides nothing of what a layer adds
ROWS, IDS, SEED = 8, 64, 30
SLICE = 8192  # tokens of the head at a time, so that it is never held in fp32 as a whole

Arrays = Mapping[str, NDArray[Any]]


def by_layer(source: Checkpoint, contract: Contract, model: Path, precision: str) -> Iterator[Check]:
    """The checks `embedding`, `layers` and `head` of the graph in `model`, whose weights lie in or beside it.

    Writes a part of the graph beside the model while it runs it. Peak memory is that of the largest part.
    """
    parts, bound = Parts(model), BOUNDS[precision]
    apart = embedding(source, contract, parts)
    yield Check("embedding", apart <= bound, f"{apart:.1e} of its rms (bound {bound:.0e})")
    found = [layer(source, contract, parts, i) for i in tqdm(range(contract.layers), unit="layer", disable=None)]
    hidden, keys, values = (worst(0.0, np.array(column)) for column in zip(*found, strict=True))
    detail = f"layer by layer, {len(found)} of them: {hidden:.1e} of what a layer adds (layer {weakest(found)}), "
    detail += f"keys {keys:.1e} and values {values:.1e} of their rms (bound {bound:.0e})"
    yield Check("layers", worst(0.0, np.array([hidden, keys, values])) <= bound, detail)
    ours, theirs = head(source, contract, parts)
    log_prob = worst(0.0, np.log(ours.confidence) - np.log(theirs.confidence))
    entropy, tokens = worst(0.0, ours.entropy - theirs.entropy), int((ours.token != theirs.token).sum())
    detail = f"max |d log p| {log_prob:.1e} (bound {LOG_PROBS[precision]:.0e}), entropy {entropy:.1e}, "
    yield Check("head", log_prob <= LOG_PROBS[precision], detail + f"{tokens} of {ours.token.size} tokens differ")


def weakest(found: Sequence[tuple[float, float, float]]) -> int:
    return int(np.argmax([hidden for hidden, _, _ in found]))


class Parts:
    """A written graph, of which parts are run, each in a session of its own."""

    def __init__(self, model: Path) -> None:
        self.path, self.model = model, ir.load(model)
        self._values = ir.convenience.create_value_mapping(self.model.graph)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Of a value of the graph."""
        kind = self._values[name].dtype
        if kind is None:
            raise AssertionError(f"{name} has no type")
        return kind.numpy()

    def length(self, capacity: int) -> int:
        """Positions of a cache: as many as the graph wants, where it leaves that open at most LENGTH and `capacity`."""
        shape = self._values[cache_names(0)[0]].shape
        size = shape[2] if shape is not None else None
        return size if isinstance(size, int) else min(LENGTH, capacity)

    def run(self, feeds: Arrays, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Values of the graph by their names, where the values of `feeds` are these."""
        graph = ir.convenience.extract(self.model.graph, list(feeds), list(outputs))
        file = self.path.with_name("part.onnx")  # beside the weights, which it names
        ir.save(ir.Model(graph, ir_version=self.model.ir_version), file)
        try:
            made: list[NDArray[Any]] = load_session(file).run(list(outputs), dict(feeds))
        finally:
            file.unlink()
        return made


def embedding(source: Checkpoint, contract: Contract, parts: Parts) -> float:
    """How far looked-up rows are apart, those of the first and last ids among them."""
    ids = np.random.default_rng(SEED).integers(0, contract.vocab, (1, IDS))
    ids[0, :3] = 0, contract.mask_id, contract.vocab - 1
    [made] = parts.run({"input_ids": ids}, ["hidden.0"])
    rows = source.weights["embed_tokens.weight"][torch.from_numpy(ids)].float().numpy()
    return distance(made, rows, rows)


@dataclass(frozen=True, slots=True)
class Case:
    """Random inputs of a layer.

    x [1, width, hidden]; visible int64 [1, width], how many positions each of them sees, behind `past` others; rows
    int64 [1, n], which of the last layer's are kept; cache: keys and values [1, kv_heads, length, head_dim] by their
    names, filled up to `past`, none with `full` attention.
    """

    x: Floats
    visible: NDArray[np.int64]
    past: int
    rows: NDArray[np.int64]
    cache: dict[str, NDArray[Any]]


def drawn(source: Checkpoint, contract: Contract, parts: Parts, i: int) -> Case:
    """Inputs of layer i: as many new positions as a fused step has, each with a prefix of its own, over a cache."""
    rng, full = np.random.default_rng(SEED + i), contract.attention == "full"
    length = contract.canvas if full else parts.length(contract.capacity)
    width = length if full else min(2 * contract.block, length // 2)
    past = length - width
    x = SCALE * rng.standard_normal((1, width, source.model.width))
    visible = np.full((1, width), width) if full else rng.integers(1, length + 1, (1, width))
    cache = {}
    for name, _ in () if full else (cache_names(2 * i), cache_names(2 * i + 1)):
        cache[name] = np.zeros((1, contract.kv_heads, length, contract.head_dim), parts.dtype(name))
        cache[name][:, :, :past] = rng.standard_normal(cache[name][:, :, :past].shape)
    rows = rng.integers(0, width, (1, ROWS))
    return Case(x.astype(parts.dtype(f"hidden.{i}")), visible, past, rows, cache)


def layer(source: Checkpoint, contract: Contract, parts: Parts, i: int) -> tuple[float, float, float]:
    """How far a layer's output, new keys and new values are apart; the latter 0 with `full` attention."""
    case = drawn(source, contract, parts, i)
    width = case.x.shape[1]
    feeds: dict[str, NDArray[Any]] = {
        f"hidden.{i}": case.x,
        "input_ids": np.zeros((1, width), np.int64),
        "rows": case.rows,
        **case.cache,
    }
    if case.cache:
        feeds |= {"past_length": np.array([case.past]), "visible": case.visible}
    names = [cache_names(2 * i + kind)[1] for kind in range(len(case.cache))]
    made, *present = parts.run(feeds, [f"hidden.{i + 1}", *names])
    theirs, *written = reference(source, contract, i, case)
    kept = case.rows[0] if i == contract.layers - 1 else np.arange(width)
    # A present is the whole cache, or the new positions alone.
    new = [each if each.shape[2] == width else each[:, :, case.past : case.past + width] for each in present]
    cached = [distance(ours, other, other) for ours, other in zip(new, written, strict=True)] or [0.0, 0.0]
    return distance(made, theirs[:, kept], theirs - case.x), cached[0], cached[1]


@torch.no_grad()
def reference(source: Checkpoint, contract: Contract, i: int, case: Case) -> list[Floats]:
    """A layer in PyTorch: its output [1, width, hidden], and the keys and values that it wrote."""
    c, past, end = source.model, case.past, case.past + case.x.shape[1]
    alone = loaded(Layer, (c, 0), source.weights, f"layers.{i}.")
    cos, sin = rotary_tables(torch.arange(past, end)[None, None], c.head_dim, c.rope_theta, c.rope_scaling)
    store = StaticCache(replace(contract, layers=1), 1, end, torch.float32) if case.cache else None
    kept = [] if store is None else [store.keys[0], store.values[0]]  # [1, kv_heads, positions, head_dim]
    if store is not None:
        store.past = torch.tensor([past])
        for whole, given in zip(kept, case.cache.values(), strict=True):
            whole[:, :, :past] = torch.from_numpy(given[:, :, :past])
    mask = prefix_mask(torch.from_numpy(case.visible), end)
    made = alone(torch.from_numpy(case.x).float(), cos, sin, mask, store)
    return [made.numpy(), *(each[:, :, past:end].numpy() for each in kept)]


@torch.no_grad()
def head(source: Checkpoint, contract: Contract, parts: Parts) -> tuple[Proposal, Proposal]:
    """What PyTorch and the graph predict of random states behind the last layer."""
    config, name = source.model, f"hidden.{contract.layers}"
    x = np.random.default_rng(SEED).standard_normal((1, ROWS, config.width)).astype(parts.dtype(name))
    made = Proposal(*parts.run({name: x}, REDUCED))
    norm = loaded(RMSNorm, (config.width, config.norm_eps), source.weights, "norm.")
    normed = norm(torch.from_numpy(x).float())
    weight = source.weights["embed_tokens.weight" if config.tied else "lm_head.weight"]  # [vocab, hidden]
    logits = torch.cat([normed @ some.float().T for some in torch.split(weight, SLICE)], dim=-1)[..., : contract.vocab]
    with torch.device("meta"):
        empty = Model(config)
    return TorchBackend(empty, contract, barred=source.missing_ids()).propose(logits), made


def loaded(kind: Any, sizes: tuple[Any, ...], weights: Mapping[str, Tensor], prefix: str) -> Any:
    """A module in fp32 with the weights whose names begin so, and no others held."""
    with torch.device("meta"):
        module = kind(*sizes)
    state = {name: weights[prefix + name].float() for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def distance(ours: NDArray[Any], theirs: Floats, unit: Floats) -> float:
    """The largest difference in units of the root mean square of `unit`; a NaN stays one."""
    return float(worst(0.0, ours - theirs) / np.sqrt(np.mean(np.square(unit, dtype=np.float64))))
