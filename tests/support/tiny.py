"""Tiny random models, contracts, checkpoints and the one scripted backend that the tests share."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backend import Forward, Proposal
from runtime.contract import Contract, parse_contract

if TYPE_CHECKING:  # what needs torch imports it itself: tests of the runtime alone run without
    from train.checkpoint import Checkpoint
    from train.transformer.network import ModelConfig, Transformer

FULL = "BLOCKSTEP_FULL" in os.environ  # the full product of parameters, as `make test-all` sets it
PAD, END, MASK, VOCAB, BLOCK = 0, 1, 2, 24, 4
ATTENTIONS = ("block_causal", "full")  # that go with every alignment and shift

CONTRACT: dict[str, Any] = {
    "alignment": "prompt", "attention": "block_causal", "shift": False, "cache": "in_place", "block": BLOCK,
    "canvas": 3 * BLOCK, "capacity": 64, "mask_id": MASK, "eos_ids": [END], "pad_id": PAD, "vocab": VOCAB, "layers": 2,
    "kv_heads": 2, "head_dim": 8, "dtype": "float32", "gate": {"threshold": 0.5},
}  # fmt: skip


def contract(**changes: Any) -> Contract:
    """The contract of `model`, with some fields changed; `gate` is a dict of what differs from the defaults."""
    cache = {"cache": "none"} if changes.get("attention") == "full" else {}
    return parse_contract({**CONTRACT, **cache, **changes})


def shape(seed: int) -> ModelConfig:
    """A shape that fits `CONTRACT`; its options vary with the seed.

    Each option is on and off, in two combinations: a graph of another shape is traced anew. All
    eight come with FULL.
    """
    from train.transformer.network import ModelConfig

    rng = random.Random(seed)
    qk_norm, qkv_bias, tied = (rng.random() < 0.5 for _ in range(3))
    if not FULL:
        qkv_bias, tied = not qk_norm, qk_norm
    return ModelConfig(VOCAB, 32, 2, 4, 2, 8, 48, qk_norm=qk_norm, qkv_bias=qkv_bias, tied=tied)


def model(seed: int, config: ModelConfig | None = None) -> Transformer:
    """A random model with weights so large that its tokens and confidences vary, biases and norms included."""
    import torch

    from train.transformer.network import Transformer, initialize

    made = initialize(Transformer(config or shape(seed)), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            else:
                parameter *= 8
    return made.eval()


def checkpoint(seed: int = 0, config: ModelConfig | None = None, **decoding: Any) -> Checkpoint:
    """A whole tiny checkpoint, with a tokenizer of bytes alone. config: a shape other than the seed's."""
    from train.checkpoint import Checkpoint, Decoding
    from train.data.bpe import train_tokenizer

    chosen = {
        name: CONTRACT[name] for name in ("alignment", "attention", "shift", "block", "canvas", "mask_id", "pad_id")
    }
    chosen |= {"context": 64, "eos_ids": (END,), "gate": {"threshold": 0.5}} | decoding
    weights = dict(model(seed, config).state_dict())
    return Checkpoint(config or shape(seed), Decoding(**chosen), weights, train_tokenizer(["a b"], 300).to_str())


def certain(seed: int, token: int, lead: float, **decoding: Any) -> Checkpoint:
    """A checkpoint that scores `token` above all others whatever it reads, by about five times `lead`.

    The first number of every hidden state is the embedding's, since no layer adds to it, and that token's row of the
    head alone reads it.
    """
    made = checkpoint(seed, **decoding)
    weights = {name: weight.clone() for name, weight in made.weights.items()}
    head = weights.setdefault("lm_head.weight", weights["embed_tokens.weight"].clone())  # [vocab, width]
    head[:, 0], weights["embed_tokens.weight"][:, 0], weights["norm.weight"][0] = 0, 8, 1
    head[token, 0] = lead
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[0] = 0
    return replace(made, model=replace(made.model, tied=False), weights=weights)


def prompt(rng: random.Random, length: int) -> NDArray[np.int64]:
    """Random tokens, end and mask tokens among them. int64 [length]

    Not the mask token alone: all positions of a full model are then one and the same, and every decision a tie.
    """
    while set(tokens := [rng.randrange(VOCAB) for _ in range(length)]) == {MASK}:
        pass
    return np.array(tokens, np.int64)


def choose_seed() -> int:
    """A seed drawn now, or the one in BLOCKSTEP_SEED, to see a failure again; tests put it into their messages."""
    return int(os.environ.get("BLOCKSTEP_SEED") or random.SystemRandom().randrange(2**31))


Script = Callable[[Forward], Proposal]


class Scripted:
    """A backend without a model: it answers what its script says, and remembers what it was asked.

    Where a script says more than was asked, it speaks of the whole canvas [batch, block].
    """

    name = "scripted"

    def __init__(self, contract: Contract, script: Script) -> None:
        self.contract, self.script = contract, script
        self.opened: list[tuple[int, int]] = []
        self.forwards: list[Forward] = []

    def open(self, batch: int, capacity: int) -> None:
        self.opened.append((batch, capacity))

    def forward(self, forward: Forward) -> Proposal:
        self.forwards.append(replace(forward, input_ids=forward.input_ids.copy()))  # the canvas goes on changing
        out, c = self.script(forward), self.contract
        if out.token.shape == forward.rows.shape:
            return out
        places = (forward.rows + c.shift - forward.input_ids.shape[1]) % c.block  # the canvas ends the forward
        return Proposal(*(np.take_along_axis(part, places, axis=1) for part in out.list_arrays()))

    def keep(self, rows: NDArray[Any]) -> None:
        pass


def proposal(token: Any, confidence: Any) -> Proposal:
    """A proposal from lists [batch, n]; the entropy falls as the confidence rises."""
    sure = np.array(confidence, np.float32)
    return Proposal(np.array(token, np.int64), sure, 1 - sure)


def canvases(*lines: tuple[Sequence[int], Sequence[float]]) -> Script:
    """A script of one sequence: (tokens, confidences) [block] for each forward that has a canvas in it."""
    left = iter(lines)

    def script(forward: Forward) -> Proposal:
        if MASK not in forward.input_ids:  # a prefill or commit of its own: nobody reads what it predicts
            return proposal([[3]], [[0.5]])
        token, confidence = next(left)
        return proposal([token], [confidence])

    return script


def arbitrary(seed: int, levels: int = 4) -> Script:
    """Random tokens, never the mask token, which no backend proposes, and random scores with many ties."""
    rng = np.random.default_rng(seed)
    tokens = np.array([token for token in range(VOCAB) if token != MASK])

    def script(forward: Forward) -> Proposal:
        size = forward.rows.shape
        confidence, entropy = (rng.integers(0, levels + 1, size).astype(np.float32) / levels for _ in range(2))
        return Proposal(rng.choice(tokens, size), confidence, entropy)

    return script
