"""Runs the decode loop: predict, gate, commit, block after block, for a ragged batch on any backend.

There is only this loop: evaluation in training, parity tests and production run it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..backend import Backend
from ..contract import Contract, GateSpec
from .batch import Batch, Step
from .block_layout import decode_token_by_token
from .gate import Gate
from .options import OptionKeywords, Request, complete_options, convert_token_ids, make_threshold_reader
from .request_state import BlockProgress, Progress, Result
from .sampling import make_sampler
from .speculation import SpeculativeProgress

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11


def decode_steps(
    backend: Backend,
    requests: Sequence[Request],
    *,
    gate: GateSpec | None = None,
    slots: int | None = None,
    **options: Unpack[OptionKeywords],
) -> Iterator[list[Step]]:
    """Decodes the requests and yields, per forward pass, what it did to every canvas that was in it.

    gate: replaces the bundle's. slots: how many requests are decoded at once, by default all; a finished request makes
    room for the next. options: replace those of every request. Without requests nothing is yielded. Raises UserError
    before any work if a request does not fit or has an id that the model lacks, NumericalError for scores that are not
    numbers.
    """
    begin = ProgressMaker(backend.contract, gate, options)
    queue = [begin(row, request) for row, request in enumerate(requests)]
    if queue:
        room = max(progress.room for progress in queue)
        together = len(queue) if slots is None else min(slots, len(queue))
        yield from _run(Batch(backend, begin.rule, together, room), iter(queue))


def decode_answers(
    backend: Backend,
    requests: Iterable[Request],
    slots: int,
    *,
    gate: GateSpec | None = None,
    **options: Unpack[OptionKeywords],
) -> Iterator[Result]:
    """Yields the answers to a stream of requests in the stream's order; decodes `slots` of them at once.

    A request is taken from the stream, and checked, when the request before has its place; a UserError ends the stream.
    The other options are those of `decode_steps`. In fp32 each answer equals its solo run.
    """
    begin = ProgressMaker(backend.contract, gate, options)
    queue = (begin(row, request) for row, request in enumerate(requests))
    done: dict[int, Result] = {}
    following = 0
    for made in _run(Batch(backend, begin.rule, slots, backend.contract.capacity), queue):
        done |= {step.row: step.result for step in made if step.result is not None}
        while following in done:
            yield done.pop(following)
            following += 1


def _run(batch: Batch, queue: Iterator[Progress]) -> Iterator[list[Step]]:
    """Yields the batch's steps, and fills free places from the queue, until every request has its answer."""
    waiting = next(queue, None)
    while waiting is not None or batch.busy:
        while waiting is not None and batch.takes(waiting):
            batch.add(waiting)
            waiting = next(queue, None)
        if waiting is None:
            batch.fit()
        if done := batch.step():
            yield done


def generate(
    backend: Backend, request: Request, *, gate: GateSpec | None = None, **options: Unpack[OptionKeywords]
) -> Result:
    """Returns one whole answer; the options are those of `decode_steps`."""
    return generate_batch(backend, [request], gate=gate, **options)[0]


def generate_batch(
    backend: Backend,
    requests: Sequence[Request],
    *,
    gate: GateSpec | None = None,
    slots: int | None = None,
    **options: Unpack[OptionKeywords],
) -> list[Result]:
    """Returns whole answers in the order of the requests; in fp32 each equals its solo run."""
    if not requests:
        return []
    results: dict[int, Result] = {}
    for done in decode_steps(backend, requests, gate=gate, slots=slots, **options):
        results.update({step.row: step.result for step in done if step.result is not None})
    return [results[row] for row in range(len(requests))]


class ProgressMaker:
    """Makes the initial state of requests: holds what they share, and checks that each fits, before any work."""

    def __init__(self, contract: Contract, gate: GateSpec | None, shared: OptionKeywords) -> None:
        self.rule = Gate(gate or contract.gate, contract.eos_ids)
        self._contract, self._shared, self._threshold = contract, shared, shared.get("threshold")
        self._reader = make_threshold_reader(self._threshold, self.rule.spec, contract.vocab)  # read once per step

    def __call__(self, row: int, request: Request, past: int = 0) -> Progress:
        """Returns the state of the request of index `row`, whose first `past` tokens are in the KV cache already."""
        contract = self._contract
        options = complete_options(contract, request.prompt, replace(request.options, **self._shared))
        alike = options.threshold is self._threshold
        reader = self._reader if alike else make_threshold_reader(options.threshold, self.rule.spec, contract.vocab)
        wanted, drawing = options.max_new_tokens or 0, make_sampler(options.temperature, options.seed)
        if options.mode == "speculative":
            return SpeculativeProgress(contract, row, request.prompt, wanted, reader, options.fused, past, drawing)
        return BlockProgress(
            contract if options.mode == "block" else decode_token_by_token(contract),
            row,
            request.prompt,
            wanted=wanted,
            threshold=reader,
            fused=options.fused,
            suffix=convert_token_ids(options.suffix),
            past=past,
            sampler=drawing,
            mode=options.mode or "block",
        )
