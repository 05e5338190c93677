"""Records what PyTorch computes for real prompts: the reference in a bundle for machines without PyTorch.

If PyTorch can repeat an engine's quantized arithmetic (`QuantizedBackend`), the reference is recorded from that and not
from the unquantized model: a correct engine then differs from it only by fp32 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.precisions import PRECISIONS, Floors
from export.quantization.ort_formats import OrtFormats, choose_formats
from runtime.backend import Forward, Inspectable, Proposal
from runtime.bundle.manifest import REFERENCE, Engine, RecordedReference
from runtime.bundle.reference import (
    ANSWERS,
    BEST,
    ENTROPY,
    KEYS,
    LARGEST,
    TOP,
    TOP_MEAN,
    TOP_SPREAD,
    VALUES,
    RecordedAnswer,
    RecordedForward,
    Reference,
    list_figures,
    write_reference,
)
from runtime.bundle.store import hash_file, make_content_name
from runtime.contract import Contract
from runtime.decoding.loop import decode_steps
from runtime.decoding.options import Request
from runtime.proof.judge import Check, compute_terms, judge_answers, judge_figures, measure
from runtime.proof.replay import ReplayResult, compute_mean_norms, replay
from train.checkpoint import Checkpoint
from train.huggingface.weights import list_expected_shapes
from train.torch_backend import TorchBackend

from .compare import find_closest_call
from .quantized_reference import QuantizedBackend
from .token_gaps import TokenGaps

ROWS = 2500  # logits rows, of 260 bytes each, that a reference of less than 1 MB has room for
IDS = 30_000  # input tokens of forward passes that such a reference has room for
RECORD = 3e11  # floating-point operations that recording more than FEW answers may take: some seconds on one core
FEW = 8
FIRST_LOAD = 2e10  # floating-point operations that a first load has time for: half a second of one slow core
FIRST_ROWS = 450  # logits rows that a first load needs: three times as many show hardly more faults (LOG.md)
# Another machine's fp32 may differ in the last bit and so round an activation to the neighboring quantized value, which
# changes later rows. So a mean varies between machines by about its standard error, which a single mean, measured
# here, does not show.
ERRORS = 5  # standard errors by which a bound on a mean exceeds the mean measured here
SPREAD = 4  # the bound on the largest difference is this times the one measured here
FLOOR_ROWS = 400  # logits rows; over fewer, a precision's least bounds on means are widened by the root of the ratio
LIMIT, LIMIT_QUANTIZED = 10, 100  # at its export an engine may be off by this times its precision's least bound
ANSWER_MARGIN = 1e-4  # probability; an exact engine's answer may differ only if PyTorch decided by a smaller margin


def copy_of(forward: Forward, top: bool) -> Forward:
    """Copies the inputs, which are views of the canvas and would change with it."""
    ids, past, visible, rows = forward.input_ids, forward.past_length, forward.visible, forward.rows
    return Forward(ids.copy(), past.copy(), visible.copy(), rows.copy(), top)


class Recorder:
    """Runs every forward pass in PyTorch and keeps its inputs and outputs."""

    name = "recorder"

    def __init__(self, reference: TorchBackend | QuantizedBackend) -> None:
        self.reference, self.contract = reference, reference.contract
        self.torch = reference if isinstance(reference, TorchBackend) else reference.torch
        self.gaps, self.forwards = TokenGaps(self.contract.block), list[RecordedForward]()
        self._begins = True

    def open(self, batch: int, capacity: int) -> None:
        self.reference.open(batch, capacity)
        self.gaps.clear()
        self._begins = True

    def keep(self, rows: NDArray[np.int64]) -> None:
        self.reference.keep(rows)

    def forward(self, forward: Forward) -> Proposal:
        out = self.reference.forward(forward)
        log_probs = self.torch.log_probs
        if log_probs is None:
            raise AssertionError("the reference kept no log-probabilities")
        self.gaps.add(log_probs[0])
        count = min(TOP, int(torch.isfinite(log_probs[0]).sum(-1).min()))
        best = log_probs[0].topk(count)  # [n, count]
        kept = copy_of(forward, self.contract.top_k > 0)
        top, norms = best.values.numpy(), self._compute_norms(forward).astype(np.float32)
        self.forwards.append(RecordedForward(self._begins, kept, best.indices.numpy(), top, out.entropy[0], norms))
        self._begins = False
        return out

    def _compute_norms(self, forward: Forward) -> NDArray[np.float64]:
        """Returns mean norms of the keys and values that a forward pass wrote. fp64 [layers, 2]"""
        cache, past, width = self.torch.cache, int(forward.past_length[0]), forward.input_ids.shape[1]
        if cache is None:
            return np.zeros((0, 2))
        parts = [
            part[:, :, past : past + width] for pair in zip(cache.keys, cache.values, strict=True) for part in pair
        ]
        return compute_mean_norms(torch.stack(parts).numpy())


def record(
    reference: TorchBackend | QuantizedBackend, requests: Sequence[Request], operations: float = 0.0
) -> Reference:
    """Answers the requests in PyTorch, with the contract's gate; returns the answers and every forward pass.

    Stops at the first request with which the reference exceeds ROWS or IDS or, from FEW answers on, RECORD operations;
    that request's answer is dropped. The first request is always recorded. operations: floating-point operations per
    token of a forward pass.
    """
    recorder, answers, gate = Recorder(reference), list[RecordedAnswer](), reference.contract.gate
    for request in requests:
        before, margin = len(recorder.forwards), 1.0
        for [step] in decode_steps(recorder, [request], mode=reference.contract.plainest_mode):
            gap = recorder.gaps.measure_canvas(step)
            if (step.open | step.accepted).any():
                margin = min(margin, find_closest_call(gate, step, gap))
            result = step.result
        slow = len(answers) >= FEW and operations * count_ids(recorder.forwards) > RECORD
        if answers and (slow or is_too_large(recorder.forwards)):
            del recorder.forwards[before:]
            break
        assert result is not None  # of the last step
        tokens = tuple(int(token) for token in result.token_ids)
        answers.append(RecordedAnswer(request.prompt, int(request.options.max_new_tokens or 0), tokens, margin))
    return Reference(tuple(recorder.forwards), tuple(answers))


def is_too_large(forwards: Sequence[RecordedForward]) -> bool:
    """Returns whether these forward passes exceed a reference's limits (ROWS, IDS)."""
    return count_rows(forwards) > ROWS or count_ids(forwards) > IDS


