"""The decode loop: propose, gate, commit, block after block, for a ragged batch on any backend.

It exists once. Training-time evaluation, parity tests and production run these lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .backend import Backend, Bools, Floats, Forward, Ints, Proposal
from .contract import GateSpec
from .errors import NumericalError
from .gate import Gate
from .layout import check_ids, check_room, check_suffix, positions_for
from .sequence import NOTHING, Progress, Result

Threshold = float | Callable[[], float]


@dataclass(frozen=True, slots=True)
class Request:
    """What to answer. `prompt` int64 [length]; the answer has at most `max_new_tokens`.

    threshold: its own, a value or a function read at every step, in place of the one for all requests. suffix int64
    [length]: known tokens behind exactly `max_new_tokens` positions, see `layout.check_suffix`; the answer is what
    stands before it, to an end token.
    """

    prompt: Ints
    max_new_tokens: int
    threshold: Threshold | None = None
    suffix: Ints = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did to one sequence. tokens, open, accepted, confidence [block]: the canvas after it.

    `row` is the request's index; `slot` its place in the forward just run, or -1 where none was needed; `block` counts
    the answer's blocks from 0; `given` is how many of the canvas's first tokens belong to the prompt.
    """

    row: int
    slot: int
    block: int
    given: int
    tokens: Ints
    open: Bools
    accepted: Bools
    confidence: Floats
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
        proposals, ran = _propose(backend, slots)
        if prefilled is None:  # a first forward with a canvas in it is a step, fused with the prefill or without any
            prefilled = started if proposals else time.perf_counter()
        if proposals:
            done = _accept(slots, proposals, ran, rule, read)
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
    fused = fused and contract.block > 1  # with blocks of one there is nothing to gain: the candidate decides alone
    slots = [Progress(contract, i, r.prompt, r.max_new_tokens, fused, r.suffix) for i, r in enumerate(requests)]
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


def _propose(backend: Backend, slots: Sequence[Progress]) -> tuple[dict[int, Proposal], list[int]]:
    """Runs one forward where any sequence needs one; proposals [block] by slot, and the slots that were in it."""
    proposals = {slot: p for slot, s in enumerate(slots) if s.result is None and (p := s.known())}
    waiting = [slot for slot, s in enumerate(slots) if s.result is None and slot not in proposals]
    if waiting:
        out = backend.forward(_assemble(slots, waiting, backend.contract.pad_id))
        for slot in waiting:
            if (proposal := slots[slot].receive(out, slot)) is not None:
                proposals[slot] = proposal
    return proposals, waiting


def _assemble(slots: Sequence[Progress], waiting: Sequence[int], pad_id: int) -> Forward:
    """The sequences' inputs side by side; who does not wait gets one padding token, behind its committed ones."""
    if len(slots) == 1:
        own = slots[0].inputs()
        return Forward(own.ids[None], np.array([own.past]), own.visible[None], own.rows[None])
    parts = {slot: slots[slot].inputs() for slot in waiting}
    width, n = max(len(p.ids) for p in parts.values()), max(len(p.rows) for p in parts.values())
    ids = np.full((len(slots), width), pad_id, np.int64)
    visible, rows = np.ones((len(slots), width), np.int64), np.zeros((len(slots), n), np.int64)
    for slot, part in parts.items():
        ids[slot, : len(part.ids)] = part.ids
        visible[slot, : len(part.ids)] = part.visible
        rows[slot, : len(part.rows)] = part.rows
    return Forward(ids, np.array([s.past for s in slots]), visible, rows)


def _accept(
    slots: Sequence[Progress], proposals: dict[int, Proposal], ran: Sequence[int], rule: Gate,
    read: Callable[[Sequence[int]], list[float]],
) -> list[Step]:  # fmt: skip
    """Lets the gate decide on all canvases at once, by the thresholds it reads, and writes down what it accepted."""
    chosen = [(slot, slots[slot], proposal) for slot, proposal in sorted(proposals.items())]
    token = np.stack([p.token for _, _, p in chosen])  # [canvases, block]
    confidence, entropy = np.stack([p.confidence for _, _, p in chosen]), np.stack([p.entropy for _, _, p in chosen])
    masked = np.stack([s.open for _, s, _ in chosen])
    progress = np.array([s.progress for _, s, _ in chosen], np.float32)
    if not (np.isfinite(confidence[masked]).all() and np.isfinite(entropy[masked]).all()):
        raise NumericalError(
            "the model's scores are not finite numbers (NaN or infinity); its weights or engine are damaged"
        )
    threshold = np.array(read([s.row for _, s, _ in chosen]))  # [canvases]
    accepted = rule(token, confidence, entropy, masked, progress, threshold)
    done = []
    for i, (slot, s, _) in enumerate(chosen):
        block, given, canvas, still_open = s.blocks - 1, s.tail, s.canvas, s.open
        s.finalise(token[i], accepted[i])
        place = slot if slot in ran else -1
        done.append(
            Step(s.row, place, block, given, canvas.copy(), still_open.copy(), accepted[i], confidence[i], s.result)
        )
    return done


def _timed(step: Step, result: Result, started: float, prefilled: float) -> Step:
    took = replace(result, seconds=time.perf_counter() - started, prefill_seconds=prefilled - started)
    return replace(step, result=took)
