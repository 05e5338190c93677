"""Compares an engine with PyTorch: the same forward passes through both, and whole answers token for token.

Every token's probability is compared through the instrumented graph (`instrumented`), the same graph with its logits as
one more output; its other outputs must equal the engine's. To compare only the top-1 token's probability would not do:
it is about 1 wherever a student is confident, whatever the other logits are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.precisions import PRECISIONS
from runtime.backend import Backend, Bools, Floats, Forward, Inspectable, Proposal
from runtime.contract import GateSpec
from runtime.decoding.batch import Step
from runtime.decoding.gate import RULES
from runtime.decoding.loop import decode_steps, generate
from runtime.decoding.options import Request
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.proof.judge import Check
from train.torch_backend import TorchBackend

from .log_prob_gaps import NOTICED, add_candidates, subtract, subtract_candidates, subtract_top
from .token_gaps import TokenGaps

EXACT = 1e-4  # bound on keys, values and every token's log-probability, in exact precisions only
TWIN = 1e-6  # how far an engine may be from its instrumented graph, in probability, nats and KV-cache numbers
TIE = 1e-5  # probability; decisions that PyTorch makes by a smaller margin may differ on random models
SEPARATE = 4  # one in so many requests also runs with unfused commits


@dataclass(frozen=True, slots=True)
class Distance:
    """Holds the largest absolute differences over some forward passes.

    tokens: how often the top-1 token differed; margin: the most probability by which PyTorch preferred its own token
    there; log_prob: of the top-1 token's log-probability, nats; every_log_prob: of every token's log-probability if it
    is above NOTICED on either side, None without an instrumented graph; top: of the log-probabilities of the engine's
    top tokens, by token and by rank, None if it gives none; candidates: the same for random candidates; entropy: nats;
    keys, values: of what the forward passes wrote, in units of a layer's root mean square if that is above 1; twin:
    between the engine and its instrumented graph, if there is one.
    """

    forwards: int = 0
    rows: int = 0
    tokens: int = 0
    margin: float = 0.0
    log_prob: float = 0.0
    every_log_prob: float | None = None
    top: float | None = None
    entropy: float = 0.0
    keys: float = 0.0
    values: float = 0.0
    twin: float | None = None
    candidates: float | None = None

    def check(self, precision: str, best: float | None = None) -> Check:
        """Checks that every bound of the precision is kept; a NaN or infinity fails, even without a bound.

        best: replaces the precision's bound on the top-1 token's log-probability, nats.

        In fp32 the top-1 tokens must be the same too. At most 1 % of them (or one) may differ, if PyTorch's two most
        probable tokens were within TIE there.
        """
        kept = PRECISIONS[precision]
        free = EXACT if kept.exact else math.inf
        bounded = [
            ("max |d log p| of the top-1 token", self.log_prob, kept.log_prob if best is None else best),
            (f"of every token above e^{NOTICED:g}", self.every_log_prob, free),
            ("of the top tokens", self.top, free),
            ("of candidates", self.candidates, free),
            ("entropy", self.entropy, kept.entropy),
            ("keys", self.keys, free),
            ("values", self.values, free),
            ("without logits against with them", self.twin, TWIN),
        ]
        looked = [(name, value, bound) for name, value, bound in bounded if value is not None]
        ties = self.margin < TIE and self.tokens <= count_excusable(self.rows)
        ok = all(math.isfinite(value) and value <= bound for _, value, bound in looked)
        parts = ", ".join(f"{name} {value:.1e}" + format_bound(bound) for name, value, bound in looked)
        tokens = f"{self.tokens} of {self.rows} top-1 tokens differ"
        if self.tokens:
            tokens += f", at which PyTorch's top two were within {self.margin:.1e}"
        return Check("steps", ok and (ties or not kept.exact), f"{parts}; {tokens}, in {self.forwards} forward passes")


@dataclass(frozen=True, slots=True)
class Difference:
    """Holds one answer that differs. step: the first step that differs; closest: PyTorch's smallest margin there."""

    request: int
    fused: bool
    step: int
    closest: float