@dataclass(frozen=True, slots=True)
class Recording:
    """Holds a written reference: its manifest entry, its file, and the check of the exported engine."""

    entry: RecordedReference
    file: Path
    check: Check


def record_reference(
    source: Checkpoint,
    contract: Contract,
    engine: Engine,
    backend: Inspectable | None,
    requests: Sequence[Request],
    formats: OrtFormats | None,
    folder: Path,
) -> Recording:
    """Records a reference for an engine, writes it into a folder, and compares the engine with it.

    Bounds are measured on the exporting machine: no fixed bound fits all, since the errors of a deep quantized model
    vary more than those of a shallow one. They are then widened for other machines, to the precision's least bounds or
    more. backend: None if nothing here runs
    the graph; the bounds are then the precision's least bounds.
    """
    reference: TorchBackend | QuantizedBackend
    if formats is None:
        reference = TorchBackend(source.build(), contract, barred=source.list_missing_ids())
    else:
        reference = QuantizedBackend(source, contract, formats)
    recorded, kept = record(reference, requests, count_operations(source)), PRECISIONS[engine.precision]
    first = count_first_load(source, recorded.forwards)
    if backend is None:
        bounds, part = (
            compute_least_bounds(engine, contract, each) for each in (recorded.forwards, recorded.forwards[:first])
        )
        detail = f"{describe_counts(recorded)}; nothing here runs {engine.precision}, so its bounds are not measured"
        return write_recording(engine, recorded, bounds, first, part, Check("reference", True, detail), folder)
    replayed = replay(backend, recorded.forwards)
    scatter = compute_scatter(recorded.forwards, replayed)
    bounds = derive_bounds(engine, recorded.forwards, replayed, scatter)
    if kept.exact and recorded.answers:
        bounds[ANSWERS] = ANSWER_MARGIN
    part = derive_bounds(engine, recorded.forwards[:first], take_part(replayed, recorded.forwards[:first]), scatter)
    answers = judge_answers(backend, recorded.answers, contract.gate, bounds)
    figures = judge_figures(recorded.forwards, replayed, choose_limits(engine))
    check = check_recorded_reference(recorded, replayed, [*figures, *answers])
    return write_recording(engine, recorded, bounds, first, part, check, folder)


def write_recording(
    engine: Engine,
    reference: Reference,
    bounds: dict[str, float],
    first_load: int,
    first_load_bounds: dict[str, float],
    check: Check,
    folder: Path,
) -> Recording:
    """Writes a reference into a folder, named by its hash. The other arguments are as in the manifest's entry."""
    plain = folder / f"{engine.name}.reference{REFERENCE}"
    write_reference(plain, reference)
    digest = hash_file(plain)
    file = plain.rename(folder / make_content_name(f"{engine.name}.reference", REFERENCE, digest))
    return Recording(RecordedReference(file.name, digest, bounds, first_load, first_load_bounds), file, check)


def check_recorded_reference(recorded: Reference, replayed: ReplayResult, checks: Sequence[Check]) -> Check:
    """Sums up what was recorded and how far the exported engine is from it."""
    missed = "".join(f"; {each.name}: {each.detail}" for each in checks if not each.ok)
    figures = "".join(f", {name} {each.value:.1e}" for name, each in measure(recorded.forwards, replayed).items())
    return Check("reference", all(each.ok for each in checks), describe_counts(recorded) + missed + figures)


def describe_counts(reference: Reference) -> str:
    """Returns how much was recorded, as text."""
    rows = count_rows(reference.forwards)
    return f"{len(reference.forwards)} forward passes, {rows} logits rows, {len(reference.answers)} answers"


