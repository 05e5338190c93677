"""Scores at the edges: exactly at the threshold, never sure, all alike, and weights that are no numbers."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import tiny
import torch
from onnx import numpy_helper
from reliability.section import Section

from runtime.backend import Forward, Proposal
from runtime.bundle.store import read
from runtime.contract import GateSpec
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import NumericalError
from train.torch_backend import TorchBackend

TITLE = "Scores at the edges"
BUNDLE = Path(__file__).parents[2] / "samples" / "student.bundle"
BLOCKS = 64  # the longest that never becomes confident
Row = tuple[str, int, str]


def run(scale: float) -> Section:
    """All of it at 1, a part below. Raises AssertionError where the edge is on the wrong side or a NaN passes."""
    rng = random.Random(3)
    rows = (at_the_threshold(math.ceil(2000 * scale)), unsure(math.ceil(BLOCKS * scale)), alike())
    return Section(TITLE, (*rows, *poisoned(math.ceil(60 * scale), rng)))


def at_the_threshold(count: int) -> Row:
    """One score everywhere, as the threshold and one step of fp32 to either side, by every comparator."""
    rng = np.random.default_rng(3)
    scores = np.concatenate((rng.random(count, np.float32), np.arange(0, 1001, 1 + 1000 // count) / 1000))
    for score in scores.astype(np.float32):
        low, high = (float(np.nextafter(score, np.float32(end), dtype=np.float32)) for end in (-1, 2))
        for comparator, passing, failing in (
            (">=", (low, float(score)), (high,)), (">", (low,), (float(score), high)),
            ("<=", (float(score), high), (low,)), ("<", (high,), (low, float(score))),
        ):  # fmt: skip
            for thresholds, steps in ((passing, 1), (failing, tiny.BLOCK)):
                for threshold in (t for t in thresholds if 0 <= t <= 1):
                    assert steps_of(score, comparator, threshold) == steps, (score, comparator, threshold)
    for k in range(1001):  # a decimal threshold is meant as its nearest fp32, which the scores are in
        assert steps_of(np.float32(k / 1000), ">=", k / 1000) == 1, k
    return "a score exactly at the threshold, and one step of fp32 next to it", len(scores), "decided as compared"


def steps_of(score: np.float32, comparator: str, threshold: float) -> int:
    """The steps of a block whose positions all have this score."""
    metric = "confidence" if comparator[0] == ">" else "entropy"
    contract = tiny.contract(gate={"metric": metric, "comparator": comparator, "threshold": 0.5})

    def script(forward: Forward) -> Proposal:
        part = np.full(forward.rows.shape, score)
        return Proposal(np.full(forward.rows.shape, 5), part, part)

    return generate(
        tiny.Scripted(contract, script), Request(np.array([5]), DecodeOptions(tiny.BLOCK)), threshold=threshold
    ).steps


def unsure(longest: int) -> Row:
    """Blocks of every length to `longest` that never grow sure take a step a position."""
    for block in range(1, longest + 1):
        contract = tiny.contract(block=block, canvas=3 * block, capacity=4 * block + 1, gate={"threshold": 1.0})
        rng = np.random.default_rng(block)

        def script(forward: Forward, rng: np.random.Generator = rng) -> Proposal:
            part = rng.random(forward.rows.shape, np.float32) * np.float32(0.99)
            return Proposal(np.full(forward.rows.shape, 5), part, 1 - part)

        result = generate(tiny.Scripted(contract, script), Request(np.array([5]), DecodeOptions(3 * block)))
        assert (result.steps, result.blocks, len(result.token_ids)) == (3 * block, 3, 3 * block), result
    return f"a block of 1 to {longest} that never becomes confident", longest, "ends after one step per position"


def alike() -> Row:
    """Weights of zero, in PyTorch and ONNX Runtime: all tokens alike, and the lowest that is no mask is taken."""
    zeros = tiny.model(0)
    with torch.no_grad():
        for parameter in zeros.parameters():
            parameter.zero_()
    empty = onnx.ModelProto()
    empty.CopyFrom(graph())
    for tensor in empty.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    backends = (TorchBackend(zeros, tiny.contract()), engine(empty))
    for backend in backends:
        contract = backend.contract
        result = generate(
            backend, Request(np.array([5, 6]), DecodeOptions(2 * contract.block)), gate=GateSpec(threshold=0.5)
        )
        lowest = next(token for token in range(contract.vocab) if token != contract.mask_id)
        assert set(result.token_ids) == {lowest} and result.steps == 2 * contract.block, result
    return "all scores alike", len(backends), "the lowest token that is not the mask, one step per position"


def poisoned(count: int, rng: random.Random) -> Iterator[Row]:
    """One weight of the sample student, anywhere, that is no number."""
    sound, weights = answer(engine(graph())), [t for t in graph().graph.initializer if len(t.dims) == 2]
    for poison in (math.nan, math.inf, -math.inf):
        found: Counter[str] = Counter()
        for _ in range(count):
            given = answer(engine(changed(rng.choice(weights), rng, poison)))
            told = "stopped by NumericalError" if given is None else "the same answer" if given == sound else "another"
            assert told != "another" or not math.isnan(poison), "a NaN changed an answer in silence"
            found[told] += 1
        outcome = ", ".join(f"{told} {times}" for told, times in sorted(found.items()))
        yield f"a weight of the sample student that is {poison}", count, outcome


def answer(backend: OrtBackend) -> tuple[int, ...] | None:
    """The tokens of an answer, None where the scores are told to be no numbers."""
    try:
        return generate(backend, Request(np.arange(20, 60), DecodeOptions(40))).token_ids
    except NumericalError:
        return None


def changed(weight: onnx.TensorProto, rng: random.Random, poison: float) -> onnx.ModelProto:
    """The sample's graph with one number of one weight replaced."""
    made = onnx.ModelProto()
    made.CopyFrom(graph())
    values = numpy_helper.to_array(weight).copy()
    values.flat[rng.randrange(values.size)] = poison
    place = next(i for i, tensor in enumerate(made.graph.initializer) if tensor.name == weight.name)
    made.graph.initializer[place].CopyFrom(numpy_helper.from_array(values, weight.name))
    return made


@cache
def graph() -> onnx.ModelProto:
    return onnx.load(BUNDLE / read(BUNDLE).find_engine().model)


def engine(model: onnx.ModelProto) -> OrtBackend:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return OrtBackend(session, read(BUNDLE).contract)