@dataclass(frozen=True, slots=True)
class Parity:
    """Holds what a comparison found: distances over `answers` whole answers, and the answers that differ.

    lost: the nats by which the top-1 token's log-probability changes in the candidate's arithmetic in PyTorch, if that
    was run too.
    """

    distance: Distance = Distance()
    answers: int = 0
    differing: tuple[Difference, ...] = ()
    lost: float = 0.0

    def make_checks(self, tie: float = 0.0, precision: str = "fp32", bound: float | None = None) -> tuple[Check, Check]:
        """Checks that the forward passes keep their bounds (`Distance.check`), and that the answers are the same.

        Differing answers whose closest decision is below `tie` are excused and counted: a hardly trained model decides
        everything by less than rounding errors, so only its forward passes are checked. In precisions other than fp32
        answers may differ: they are counted, and only the bounds decide. bound: on the top-1 token's log-probability,
        nats; None for the precision's.
        """
        real = [each for each in self.differing if not each.closest < tie]
        excused = len(self.differing) - len(real)
        detail = f"{len(real)} of {self.answers} differ from PyTorch"
        if excused:
            detail += f"; {excused} more at which PyTorch itself decided by less than {tie:g}"
        if real:
            first = real[0]
            detail += f"; first request {first.request}, step {first.step}, decided by {first.closest:.1e}"
        exact = PRECISIONS[precision].exact
        if not exact:
            detail += f" (no bound: {precision} is not exact)"
        return self.distance.check(precision, bound), Check("answers", not real or not exact, detail)