def count_rows(forwards: Sequence[RecordedForward]) -> int:
    """Returns how many logits rows forward passes have."""
    return sum(each.entropy.size for each in forwards)


def count_ids(forwards: Sequence[RecordedForward]) -> int:
    """Returns how many input tokens forward passes have together."""
    return sum(each.forward.input_ids.size for each in forwards)


def count_operations(source: Checkpoint) -> int:
    """Returns the floating-point operations per token of a forward pass, without those of attention."""
    return 2 * sum(math.prod(shape) for shape in list_expected_shapes(source.model).values())


def count_first_load(source: Checkpoint, forwards: Sequence[RecordedForward]) -> int:
    """Returns how many of the forward passes a first load replays: as many as it needs and has time for, at least 2."""
    operations = count_operations(source) * np.cumsum([each.forward.input_ids.size for each in forwards])
    before = np.cumsum([0, *(each.entropy.size for each in forwards[:-1])])
    return min(len(forwards), max(2, int(((operations <= FIRST_LOAD) & (before < FIRST_ROWS)).sum())))


def take_part(replayed: ReplayResult, forwards: Sequence[RecordedForward]) -> ReplayResult:
    """Returns the part of a replay that belongs to these forward passes, which are its first ones."""
    rows = sum(each.entropy.size for each in forwards)
    top = None if replayed.top_logprob is None else replayed.top_logprob[:rows]
    norms = replayed.norms[: len(forwards)]
    return ReplayResult(replayed.token[:rows], replayed.log_prob[:rows], replayed.entropy[:rows], top, norms)


def compute_scatter(forwards: Sequence[RecordedForward], replayed: ReplayResult) -> dict[str, float]:
    """Returns, for each figure that is a mean, its standard error times the square root of the number of logits rows.

    Dividing by the root of another number of rows gives the standard error over those. Rows of one forward pass may
    have correlated errors, so the larger of two estimates is taken: from rows, and from forward passes. Norms have only
    the latter, and it is that of the layer with the largest error.
    """
    rows, found = [each.entropy.size for each in forwards], {}
    for name, parts in compute_terms(forwards, replayed).items():
        passes = parts if parts.ndim == 2 else np.add.reduceat(parts, np.cumsum([0, *rows[:-1]]))
        errors = [np.sqrt(np.square(each).sum(0)).max() for each in (parts, passes)]
        found[name] = float(max(errors)) * math.sqrt(sum(rows))
    return found


def derive_bounds(
    engine: Engine, forwards: Sequence[RecordedForward], replayed: ReplayResult, scatter: Mapping[str, float]
) -> dict[str, float]:
    """Returns the bounds that an engine is judged by on other machines.

    scatter: as returned by `compute_scatter` for these forward passes or, for a better estimate, for more.
    """
    rows = count_rows(forwards)
    floors, bounds = choose_floors(engine, rows), {}
    for name, figure in measure(forwards, replayed).items():
        if name in scatter:
            value = max(floors[name], figure.value + ERRORS * scatter[name] / math.sqrt(rows))
        else:
            value = max(floors[name], SPREAD * figure.value)
        bounds[name] = round_up(value)
    return bounds


def compute_least_bounds(engine: Engine, contract: Contract, forwards: Sequence[RecordedForward]) -> dict[str, float]:
    """Returns the bounds of an engine that nothing here runs."""
    floors = choose_floors(engine, count_rows(forwards))
    return {name: round_up(value) for name, value in floors.items() if name in list_figures(contract)}


def choose_floors(engine: Engine, rows: int = FLOOR_ROWS) -> dict[str, float]:
    """Returns an engine's least bounds: its precision's, or fp16's if it multiplies in fp16 and those are wider.

    TensorRT multiplies quantized weights in fp16, ONNX Runtime's CPU in integers or fp32. rows: logits rows; over fewer
    than FLOOR_ROWS, bounds on means are wider.
    """
    row = PRECISIONS[engine.precision]
    least = row.replay
    if choose_formats(engine.dialect, engine.precision) is None and row.dtype == "float16":
        least = Floors(*(max(pair) for pair in zip(astuple(least), astuple(PRECISIONS["fp16"].replay), strict=True)))
    room = max(1.0, math.sqrt(FLOOR_ROWS / rows))
    norms = dict.fromkeys((KEYS, VALUES), room * least.mean_norm)
    means = dict.fromkeys((TOP_MEAN, BEST, ENTROPY), room * least.mean_log_prob)
    return {**norms, **means, TOP_SPREAD: room * least.mean_spread, LARGEST: least.largest_log_prob}


def choose_limits(engine: Engine) -> dict[str, float]:
    """Returns the limits that an engine must keep at its export; beyond them it is wrong, and the export fails."""
    times = LIMIT if PRECISIONS[engine.precision].exact else LIMIT_QUANTIZED
    return {name: times * floor for name, floor in choose_floors(engine).items()}


def round_up(value: float) -> float:
    """Rounds a value up to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-6) * unit:.2g}")
