"""Parity layer by layer: each part of a written graph alone against PyTorch, where the whole is too large to hold.

The parts meet at the hidden states that the graph names, and together they are the graph: the embedding, every layer
over a cache that is partly filled, and what follows the last. Inputs are random; weights are read for one part alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from runtime.backend import Floats, Proposal
from runtime.contract import Contract
from runtime.ort import REDUCED, cache_names, load_session
from train.checkpoint import Checkpoint
from train.model import Layer, Model, RMSNorm, prefix_mask, rotary_tables
from train.torch_backend import StaticCache, TorchBackend

from .parity import BOUNDS as LOG_PROBS
from .parity import Check, worst

# The largest difference of a number, in units of the root mean square of what the part adds (a layer), makes (keys,
# values) or looks up (the embedding).
BOUNDS = {"fp32": 1e-4, "fp16": 0.05, "int8": 1.0}
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


@torch.no_grad()
def layer(source: Checkpoint, contract: Contract, parts: Parts, i: int) -> tuple[float, float, float]:
    """How far a layer's output, new keys and new values are apart; the latter 0 with `full` attention."""
    rng, full, last = np.random.default_rng(SEED + i), contract.attention == "full", i == contract.layers - 1
    length = contract.canvas if full else parts.length(contract.capacity)
    width = length if full else min(2 * contract.block, length // 2)
    past = 0 if full else length - width
    x = (SCALE * rng.standard_normal((1, width, source.model.width))).astype(parts.dtype(f"hidden.{i}"))
    rows = rng.integers(0, width, (1, ROWS))
    visible = np.full((1, width), width) if full else rng.integers(1, length + 1, (1, width))
    feeds: dict[str, NDArray[Any]] = {f"hidden.{i}": x, "input_ids": np.zeros((1, width), np.int64), "rows": rows}
    names = [] if full else [cache_names(2 * i), cache_names(2 * i + 1)]
    if not full:
        feeds |= {"past_length": np.array([past]), "visible": visible}
    for name, _ in names:
        feeds[name] = np.zeros((1, contract.kv_heads, length, contract.head_dim), parts.dtype(name))
        feeds[name][:, :, :past] = rng.standard_normal(feeds[name][:, :, :past].shape)
    made, *present = parts.run(feeds, [f"hidden.{i + 1}", *(name for _, name in names)])
    theirs, *written = reference(source, contract, i, x, visible, past, [feeds[name] for name, _ in names])
    kept = rows[0] if last else np.arange(width)
    added = theirs - x
    new = [each if each.shape[2] == width else each[:, :, past : past + width] for each in present]
    cached = [distance(ours, other, other) for ours, other in zip(new, written, strict=True)] or [0.0, 0.0]
    return distance(made, theirs[:, kept], added), cached[0], cached[1]


def reference(
    source: Checkpoint, contract: Contract, i: int, x: Floats, visible: NDArray[np.int64], past: int,
    caches: Sequence[Floats],
) -> list[Floats]:  # fmt: skip
    """A layer in PyTorch: its output for hidden states [1, width, hidden], and the keys and values it wrote."""
    config, width = source.model, x.shape[1]
    alone = loaded(Layer, (config, 0), source.weights, f"layers.{i}.")
    cos, sin = rotary_tables(
        torch.arange(past, past + width)[None, None], config.head_dim, config.rope_theta, config.rope_scaling
    )
    mask = prefix_mask(torch.from_numpy(visible), past + width)
    store = None
    if caches:
        store = StaticCache(replace(contract, layers=1), 1, past + width, torch.float32)
        store.past = torch.tensor([past])
        for whole, given in zip((store.keys[0], store.values[0]), caches, strict=True):
            whole[:, :, :past] = torch.from_numpy(given[:, :, :past])
    made = alone(torch.from_numpy(x).float(), cos, sin, mask, store)
    written = [] if store is None else [store.keys[0], store.values[0]]
    return [made.numpy(), *(each[:, :, past : past + width].numpy() for each in written)]


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
    return TorchBackend(empty, contract).propose(logits), made


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
