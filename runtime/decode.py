"""The decode loop: propose, gate, commit, block after block, for a ragged batch on any backend.

It exists once. Training-time evaluation, parity tests and production run these lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import Backend, Bools, Floats, Forward, Ints
from .contract import GateSpec
from .errors import NumericalError
from .gate import Gate
from .layout import check_ids, check_room, check_suffix, positions_for
from .sample import check_sampling, sampler
from .sequence import NOTHING, Inputs, Progress, Result

Threshold = float | Callable[[], float]


@dataclass(frozen=True, slots=True)
class Request:
    """What to answer. `prompt` int64 [length]; the answer has at most `max_new_tokens`.

    threshold: its own, a value or a function read at every step, in place of the one for all requests. suffix int64
    [length]: known tokens behind exactly `max_new_tokens` positions, see `layout.check_suffix`; the answer is what
    stands before it, to an end token. temperature: 0 takes the best tokens; above it, to 5, each open position's token
    is drawn at every step, see `sample.Sampler`, and one of low confidence is drawn again at the next; seed: of these
    draws, an int64, drawn itself where it is None.
    """

    prompt: Ints
    max_new_tokens: int
    threshold: Threshold | None = None
    suffix: Ints = field(default_factory=lambda: NOTHING)
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did to one sequence. tokens, open, accepted, confidence [block]: the canvas after it.

    confidence: of each position's latest prediction, so a final one's is that it was accepted with; 0 for what was
    given. asked [n]: the positions that the forward predicted, in the order of its rows. `row` is the request's index;
    `slot` its place in the forward just run, or -1 where none was needed; `block` counts the answer's blocks from 0;
    `given` is how many of the canvas's first tokens belong to the prompt.
    """

    row: int
    slot: int
    block: int
    given: int
    tokens: Ints
    open: Bools
    accepted: Bools
    confidence: Floats
    asked: Ints
    result: Result | None


def steps(
    backend: Backend,
    requests: Sequence[Request],
    *,
    threshold: Threshold | None = None,
    gate: GateSpec | None = None,
    fused: bool = True,
) -> Iterator[list[Step]]:
    """Decodes all requests at once and yields, for each forward, what it did to every canvas that was in it.

    threshold: a value, or a function read at every step; the gate's own by default. gate: replaces the bundle's.
    fused: the commit of a block (and the prefill) shares a forward with the next canvas; exact either way in fp32.
    No requests yield nothing. Raises UserError before any work where a request does not fit or has an id that the model
    lacks, NumericalError for scores that are not numbers.
    """
    contract, started = backend.contract, time.perf_counter()
    rule = Gate(gate or contract.gate, contract.eos_ids)
    read = _reader_of_all(threshold, requests, rule.spec, contract.vocab)
    slots = _begin(backend, requests, fused)
    prefilled: float | None = None
    while live := [s for s in slots if s.result is None]:
        if len(live) <= 0.75 * len(slots):
            backend.keep(np.array([slot for slot, s in enumerate(slots) if s.result is None]))
            slots = live
        asked, ready = _propose(backend, slots)
        if prefilled is None:  # a first forward with a canvas in it is a step, fused with the prefill or without any
            prefilled = started if ready else time.perf_counter()
        if ready:
            done = _accept(slots, ready, asked, rule, read)
            yield [_timed(step, step.result, started, prefilled) if step.result else step for step in done]


def generate(backend: Backend, request: Request, **options: object) -> Result:
    """One whole answer; the options are those of `steps`."""
    return generate_batch(backend, [request], **options)[0]


def generate_batch(backend: Backend, requests: Sequence[Request], **options: object) -> list[Result]:
    """Whole answers in the order of the requests; each equals its solo run in fp32."""
    if not requests:
        return []
    results: dict[int, Result] = {}
    for done in steps(backend, requests, **options):  # type: ignore[arg-type]
        results.update({step.row: step.result for step in done if step.result is not None})
    return [results[row] for row in range(len(requests))]


def _begin(backend: Backend, requests: Sequence[Request], fused: bool) -> list[Progress]:
    """All requests at their beginning and room for them, once each is known to fit."""
    contract = backend.contract
    for request in requests:
        check_ids(contract, request.prompt)
        check_room(contract, len(request.prompt), request.max_new_tokens)
        check_suffix(contract, len(request.prompt), request.max_new_tokens, request.suffix)
        check_sampling(contract, request.temperature, request.seed)
    fused = fused and contract.block > 1  # with blocks of one there is nothing to gain: the candidate decides alone
    slots = [
        Progress(contract, i, r.prompt, r.max_new_tokens, fused, r.suffix, sampler(r.temperature, r.seed))
        for i, r in enumerate(requests)
    ]
    if slots:
        backend.open(len(slots), max(positions_for(contract, len(r.prompt), r.max_new_tokens) for r in requests))
    return slots


