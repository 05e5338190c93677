"""Measures an engine: milliseconds per kind of forward pass, and whole answers with the host's own time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Backend, Forward, Ints, Proposal
from ..contract import Contract
from ..decoding import loop
from ..decoding.block_layout import compute_committed_ends, count_committed
from ..decoding.options import Request
from ..model import Model

CANDIDATES = (1, 16, 64)  # candidates per row that a step is timed with, as far as the bundle has as many


@dataclass(frozen=True, slots=True)
class Spread:
    """Holds the median of some measurements, and their 10th and 90th percentiles."""

    p10: float
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Holds the latency, in ms, of one kind of forward pass. past: committed tokens; rows: logits rows."""

    forward: str
    past: int
    width: int
    rows: int
    ms: Spread


@dataclass(frozen=True, slots=True)
class CandidateLatency:
    """Holds the latency, in ms, of a step with so many candidates per row.

    ratio: the median, over the rounds, of its time to that of the step without candidates in the same round.
    """

    candidates: int
    past: int
    width: int
    rows: int
    ms: Spread
    ratio: float


class TimedBackend:
    """Wraps a backend and adds up the seconds spent in it."""

    def __init__(self, inner: Backend) -> None:
        self._inner, self.contract, self.name = inner, inner.contract, inner.name
        self.forward_seconds = self.open_seconds = 0.0

    def open(self, batch: int, capacity: int) -> None:
        started = time.perf_counter()
        self._inner.open(batch, capacity)
        self.open_seconds += time.perf_counter() - started

    def forward(self, forward: Forward) -> Proposal:
        started = time.perf_counter()
        proposal = self._inner.forward(forward)
        self.forward_seconds += time.perf_counter() - started
        return proposal

    def keep(self, rows: NDArray[Any]) -> None:
        self._inner.keep(rows)


def time_forwards(backend: Backend, repeat: int, warmup: int) -> Iterator[Latency]:
    """Yields latencies of the forward passes that decoding uses, at the start, middle and end of the capacity."""
    contract = backend.contract
    kinds: list[tuple[str, Forward]] = []
    if not contract.has_cache:
        kinds += [("step", forward) for forward in list_block_steps(contract)]
    else:
        pasts = choose_places(contract.capacity - 2 * contract.block, contract.block)
        for name, make in list_repeated(contract):
            kinds += [(name, make(contract, past)) for past in pasts]
        kinds += [("prefill", make_prefill(contract, length)) for length in choose_prefill_lengths(contract)]
    for name, forward in kinds:
        past, width = int(forward.past_length[0]), forward.input_ids.shape[1]
        if past + width <= contract.capacity:
            backend.open(1, past + width)
            seconds = time_calls(lambda forward=forward: backend.forward(forward), repeat, warmup)  # type: ignore[misc]
            yield Latency(name, past, width, forward.rows.shape[1], compute_percentiles(1000 * seconds))


