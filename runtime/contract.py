"""What a decoder must know of a model: plain values, checked once, the same for every engine.

What differs between model families is data here and never an `if family ==` elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import UserError

ALIGNMENTS = ("prompt", "absolute", "end")
ATTENTIONS = ("block_causal", "full")
CACHES = ("in_place", "delta", "none")
RULES = ("threshold", "factor", "count")
METRICS = ("confidence", "entropy")
COMPARATORS = (">=", ">", "<=", "<")
REDUCED = ("token", "confidence", "entropy")  # what a step graph says of each row
TOP = ("top_token", "top_logprob")  # and where it was exported with top tokens
# Far above any model's: a manifest that says more is damaged, and what is sized by it would take all memory.
FIELD_LIMITS = {
    "block": 1 << 12, "canvas": 1 << 20, "capacity": 1 << 24, "vocab": 1 << 24, "layers": 1 << 10, "kv_heads": 1 << 10,
    "head_dim": 1 << 12, "batch": 1 << 12,
}  # fmt: skip
NUMBER_LIMIT = 1 << 24  # of any other number


@dataclass(frozen=True, slots=True)
class GateSpec:
    """The accept rule of a model, as its authors decode with it.

    rule: `threshold` accepts what compares with the threshold, `factor` the longest best-first run of n with
    (n + 1)(1 - confidence) < threshold (Fast-dLLM, arXiv 2505.22618), `count` exactly `min`. `min` and `max` bound the
    positions accepted a step; `sub_block` confines a step to the first sub-block with an open position; `eos_guard` is
    the share of the answer before which end tokens rank last and do not fill up `min` (CD4LM's CAD, arXiv 2601.02236).
    """

    rule: str = "threshold"
    metric: str = "confidence"
    comparator: str = ">="
    threshold: float = 0.9
    min: int = 1
    max: int | None = None
    sub_block: int | None = None
    eos_guard: float = 0.0

    def check_threshold(self, threshold: float, vocab: int) -> float:
        """The threshold, if it lies in the metric's range; raises UserError otherwise."""
        low, high = 0.0, 1.0
        if self.rule == "count":
            raise UserError("a threshold was given, but this gate accepts a fixed count a step; leave it out")
        if self.rule == "factor":
            high = math.inf
        elif self.metric == "entropy":
            high = math.log(vocab)
        if not low <= threshold <= high:
            raise UserError(
                f"threshold {threshold} is outside [{low:g}, {high:.4g}] of {self.metric}; give one inside it"
            )
        return float(threshold)


@dataclass(frozen=True, slots=True)
class Contract:
    """Shape, ids and decoding rules of an exported model.

    alignment, attention, shift: see the README's table. block, canvas, capacity: tokens. `canvas` is how many answer
    positions a `full` model is run with, `capacity` the most positions a cache may hold. vocab: ids. dtype: of
    PyTorch's model; an engine's cache has the type that its own graph declares. max_prompt: the longest prompt, where
    an engine takes fewer tokens at once than the cache holds and a prompt is one span. top_k: how many of the most
    likely tokens an engine gives with each row where they are asked for; 0: the best alone.
    """

    alignment: str
    attention: str
    shift: bool
    cache: str
    block: int
    canvas: int
    capacity: int
    mask_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    vocab: int
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    gate: GateSpec
    top_k: int = 0
    batch: int = 1
    max_prompt: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        values = {**asdict(self), "eos_ids": list(self.eos_ids)}
        if self.max_prompt is None:
            del values["max_prompt"]
        return values


def cache_names(part: int) -> tuple[str, str]:
    """Input and output name of a part of the cache: keys of layer 0, its values, keys of layer 1, ..."""
    kind = f"{part // 2}.{'value' if part % 2 else 'key'}"
    return f"past_key_values.{kind}", f"present.{kind}"


def parse_gate(values: Any) -> GateSpec:
    """A gate from plain values. Raises UserError naming the field that is wrong."""
    values = _known(GateSpec, values, "gate")
    gate = GateSpec(**values)
    for name, allowed in {"rule": RULES, "metric": METRICS, "comparator": COMPARATORS}.items():
        _one_of(f"gate.{name}", getattr(gate, name), allowed)
    _number("gate.threshold", gate.threshold, 0)
    _integer("gate.min", gate.min, 1)
    _number("gate.eos_guard", gate.eos_guard, 0)
    if gate.eos_guard > 1:
        raise UserError(f"gate.eos_guard is {gate.eos_guard}; expected a share of the answer, from 0 to 1")
    for name in ("max", "sub_block"):
        if getattr(gate, name) is not None:
            _integer(f"gate.{name}", getattr(gate, name), 1)
    if gate.max is not None and gate.max < gate.min:
        raise UserError(f"gate.max is {gate.max}, below gate.min {gate.min}; expected min <= max")
    if gate.rule == "factor" and gate.metric != "confidence":
        raise UserError("gate.rule factor compares confidences; got the metric entropy")
    if gate.rule == "threshold" and (gate.comparator[0] == ">") != (gate.metric == "confidence"):
        raise UserError(f"gate: {gate.metric} {gate.comparator} would accept the worst positions first")
    return gate


def parse_contract(values: Any) -> Contract:
    """A contract from plain values, as a manifest holds them. Raises UserError naming the field that is wrong."""
    values = _known(Contract, values, "contract")
    if not isinstance(values["eos_ids"], list | tuple):
        raise UserError(f"contract.eos_ids is {values['eos_ids']!r}; expected a list of token ids")
    contract = Contract(**{**values, "eos_ids": tuple(values["eos_ids"]), "gate": parse_gate(values["gate"])})
    for name, allowed in {"alignment": ALIGNMENTS, "attention": ATTENTIONS, "cache": CACHES}.items():
        _one_of(f"contract.{name}", getattr(contract, name), allowed)
    if not isinstance(contract.shift, bool):
        raise UserError(f"contract.shift is {contract.shift!r}; expected true or false")
    for name, most in FIELD_LIMITS.items():
        _integer(f"contract.{name}", getattr(contract, name), 1, most)
    _integer("contract.top_k", contract.top_k, 0)
    if contract.top_k >= contract.vocab:
        raise UserError(f"contract.top_k is {contract.top_k}, not below the vocabulary of {contract.vocab}")
    if contract.max_prompt is not None:
        _integer("contract.max_prompt", contract.max_prompt, 1)
    _check_tokens(contract)
    if contract.canvas % contract.block:
        raise UserError(f"contract.canvas {contract.canvas} is not a multiple of block {contract.block}")
    if contract.gate.rule != "count":
        contract.gate.check_threshold(contract.gate.threshold, contract.vocab)
    if (contract.cache == "none") != (contract.attention == "full"):
        raise UserError(f"contract.cache is {contract.cache} with attention {contract.attention}; only full has none")
    return contract


def _check_tokens(contract: Contract) -> None:
    named = [("mask_id", contract.mask_id), ("pad_id", contract.pad_id), *(("eos_ids", e) for e in contract.eos_ids)]
    for name, token in named:
        _integer(f"contract.{name}", token, 0)
        if token >= contract.vocab:
            raise UserError(f"contract.{name} is {token}, not below the vocabulary of {contract.vocab}")
    if not contract.eos_ids:
        raise UserError("contract.eos_ids is empty; expected at least one end token")
    if contract.mask_id in contract.eos_ids:
        raise UserError(f"contract.mask_id {contract.mask_id} is an end token too; expected different ids")


def _known(kind: type, values: Any, name: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{name} is {type(values).__name__}; expected an object")
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(values.keys() - known.keys()):
        raise UserError(f"{name} has unknown fields {', '.join(unknown)}; it was written by another version")
    needed = {n for n, f in known.items() if f.default is f.default_factory}  # both are the MISSING marker
    if missing := sorted(needed - values.keys()):
        raise UserError(f"{name} lacks {', '.join(missing)}; export the bundle again")
    return dict(values)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")


def _integer(name: str, value: Any, least: int, most: int = NUMBER_LIMIT) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} is {value!r}; expected a whole number from {least} to {most}")


def _number(name: str, value: Any, least: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= NUMBER_LIMIT:
        raise UserError(f"{name} is {value!r}; expected a number from {least:g} to {NUMBER_LIMIT}")
