"""Defines the contract: what a decoder must know of a model, as plain values, checked once, for every engine.

Differences between model families are data here, never an `if family ==` elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from .checked_fields import NUMBER_LIMIT, FieldRule, number, one_of, optional, parse_fields, row, whole
from .decoding.gate import COMPARE, RULES, Unit
from .errors import UserError

ALIGNMENTS = ("prompt", "absolute", "end")
ATTENTIONS = ("block_causal", "full", "causal_context", "causal")
CAUSAL = ATTENTIONS[2:]  # committed tokens see nothing after themselves: the model can also decode autoregressively
MODES = ("block", "speculative", "causal")
CACHES = ("in_place", "delta", "none")
METRICS = ("confidence", "entropy")
REDUCED = ("token", "confidence", "entropy")  # a step graph's outputs per logits row
TOP = ("top_token", "top_logprob")  # further outputs of a graph that was exported with top tokens
CANDIDATE_INPUT, CANDIDATE_OUTPUT = "candidates", "candidate_logprob"  # of a graph that was exported with candidates
# Far above any model's values. A manifest with larger ones is damaged: arrays of such sizes would take all memory.
FIELD_LIMITS = {
    "block": 1 << 12, "canvas": 1 << 20, "capacity": 1 << 24, "vocab": 1 << 24, "layers": 1 << 10, "kv_heads": 1 << 10,
    "head_dim": 1 << 12, "batch": 1 << 12,
}  # fmt: skip
TOKEN = whole(0)
TEMPERATURE = number(0.01, 100.0)  # a decision temperature


def size(name: str) -> FieldRule:
    """Returns what the field `name` may hold: a whole number from 1 to its limit."""
    return whole(1, FIELD_LIMITS.get(name, NUMBER_LIMIT))


@dataclass(frozen=True, slots=True)
class GateSpec:
    """Describes a model's gate, as its authors use it.

    rule: `threshold` accepts the positions whose metric compares with the threshold; `factor` the n most confident
    ones, for the largest n with (n + 1)(1 - confidence of the n-th) < threshold (Fast-dLLM, arXiv 2505.22618);
    `count` the `min` best ones. min: the fewest positions accepted per step. sub_block: the size of sub-blocks; a step
    accepts only in the first one with a masked position. eos_guard: until this share of the answer is unmasked, end
    tokens rank last and do not fill up `min` (CD4LM's CAD, arXiv 2601.02236).
    """

    rule: Annotated[str, one_of(RULES)] = "threshold"
    metric: Annotated[str, one_of(METRICS)] = "confidence"
    comparator: Annotated[str, one_of(COMPARE)] = ">="
    threshold: Annotated[float, number(0)] = 0.9
    min: Annotated[int, whole(1)] = 1
    sub_block: Annotated[int | None, optional(whole(1))] = None
    eos_guard: Annotated[float, number(0, 1, "a share of the answer, from 0 to 1")] = 0.0

    @property
    def unit(self) -> Unit | None:
        """Returns the unit of its threshold; None for a rule without a threshold."""
        return RULES[self.rule].units[self.metric]

    def check_threshold(self, threshold: float, vocab: int) -> float:
        """Returns the threshold if it is in its unit's range; raises UserError otherwise."""
        if self.unit is None:
            raise UserError("a threshold was given, but this gate accepts a fixed count per step; leave it out")
        high = self.unit.highest(vocab)
        if not 0 <= threshold <= high:
            raise UserError(f"threshold {threshold} is outside [0, {high:.4g}] of {self.metric}; give one inside it")
        return float(threshold)

    def require_threshold(self, vocab: int) -> float:
        """Returns the gate's own threshold, checked if its rule uses one."""
        return self.threshold if self.unit is None else self.check_threshold(self.threshold, vocab)


@dataclass(frozen=True, slots=True)
class Contract:
    """Describes an exported model: its shape, token ids and decoding rules.

    alignment, attention, shift: see docs/bundle-format.md. modes: how the model can be decoded, the default first
    (`decoding.options`). block: tokens, of the largest block if sizes differ (`decoding.block_layout`). canvas: answer
    positions that a `full` model is run with. capacity: maximum of positions in a KV cache. vocab: number of ids.
    dtype: of PyTorch's model; an engine's KV cache has the type that its own graph declares. max_prompt: the longest
    prompt, if an engine takes fewer tokens at once than the KV cache holds and a prompt is one span. top_k: how many of
    the most probable tokens an engine returns per row on request; 0: only the top-1 token. candidates: maximum of
    tokens per row, named by the host, whose log-probabilities an engine returns on request; 0: none.
    """

    alignment: Annotated[str, one_of(ALIGNMENTS)]
    attention: Annotated[str, one_of(ATTENTIONS)]
    shift: bool
    cache: Annotated[str, one_of(CACHES)]
    block: Annotated[int, size("block")]
    canvas: Annotated[int, size("canvas")]
    capacity: Annotated[int, size("capacity")]
    mask_id: Annotated[int, TOKEN]
    eos_ids: Annotated[tuple[int, ...], FieldRule("a list of token ids", lambda ids: isinstance(ids, list | tuple))]
    pad_id: Annotated[int, TOKEN]
    vocab: Annotated[int, size("vocab")]
    layers: Annotated[int, size("layers")]
    kv_heads: Annotated[int, size("kv_heads")]
    head_dim: Annotated[int, size("head_dim")]
    dtype: str
    gate: GateSpec
    top_k: Annotated[int, whole(0)] = 0
    batch: Annotated[int, size("batch")] = 1
    max_prompt: Annotated[int | None, optional(whole(1))] = None
    modes: Annotated[tuple[str, ...], row(one_of(MODES), f"a list of {', '.join(MODES)}", len(MODES))] = MODES[:1]
    candidates: Annotated[int, whole(0)] = 0

    @property
    def has_cache(self) -> bool:
        """Whether it has a KV cache; a `full` model computes the whole sequence in every forward pass."""
        return self.attention != "full"

    @property
    def commits_causally(self) -> bool:
        """Whether committed tokens, the prompt's too, see nothing after themselves, as in an autoregressive model."""
        return self.attention in CAUSAL

    @property
    def autoregressive(self) -> bool:
        """Whether it only decodes token by token: without the mode `block`, or with blocks of one token that the token
        before predicts."""
        return "block" not in self.modes or (self.has_cache and self.shift and self.block == 1)

    @property
    def seeded(self) -> bool:
        """Whether the last committed row predicts a block's first token, accepted before the rest is predicted.

        In such a model a row predicts its own token in a block, but the next token once it is committed.
        """
        return self.attention == "causal_context" and not self.shift

    @property
    def plainest_mode(self) -> str:
        """Returns the mode in which engines are compared, whatever the default.

        In the mode `speculative` near ties in drafts would change the steps.
        """
        return "block" if "block" in self.modes else "causal"

    @property
    def drafts_ahead(self) -> bool:
        """Whether the forward pass that verifies a draft can also make the next one, from masks after it.

        A seeded model cannot: its draft follows a token that only the verification gives.
        """
        return self.attention == "causal" or (self.attention == "causal_context" and self.shift)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for the manifest."""
        values = {**asdict(self), "eos_ids": list(self.eos_ids)}
        if self.max_prompt is None:
            del values["max_prompt"]
        if not self.candidates:
            del values["candidates"]
        if self.modes == MODES[:1]:  # left out, as in older versions, which knew no other mode
            del values["modes"]
        else:
            values["modes"] = list(self.modes)
        return values


def put_first(modes: Sequence[str], mode: str) -> tuple[str, ...]:
    """Returns `modes` with `mode` first, as the default. Raises UserError if it is not one of them."""
    if mode not in modes:
        raise UserError(f"mode is {mode!r}; this model decodes in the mode {' or '.join(modes)}")
    return (mode, *(each for each in modes if each != mode))


def name_cache_part(part: int) -> tuple[str, str]:
    """Returns a KV-cache part's input and output name; the parts: keys of layer 0, its values, keys of layer 1, ..."""
    kind = f"{part // 2}.{'value' if part % 2 else 'key'}"
    return f"past_key_values.{kind}", f"present.{kind}"


def parse_gate(values: Any) -> GateSpec:
    """Returns a gate from plain values. Raises UserError naming the field that is wrong."""
    if isinstance(values, dict) and "max" in values and values["max"] is None:  # a field of older versions
        values = {name: value for name, value in values.items() if name != "max"}
    gate = parse_fields(GateSpec, values, "gate")
    rule = RULES[gate.rule]
    if gate.metric not in rule.units:
        raise UserError(f"gate.rule {gate.rule} compares {', '.join(rule.units)}; got the metric {gate.metric}")
    if rule.compares and (gate.comparator[0] == ">") != (gate.metric == "confidence"):
        raise UserError(f"gate: {gate.metric} {gate.comparator} would accept the worst positions first")
    return gate


def parse_contract(values: Any) -> Contract:
    """Returns a contract from a manifest's plain values. Raises UserError naming the field that is wrong."""
    contract = parse_fields(Contract, values, "contract", eos_ids=tuple, gate=parse_gate, modes=tuple)
    if contract.top_k >= contract.vocab:
        raise UserError(f"contract.top_k is {contract.top_k}, not below the vocabulary of {contract.vocab}")
    if contract.candidates >= contract.vocab:
        raise UserError(f"contract.candidates is {contract.candidates}, not below the vocabulary of {contract.vocab}")
    _check_tokens(contract)
    if contract.canvas % contract.block:
        raise UserError(f"contract.canvas {contract.canvas} is not a multiple of block {contract.block}")
    contract.gate.require_threshold(contract.vocab)
    if (contract.cache == "none") == contract.has_cache:
        raise UserError(f"contract.cache is {contract.cache} with attention {contract.attention}; only full has none")
    _check_modes(contract)
    return contract


def _check_modes(contract: Contract) -> None:
    attention, modes = contract.attention, contract.modes
    if len({*modes}) < len(modes):
        raise UserError(f"contract.modes is {', '.join(modes)}; expected each once")
    if not contract.commits_causally and modes != MODES[:1]:
        raise UserError(f"contract.modes is {', '.join(modes)} with attention {attention}; {CAUSAL} alone have others")
    if attention == "causal" and ("block" in modes or not contract.shift):
        raise UserError("contract.attention is causal, whose rows predict the next token: no mode block, and a shift")
    if attention == "causal_context" and contract.alignment != "prompt":
        raise UserError(f"contract.alignment is {contract.alignment} with attention {attention}; expected prompt")


def _check_tokens(contract: Contract) -> None:
    named = [("mask_id", contract.mask_id), ("pad_id", contract.pad_id), *(("eos_ids", e) for e in contract.eos_ids)]
    for name, token in named:
        if not TOKEN.holds(token):
            raise UserError(f"contract.{name} is {token!r}; expected {TOKEN.text}")
        if token >= contract.vocab:
            raise UserError(f"contract.{name} is {token}, not below the vocabulary of {contract.vocab}")
    if not contract.eos_ids:
        raise UserError("contract.eos_ids is empty; expected at least one end token")
    if contract.mask_id in contract.eos_ids:
        raise UserError(f"contract.mask_id {contract.mask_id} is an end token too; expected different ids")