def time_candidates(backend: Backend, repeat: int, warmup: int) -> list[CandidateLatency]:
    """Returns the latencies of a step with no candidates, as generating takes it, and with some, as decisions do.

    The steps take turns, at the middle of the capacity. Returns an empty list for a graph without candidates.
    """
    contract = backend.contract
    if not contract.candidates:
        return []
    steps = list_block_steps(contract)
    step = steps[len(steps) // 2]
    past, width, rows = int(step.past_length[0]), step.input_ids.shape[1], step.rows.shape[1]
    counts = sorted({0, contract.candidates, *(count for count in CANDIDATES if count < contract.candidates)})
    backend.open(1, past + width)
    works = [partial(backend.forward, add_candidates(contract, step, count)) for count in counts]
    seconds = time_by_turns(works, repeat, warmup)
    ratios = np.median(seconds / seconds[0], axis=1).tolist()
    return [
        CandidateLatency(count, past, width, rows, compute_percentiles(1000 * own), ratio)
        for count, own, ratio in zip(counts, seconds, ratios, strict=True)
    ]


def list_repeated(contract: Contract) -> list[tuple[str, Callable[[Contract, int], Forward]]]:
    """Returns the forward passes that the modes of a model with a KV cache repeat: each with its name."""
    found: list[tuple[str, Callable[[Contract, int], Forward]]] = []
    if "block" in contract.modes:
        found += [("step", make_canvas_step), ("step, half open", make_half), ("commit", make_commit)]
        found += [] if contract.seeded else [("fused step", make_fused)]
    if "speculative" in contract.modes:
        found += [("verification", make_verification)]
    if "causal" in contract.modes:
        found += [("token", make_token)]
    return found


def time_answers(model: Model, requests: Sequence[Request], count: int) -> dict[str, Any]:
    """Returns the mode, and the figures' spreads over `count` answers to the requests in turn, after a first one not
    counted."""
    rows, mode = [], ""
    for request in islice(cycle(requests), count + 1):
        backend = TimedBackend(model.backend)
        result = loop.generate(backend, request, gate=model.gate)
        host = result.seconds - backend.forward_seconds - backend.open_seconds
        tokens, mode = len(result.token_ids), result.mode
        rows.append(
            {
                "tokens": tokens,
                "tokens_per_step": tokens / max(1, result.steps),
                "tokens_per_forward": result.tokens_per_forward,
                "tokens_per_second": tokens / result.seconds,
                "seconds": result.seconds,
                "host_ms_per_forward": 1000 * host / max(1, result.forwards),
                "open_ms": 1000 * backend.open_seconds,
            }
        )
    spreads = {name: asdict(compute_percentiles(np.array([row[name] for row in rows[1:]]))) for name in rows[0]}
    return {"mode": mode, **spreads}


def make_canvas_step(contract: Contract, past: int) -> Forward:
    """Returns a step over a masked block after `past` committed tokens.

    With `shift` it does not predict the block's first position, which the last committed token predicts.
    """
    return _make_step(contract, past, contract.block - contract.shift)


def make_half(contract: Contract, past: int) -> Forward:
    """Returns the step over a block whose second half is masked."""
    return _make_step(contract, past, contract.block // 2)


def _make_step(contract: Contract, past: int, n: int) -> Forward:
    block = contract.block
    rows = np.arange(block - max(1, n), block) - contract.shift  # a block of one token has no half
    return _forward(contract, past, np.full(block, past + block), np.maximum(rows, 0))


def make_commit(contract: Contract, past: int) -> Forward:
    """Returns the commit of a finished block as a pass of its own; it predicts the last row."""
    return _forward(contract, past, list_committed_ends(contract, past), np.array([contract.block - 1]))


def make_fused(contract: Contract, past: int) -> Forward:
    """Returns the forward pass that commits a finished block and runs the next canvas."""
    block = contract.block
    visible = np.append(list_committed_ends(contract, past), np.full(block, past + 2 * block))
    return _forward(contract, past, visible, block + np.arange(block) - contract.shift)


def list_committed_ends(contract: Contract, past: int) -> Ints:
    """Returns each token's attention prefix length in a finished block. int64 [block]"""
    block = contract.block
    return past + (np.arange(1, block + 1) if contract.commits_causally else np.full(block, block))


def make_verification(contract: Contract, past: int) -> Forward:
    """Returns the verification of a drafted block, with all rows predicted.

    If the model drafts ahead, the masks of the next draft follow the block.
    """
    block, ahead = contract.block, contract.block - 1 if contract.drafts_ahead else 0
    width = block + ahead
    visible = past + np.arange(1, width + 1)
    if contract.attention != "causal":
        visible[block:] = past + width
    return _forward(contract, past, visible, np.arange(width))


def make_token(contract: Contract, past: int) -> Forward:
    """Returns a forward pass of one token, for a model that decodes token by token."""
    return _forward(contract, past, np.array([past + 1]), np.zeros(1, np.int64))


def make_prefill(contract: Contract, length: int) -> Forward:
    """Returns the prefill of a prompt's committed tokens; it predicts the last row."""
    return _forward(contract, 0, compute_committed_ends(contract, length), np.array([length - 1]))


def make_whole(contract: Contract, prompt: int) -> Forward:
    """Returns a step of a model without a KV cache, over prompt and canvas; it predicts the canvas's first block."""
    width = prompt + contract.canvas
    return _forward(contract, 0, np.full(width, width), prompt + np.arange(contract.block) - contract.shift)


def list_block_steps(contract: Contract) -> list[Forward]:
    """Returns the step over a masked block at the start, middle and end of the capacity."""
    if not contract.has_cache:
        return [make_whole(contract, prompt) for prompt in choose_places(contract.capacity - contract.canvas, 1)]
    return [
        make_canvas_step(contract, past)
        for past in choose_places(contract.capacity - 2 * contract.block, contract.block)
    ]


def add_candidates(contract: Contract, forward: Forward, count: int) -> Forward:
    """Returns the forward pass with `count` candidates per row, distinct tokens from all over the vocabulary."""
    if not count:
        return forward
    tokens = np.arange(count) * (contract.vocab - 1) // count
    tokens += tokens >= contract.mask_id  # the mask token cannot be a candidate
    return replace(forward, candidates=np.tile(tokens, (*forward.rows.shape, 1)))


def _forward(contract: Contract, past: int, visible: Ints, rows: Ints) -> Forward:
    ids = np.full((1, len(visible)), contract.mask_id, np.int64)  # the ids do not change the time
    return Forward(ids, np.array([past], np.int64), visible[None].astype(np.int64), rows[None].astype(np.int64))


def choose_places(room: int, multiple: int) -> list[int]:
    """Returns start, middle and end of `room`, rounded down to multiples of `multiple`, each once."""
    least = 0 if multiple > 1 else 1  # without a KV cache these are prompt lengths, and a prompt is never empty
    return sorted({max(least, part // multiple * multiple) for part in (0, room // 2, room)})


def choose_prefill_lengths(contract: Contract) -> list[int]:
    """Returns the lengths to prefill: what this model commits of a block, and of a quarter, half and all of the room.

    The room is the prompt's: the capacity without one block.
    """
    room = min(contract.capacity - contract.block, contract.max_prompt or contract.capacity)
    lengths = {count_committed(contract, length) for length in (contract.block, room // 4, room // 2, room)}
    return sorted(length for length in lengths if length > 0)


def time_calls(work: Callable[[], object], repeat: int, warmup: int) -> NDArray[np.float64]:
    """Returns the seconds of each of `repeat` calls, after `warmup` calls that are not counted. [repeat]"""
    seconds = []
    for _ in range(warmup + repeat):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return np.array(seconds[warmup:])


def time_by_turns(
    works: Sequence[Callable[[], object]], rounds: int, warmup: int, pause: float = 0.0
) -> NDArray[np.float64]:
    """Returns the seconds of calls that take turns, so that a machine that gets slower slows all. [works, rounds]

    A turn is an untimed call, since the turn before had other shapes or another engine, and a timed one. Every other
    round has the reverse order. The first `warmup` rounds are not counted. pause: seconds before each turn.
    """
    seconds = np.zeros((len(works), warmup + rounds))
    for number in range(warmup + rounds):
        for place in range(len(works))[:: 1 if number % 2 else -1]:
            time.sleep(pause)
            seconds[place, number] = time_calls(works[place], 1, 1)[0]
    return seconds[:, warmup:]


def compute_percentiles(values: NDArray[Any]) -> Spread:
    return Spread(*(float(value) for value in np.quantile(values, (0.1, 0.5, 0.9))))