def count_excusable(count: int) -> int:
    """Returns how many of `count` may differ if PyTorch itself was undecided: 1 %, but at least one."""
    return max(1, count // 100)


def format_bound(bound: float) -> str:
    return f" (bound {bound:.0e})" if math.isfinite(bound) else " (no bound)"


class SideBySide:
    """Runs every forward pass on all backends, each with its own KV cache, and returns the reference's predictions.

    arithmetic: PyTorch with the candidate's rounding; lost: its largest distance from the reference so far, nats.
    """

    name = "side by side"

    def __init__(
        self,
        reference: TorchBackend,
        candidate: Inspectable,
        instrumented: OrtBackend | None = None,
        arithmetic: Backend | None = None,
    ) -> None:
        self.reference, self.candidate, self.instrumented = reference, candidate, instrumented
        self.arithmetic, self.distance, self.lost = arithmetic, Distance(), 0.0
        self.contract = candidate.contract
        self.gaps = TokenGaps(self.contract.block)

    def open(self, batch: int, capacity: int) -> None:
        for backend in self._list_backends():
            backend.open(batch, capacity)
        self.gaps.clear()

    def keep(self, rows: NDArray[np.int64]) -> None:
        for backend in self._list_backends():
            backend.keep(rows)

    def forward(self, forward: Forward) -> Proposal:
        requested = replace(forward, top=forward.top or self.contract.top_k > 0)
        requested = add_candidates(requested, self.contract, self.reference.barred.tolist(), self.distance.forwards)
        ours, theirs = self.reference.forward(requested), self.candidate.forward(requested)
        log_probs = self.reference.log_probs
        if log_probs is None:
            raise AssertionError("the reference kept no log-probabilities")
        gap, other = self.gaps.add(log_probs[0]), ours.token != theirs.token  # [n], [1, n]
        before, new = self.distance, find_written_positions(forward)
        keys, values = self._compare_written(new)
        self.distance = Distance(
            before.forwards + 1,
            before.rows + ours.token.size,
            before.tokens + int(other.sum()),
            find_worst(before.margin, gap[other[0]]),
            find_worst(before.log_prob, np.log(ours.confidence) - np.log(theirs.confidence)),
            before.every_log_prob,
            before.top if theirs.top_token is None else find_worst(before.top or 0.0, subtract_top(log_probs, theirs)),
            find_worst(before.entropy, ours.entropy - theirs.entropy),
            find_worst(before.keys, keys),
            find_worst(before.values, values),
            before.twin,
            find_worst(before.candidates or 0.0, subtract_candidates(log_probs, requested, theirs))
            if self.contract.candidates
            else None,
        )
        self._look_at_every_token(requested, theirs, log_probs, new)
        if self.arithmetic is not None:
            rounded = self.arithmetic.forward(forward)
            self.lost = find_worst(self.lost, np.log(ours.confidence) - np.log(rounded.confidence))
        return ours

    def _list_backends(self) -> tuple[Backend, ...]:
        others = (self.instrumented, self.arithmetic)
        return (self.reference, self.candidate, *(each for each in others if each is not None))

    def _look_at_every_token(self, forward: Forward, theirs: Proposal, log_probs: Tensor, new: slice) -> None:
        """Adds the distances that the instrumented graph shows, if there is one."""
        if self.instrumented is None:
            return
        again, before = self.instrumented.forward(replace(forward, top=False, candidates=None)), self.distance
        deltas = [again.confidence - theirs.confidence, again.entropy - theirs.entropy, again.token - theirs.token]
        every = torch.log_softmax(torch.from_numpy(self.instrumented.last_logits), dim=-1)  # [1, n, vocab]
        if theirs.top_logprob is not None:
            deltas.append(subtract_top(every, theirs) * np.exp(theirs.top_logprob))  # in probability
        if theirs.candidate_logprob is not None:
            deltas.append(subtract_candidates(every, forward, theirs) * np.exp(theirs.candidate_logprob))
        if self.reference.cache is not None:
            engines = (self.candidate, self.instrumented)
            theirs_now, again_now = (widen(each.read_cache()[..., new, :]) for each in engines)
            deltas.append(again_now - theirs_now)
        apart = find_worst(before.every_log_prob or 0.0, subtract(log_probs, every))
        self.distance = replace(before, twin=find_worst(before.twin or 0.0, *deltas), every_log_prob=apart)

    def _compare_written(self, new: slice) -> tuple[Floats, Floats]:
        """Returns differences of the keys and values that were written, [layers, 1, kv_heads, width, head_dim]."""
        cache = self.reference.cache
        if cache is None:
            return np.zeros(1, np.float32), np.zeros(1, np.float32)
        theirs = widen(self.candidate.read_cache()[..., new, :])
        keys, values = (torch.stack([part[..., new, :] for part in parts]) for parts in (cache.keys, cache.values))
        return compute_relative(keys, theirs[0::2]), compute_relative(values, theirs[1::2])


def find_written_positions(forward: Forward) -> slice:
    """Returns the KV-cache positions that a forward pass of one sequence writes."""
    first = int(forward.past_length[0])
    return slice(first, first + forward.input_ids.shape[1])


def widen(part: NDArray[Any]) -> Floats:
    """Returns a part of a KV cache in fp32, to compute differences of fp16 numbers."""
    return part.astype(np.float32, copy=False)


def compute_relative(ours: Tensor, theirs: Floats) -> Floats:
    """Returns differences of KV-cache parts [layers, ...], in units of a layer's root mean square if it is above 1."""
    unit = ours.square().flatten(1).mean(dim=1).sqrt().clamp(min=1)  # [layers]
    apart: Floats = (ours.numpy() - theirs) / unit.numpy()[:, None, None, None, None]
    return apart


def find_worst(before: float, *deltas: NDArray[Any]) -> float:
    """Returns the largest absolute value; NaN if any is NaN, which must not pass for a small difference."""
    return float(np.max([before, *(np.abs(delta).max() for delta in deltas if delta.size)]))


def compare(
    reference: TorchBackend,
    candidate: Inspectable,
    requests: Sequence[Request],
    *,
    gate: GateSpec | None = None,
    separate: int = SEPARATE,
    instrumented: OrtBackend | None = None,
    arithmetic: Backend | None = None,
) -> Iterator[Parity]:
    """Answers the requests on both backends; yields the whole comparison so far after each request.

    Every request runs with fused commits, and every `separate`-th also with unfused ones (`full` models commit
    nothing). gate: replaces the contract's gate. instrumented: the candidate's instrumented graph
    (`instrumented.load_instrumented`), to compare all tokens' probabilities; without it, only those of the top-1 tokens
    are compared. arithmetic: the candidate's arithmetic in PyTorch (`quantized_reference`), which runs the same forward
    passes to measure `Parity.lost`.
    """
    once, mode = not candidate.contract.has_cache, candidate.contract.plainest_mode
    both, rule = SideBySide(reference, candidate, instrumented, arithmetic), gate or candidate.contract.gate
    differing: list[Difference] = []
    answers = 0
    for number, request in enumerate(requests):
        for fused in (True, False)[: 1 if once or number % separate else 2]:
            ours = [
                (done[0], both.gaps.measure_canvas(done[0]))
                for done in decode_steps(both, [request], fused=fused, gate=rule, mode=mode)
            ]
            theirs = [done[0] for done in decode_steps(candidate, [request], fused=fused, gate=rule, mode=mode)]
            answers += 1
            place = find_first_difference([step for step, _ in ours], theirs)
            if place is not None:
                differing.append(Difference(number, fused, place, find_closest_call(rule, *ours[place])))
        yield Parity(both.distance, answers, tuple(differing), both.lost)


def compare_speculative(reference: TorchBackend, candidate: Inspectable, requests: Sequence[Request]) -> Check:
    """Checks that the candidate's speculative answers are PyTorch's causal ones, token for token.

    An answer is excused, and counted, if PyTorch's two most probable tokens were within TIE at the first
    position that differs. Only exact precisions are checked so (`prove`).
    """
    gaps, excused, differ = SideBySide(reference, candidate, None, None), 0, 0
    for request in requests:
        made = [(done[0], gaps.gaps.measure_canvas(done[0])) for done in decode_steps(gaps, [request], mode="causal")]
        causal = [int(step.tokens[0]) for step, _ in made]
        found = generate(candidate, request, mode="speculative").token_ids
        place = next((i for i, (a, b) in enumerate(zip(causal, found, strict=False)) if a != b), None)
        if place is None and len(causal) == len(found):
            continue
        close = place is not None and float(made[place][1][0]) < TIE
        excused, differ = excused + close, differ + (not close)
    text = f"{differ} of {len(requests)} speculative answers differ from PyTorch's causal ones"
    return Check("modes", differ == 0, text + (f", {excused} at a near tie" if excused else ""))


def find_first_difference(ours: Sequence[Step], theirs: Sequence[Step]) -> int | None:
    """Returns the first step at which two answers to one request differ, None if they are the same."""
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        same = mine.tokens.tolist() == other.tokens.tolist() and mine.open.tolist() == other.open.tolist()
        if not same or (mine.result is None) != (other.result is None):
            return place
    return None


def find_closest_call(gate: GateSpec, step: Step, gap: Floats) -> float:
    """Returns the smallest margin of a step's decisions: between tokens, to the threshold, or between positions.

    For gates that do not compare a confidence with a threshold, only the margin between two tokens counts.
    """
    was_open: Bools = step.open | step.accepted
    between_tokens = float(gap[was_open].min())
    if not RULES[gate.rule].compares or gate.metric != "confidence":
        return between_tokens
    sure = np.sort(step.confidence[was_open])[::-1]
    calls = [between_tokens, float(np.abs(sure - gate.threshold).min())]
    return min([*calls, float(sure[0] - sure[1])] if len(sure) > 1 and step.accepted.sum() == 1 else calls)
