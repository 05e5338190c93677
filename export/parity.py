"""How far an engine is from PyTorch: the same forwards through both, and whole answers token for token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backend import Backend, Bools, Floats, Forward, Proposal
from runtime.contract import Contract, GateSpec
from runtime.decode import Request, Step, steps
from train.torch_backend import TorchBackend

# The bounds on |delta log p|, in nats. Only fp32 is exact; how the others were found is in LOG.md. ONNX Runtime's
# dynamic int8 has none here: what it costs is the model's own, see `int8_torch.whole_bound`.
BOUNDS = {
    "fp32": 1e-4, "fp16": 0.1, "bf16": 1.0, "int8": 2.0, "int8-static": 4.0, "fp8": 4.0, "int4": 6.0, "nvfp4": 6.0,
}  # fmt: skip
LOG_PROB = BOUNDS["fp32"]
TIE = 1e-5  # a decision of PyTorch's closer than that may fall otherwise on random models
SEPARATE = 4  # one request in so many is answered with commits of their own too


@dataclass(frozen=True, slots=True)
class Distance:
    """Largest absolute differences over some forwards.

    tokens: how often the best one differed; log_prob: of the best token's log-probability, and of every token's where
    the graph has logits; entropy in nats; keys, values: of what the forwards wrote.
    """

    forwards: int = 0
    rows: int = 0
    tokens: int = 0
    log_prob: float = 0.0
    entropy: float = 0.0
    keys: float = 0.0
    values: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that differs. step: the first step that does; closest: by how little PyTorch decided there."""

    request: int
    fused: bool
    step: int
    closest: float


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, whether it is as it should be, and what was seen."""

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"[{'ok' if self.ok else 'x'}] {self.name}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Parity:
    """What a comparison found: distances over `answers` whole answers, and the answers that differ."""

    distance: Distance = Distance()
    answers: int = 0
    differing: tuple[Difference, ...] = ()

    def checks(self, tie: float = 0.0, precision: str = "fp32", bound: float | None = None) -> tuple[Check, Check]:
        """Whether the bounds are kept; a NaN keeps none. Answers whose closest call is under `tie` are excused.

        In a precision other than fp32 answers may differ: they are counted, and only the bound decides. bound: in nats,
        by default that of the precision.
        """
        d, bound = self.distance, BOUNDS[precision] if bound is None else bound
        real = [each for each in self.differing if not each.closest < tie]
        detail = f"{len(real)} of {self.answers} differ from PyTorch"
        if len(real) < len(self.differing):
            detail += f"; {len(self.differing) - len(real)} more where PyTorch itself decided by less than {tie:g}"
        if real:
            first = real[0]
            detail += f"; first request {first.request}, step {first.step}, decided by {first.closest:.1e}"
        distances = f"entropy {d.entropy:.1e}, keys {d.keys:.1e}, values {d.values:.1e}, {d.tokens} of {d.rows} tokens"
        steps = f"max |d log p| {d.log_prob:.1e} (bound {bound:.0e}) in {d.forwards} forwards; differ: {distances}"
        if precision != "fp32":
            detail += f" (no bound: {precision} is not exact)"
        return Check("steps", d.log_prob <= bound, steps), Check("answers", not real or precision != "fp32", detail)


class Candidate(Backend, Protocol):
    """An engine whose cache [2 * layers, batch, kv_heads, capacity, head_dim] and logits, if any, can be looked at."""

    last_logits: Floats | None

    @property
    def cache(self) -> NDArray[Any]: ...


class SideBySide:
    """Runs every forward on both backends, the cache of each its own, and goes on with what the reference says."""

    name = "side by side"

    def __init__(self, reference: TorchBackend, candidate: Candidate) -> None:
        self.reference, self.candidate, self.distance = reference, candidate, Distance()
        self.recent: list[tuple[int, Floats]] = []  # since the last step: width, gap of the two best tokens [n]
        self.first: Floats = np.ones(1, np.float32)  # with `shift`, the gap of the candidate for position 0

    @property
    def contract(self) -> Contract:
        return self.candidate.contract

    def open(self, batch: int, capacity: int) -> None:
        self.reference.open(batch, capacity)
        self.candidate.open(batch, capacity)
        self.recent = []

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.reference.keep(rows)
        self.candidate.keep(rows)

    def forward(self, forward: Forward) -> Proposal:
        ours, theirs = self.reference.forward(forward), self.candidate.forward(forward)
        log_probs = self.reference.log_probs
        if log_probs is None:
            raise AssertionError("the reference kept no log-probabilities")
        best = log_probs[0].exp().topk(2).values  # [n, 2]
        self.recent.append((forward.input_ids.shape[1], (best[:, 0] - best[:, 1]).numpy()))
        before = self.distance
        keys, values = self._written(forward)
        self.distance = Distance(
            before.forwards + 1,
            before.rows + ours.token.size,
            before.tokens + int((ours.token != theirs.token).sum()),
            worst(before.log_prob, np.log(ours.confidence) - np.log(theirs.confidence), self._logits(log_probs)),
            worst(before.entropy, ours.entropy - theirs.entropy),
            worst(before.keys, keys),
            worst(before.values, values),
        )
        return ours

    def canvas_gap(self) -> Floats:
        """The probability gap between the two best tokens of each position of the step just made. [block]"""
        block = self.contract.block
        if not self.recent:  # what the last committed row said was enough, and no forward was made
            return np.repeat(self.first, block)
        width, gap = self.recent[-1]
        if self.contract.shift and self.contract.attention != "full":
            if len(self.recent) > 1 or width > block or block == 1:  # tokens were committed: the last says what follows
                self.first = self.recent[0][1][:1]
            gap = np.concatenate((self.first, gap[1:]))
        self.recent = []
        return gap

    def _logits(self, log_probs: Tensor) -> Floats:
        """Differences of all log-probabilities where the graph has logits; barred ids have -inf and are left out."""
        if self.candidate.last_logits is None:
            return np.zeros(1, np.float32)
        theirs = torch.log_softmax(torch.from_numpy(self.candidate.last_logits), dim=-1)
        delta = theirs - log_probs
        delta[..., self.reference.barred] = 0
        return delta.numpy()

    def _written(self, forward: Forward) -> tuple[Floats, Floats]:
        """Differences of the keys and values that this forward wrote, each [layers, 1, kv_heads, width, head_dim]."""
        cache = self.reference.cache
        if cache is None:
            return np.zeros(1, np.float32), np.zeros(1, np.float32)
        first = int(forward.past_length[0])
        new = slice(first, first + forward.input_ids.shape[1])
        theirs = self.candidate.cache[..., new, :]
        keys, values = torch.stack(cache.keys)[..., new, :], torch.stack(cache.values)[..., new, :]
        return keys.numpy() - theirs[0::2], values.numpy() - theirs[1::2]


def worst(before: float, *deltas: Floats) -> float:
    """The largest absolute value, NaN if there is one: a NaN must not pass for a small difference."""
    return float(np.max([before, *(np.abs(delta).max() for delta in deltas)]))


def compare(
    reference: TorchBackend, candidate: Candidate, requests: Sequence[Request], *, gate: GateSpec | None = None,
    separate: int = SEPARATE,
) -> Iterator[Parity]:  # fmt: skip
    """Answers the requests on both and yields the whole comparison so far after each.

    Every request with fused commits, and every `separate`-th with commits of their own too (`full` models commit
    nothing). gate: instead of the contract's.
    """
    once = candidate.contract.attention == "full"
    both, rule = SideBySide(reference, candidate), gate or candidate.contract.gate
    differing: list[Difference] = []
    answers = 0
    for number, request in enumerate(requests):
        for fused in (True, False)[: 1 if once or number % separate else 2]:
            ours = [(done[0], both.canvas_gap()) for done in steps(both, [request], fused=fused, gate=rule)]
            theirs = [done[0] for done in steps(candidate, [request], fused=fused, gate=rule)]
            answers += 1
            place = first_difference([step for step, _ in ours], theirs)
            if place is not None:
                differing.append(Difference(number, fused, place, closest_call(rule, *ours[place])))
        yield Parity(both.distance, answers, tuple(differing))


def first_difference(ours: Sequence[Step], theirs: Sequence[Step]) -> int | None:
    """The first step at which two answers to one request part, None where they are the same."""
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        same = mine.tokens.tolist() == other.tokens.tolist() and mine.open.tolist() == other.open.tolist()
        if not same or (mine.result is None) != (other.result is None):
            return place
    return None


def closest_call(gate: GateSpec, step: Step, gap: Floats) -> float:
    """By how little a step's decisions were taken: between two tokens, to the threshold, or between best positions.

    Only the first for gates that do not compare a confidence with a threshold.
    """
    was_open: Bools = step.open | step.accepted
    between_tokens = float(gap[was_open].min())
    if gate.rule != "threshold" or gate.metric != "confidence":
        return between_tokens
    sure = np.sort(step.confidence[was_open])[::-1]
    calls = [between_tokens, float(np.abs(sure - gate.threshold).min())]
    return min([*calls, float(sure[0] - sure[1])] if len(sure) > 1 and step.accepted.sum() == 1 else calls)