def _reader_of_all(
    threshold: Threshold | None, requests: Sequence[Request], spec: GateSpec, vocab: int
) -> Callable[[Sequence[int]], list[float]]:
    """Reads the thresholds of the requests of these rows: their own ones, or the common one, which is read once."""
    common = _reader(threshold, spec, vocab)
    own = {row: _reader(r.threshold, spec, vocab) for row, r in enumerate(requests) if r.threshold is not None}

    def read(rows: Sequence[int]) -> list[float]:
        shared = common()
        return [own[row]() if row in own else shared for row in rows]

    return read


def _reader(threshold: Threshold | None, spec: GateSpec, vocab: int) -> Callable[[], float]:
    if threshold is None:
        own = spec.threshold if spec.rule == "count" else spec.check_threshold(spec.threshold, vocab)
        return lambda: own
    if callable(threshold):
        return lambda: spec.check_threshold(threshold(), vocab)
    fixed = spec.check_threshold(threshold, vocab)
    return lambda: fixed


def _propose(backend: Backend, slots: Sequence[Progress]) -> tuple[dict[int, Ints], list[int]]:
    """Runs one forward where any sequence needs one. Returns what was asked of each slot that was in it, and the slots
    whose canvas can be decided on."""
    live = [slot for slot, s in enumerate(slots) if s.result is None]
    inputs = {slot: own for slot in live if (own := slots[slot].inputs()) is not None}
    ready = [slot for slot in live if slot not in inputs]
    if inputs:
        out = backend.forward(_assemble(slots, inputs, backend.contract.pad_id))
        if not (np.isfinite(out.confidence).all() and np.isfinite(out.entropy).all()) or (
            out.top_logprob is not None and np.isnan(out.top_logprob).any()
        ):
            raise NumericalError(
                "the model's scores are not finite numbers (NaN or infinity); its weights or engine are damaged"
            )
        ready += [slot for slot, own in inputs.items() if slots[slot].receive(out, slot, own.asked)]
    return {slot: own.asked for slot, own in inputs.items()}, sorted(ready)


def _assemble(slots: Sequence[Progress], inputs: Mapping[int, Inputs], pad_id: int) -> Forward:
    """The sequences' inputs side by side; who has none gets one padding token, behind its committed ones."""
    top = any(slots[slot].sampler is not None for slot in inputs)
    if len(slots) == 1:
        own = inputs[0]
        return Forward(own.ids[None], np.array([own.past]), own.visible[None], own.rows[None], top)
    width, n = max(len(p.ids) for p in inputs.values()), max(len(p.rows) for p in inputs.values())
    ids = np.full((len(slots), width), pad_id, np.int64)
    visible, rows = np.ones((len(slots), width), np.int64), np.zeros((len(slots), n), np.int64)
    for slot, part in inputs.items():
        ids[slot, : len(part.ids)] = part.ids
        visible[slot, : len(part.ids)] = part.visible
        rows[slot, : len(part.rows)] = part.rows
    return Forward(ids, np.array([s.past for s in slots]), visible, rows, top)


def _accept(
    slots: Sequence[Progress], ready: Sequence[int], asked: Mapping[int, Ints], rule: Gate,
    read: Callable[[Sequence[int]], list[float]],
) -> list[Step]:  # fmt: skip
    """Lets the gate decide on all these canvases at once, by the thresholds it reads, and writes down what it took."""
    chosen = [slots[slot] for slot in ready]
    for s in chosen:
        s.draw()
    token, confidence, entropy = (_stack(parts) for parts in zip(*(s.latest.parts()[:3] for s in chosen), strict=True))
    progress = np.array([s.progress for s in chosen], np.float32)
    threshold = np.array(read([s.row for s in chosen]))  # [canvases]
    accepted = rule(token, confidence, entropy, _stack([s.open for s in chosen]), progress, threshold)
    done = []
    for slot, s, own in zip(ready, chosen, accepted, strict=True):
        block, given, canvas, still_open, sure = s.blocks - 1, s.tail, s.canvas, s.open, s.latest.confidence.copy()
        s.finalise(own)
        place = slot if slot in asked else -1
        done.append(
            Step(
                s.row, place, block, given, canvas.copy(), still_open.copy(), own, sure, asked.get(slot, NOTHING),
                s.result,
            )
        )  # fmt: skip
    return done


def _stack(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays [block] as one [canvases, block]; without a copy where it is one."""
    return parts[0][None] if len(parts) == 1 else np.stack(parts)


def _timed(step: Step, result: Result, started: float, prefilled: float) -> Step:
    took = replace(result, seconds=time.perf_counter() - started, prefill_seconds=prefilled - started)
    return replace(step, result=took)
