"""The decode loop: propose, gate, commit, block after block, for a ragged batch on any backend.

It exists once. Training-time evaluation, parity tests and production run these lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..backend import Backend, Ints
from ..contract import Contract, GateSpec
from .batch import Batch, Step
from .block_layout import check_ids, check_room, check_suffix, positions_for
from .gate import Gate
from .request_state import NOTHING, Progress, Result
from .sampling import check_sampling, sampler

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


def steps(
    backend: Backend,
    requests: Sequence[Request],
    *,
    threshold: Threshold | None = None,
    gate: GateSpec | None = None,
    fused: bool = True,
    slots: int | None = None,
) -> Iterator[list[Step]]:
    """Decodes the requests and yields, for each forward, what it did to every canvas that was in it.

    threshold: a value, or a function read at every step; the gate's own by default. gate: replaces the bundle's.
    fused: the commit of a block (and the prefill) shares a forward with the next canvas; exact either way in fp32.
    slots: how many are decoded at once, all by default; who has its answer makes room for the next. No requests yield
    nothing. Raises UserError before any work where a request does not fit or has an id that the model lacks,
    NumericalError for scores that are not numbers.
    """
    begin = Beginning(backend.contract, gate, threshold, fused)
    queue = [begin(row, request) for row, request in enumerate(requests)]
    if queue:
        room = max(positions_for(backend.contract, len(r.prompt), r.max_new_tokens) for r in requests)
        together = len(queue) if slots is None else min(slots, len(queue))
        yield from _run(Batch(backend, begin.rule, together, room), iter(queue))


def answers(
    backend: Backend,
    requests: Iterable[Request],
    slots: int,
    *,
    threshold: Threshold | None = None,
    gate: GateSpec | None = None,
    fused: bool = True,
) -> Iterator[Result]:
    """The answers to a stream of requests in the order in which they come, `slots` of them decoded at once.

    A request is taken from the stream when the one before it has its place, and checked then: UserError ends the
    stream. The other options are those of `steps`. Each answer equals its solo run in fp32.
    """
    begin = Beginning(backend.contract, gate, threshold, fused)
    queue = (begin(row, request) for row, request in enumerate(requests))
    done: dict[int, Result] = {}
    following = 0
    for made in _run(Batch(backend, begin.rule, slots, backend.contract.capacity), queue):
        done |= {step.row: step.result for step in made if step.result is not None}
        while following in done:
            yield done.pop(following)
            following += 1


def _run(batch: Batch, queue: Iterator[Progress]) -> Iterator[list[Step]]:
    """Steps of the batch, which takes from the queue as it has places, until all have their answers."""
    waiting = next(queue, None)
    while waiting is not None or batch.busy:
        while waiting is not None and batch.takes(waiting):
            batch.add(waiting)
            waiting = next(queue, None)
        if waiting is None:
            batch.shrink()
        if done := batch.step():
            yield done


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


class Beginning:
    """Requests at their beginning: what they share, and the check that each of them fits, before any work."""

    def __init__(
        self, contract: Contract, gate: GateSpec | None, threshold: Threshold | None, fused: bool = True
    ) -> None:
        self.rule = Gate(gate or contract.gate, contract.eos_ids)
        self._contract, self._fused = contract, fused
        self._threshold = _reader(threshold, self.rule.spec, contract.vocab)

    def __call__(self, row: int, request: Request, past: int = 0) -> Progress:
        """The request of index `row`, with `past` of its prompt's tokens in the cache already."""
        contract = self._contract
        check_ids(contract, request.prompt)
        check_room(contract, len(request.prompt), request.max_new_tokens)
        check_suffix(contract, len(request.prompt), request.max_new_tokens, request.suffix)
        check_sampling(contract, request.temperature, request.seed)
        threshold = self._threshold
        if request.threshold is not None:
            threshold = _reader(request.threshold, self.rule.spec, contract.vocab)
        return Progress(
            contract,
            row,
            request.prompt,
            wanted=request.max_new_tokens,
            threshold=threshold,
            fused=self._fused,
            suffix=request.suffix,
            past=past,
            sampler=sampler(request.temperature, request.seed),
        )


def _reader(threshold: Threshold | None, spec: GateSpec, vocab: int) -> Callable[[], float]:
    if threshold is None:
        own = spec.threshold if spec.rule == "count" else spec.check_threshold(spec.threshold, vocab)
        return lambda: own
    if callable(threshold):
        return lambda: spec.check_threshold(threshold(), vocab)
    fixed = spec.check_threshold(threshold, vocab)
    return lambda: fixed
