"""The dialects in standard ONNX, run on the CPU by ONNX Runtime and by onnx's own reference, against PyTorch."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import tiny
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from export.contract_from_checkpoint import make_export_contract
from export.graph import step_graph
from export.graph.dialect_standard import PLAIN, rms_norm
from export.graph.step_graph import DIALECTS
from export.proof.compare import TIE, SideBySide, compare
from runtime.backend import Forward, Ints
from runtime.bundle.manifest import read
from runtime.contract import ALIGNMENTS, Contract
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.ort.ort_session import load_session
from runtime.engines.registry import KINDS
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend

LENGTHS = (1, tiny.BLOCK - 1, tiny.BLOCK, tiny.BLOCK + 1, 3 * tiny.BLOCK + 2)
CAPACITY = 40
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FP16 = (
    0.02  # the bound in fp16: on |delta log p| of a top-1 token, on entropies, and on how close a changed decision was
)
REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "Softmax", "ArgMax", "Log", "Sqrt", "Reciprocal", "Pow"}


@dataclass(frozen=True, slots=True)
class Exported:
    """A tiny model of a seed drawn now, and one of its graphs."""

    seed: int
    source: Checkpoint
    contract: Contract
    file: Path

    def pair(self, **decoding: Any) -> tuple[TorchBackend, OrtBackend]:
        """Both backends, with some fields of the contract changed: they are data beside the graph."""
        contract = replace(self.contract, **decoding)
        return TorchBackend(self.source.build(), contract), OrtBackend(load_session(self.file, 1), contract)


def test_what_a_manifest_says_of_a_dialect_is_what_its_graphs_do() -> None:
    engine = read(Path(__file__).parent / "golden" / "ort.bundle").engines[0]
    assert {name: replace(engine, dialect=name).cache for name in DIALECTS} == {
        name: dialect.cache for name, dialect in DIALECTS.items()
    }
    assert {dialect for kind in KINDS.values() for dialect in kind.dialects} == {*DIALECTS}


def export(
    folder: Path, dialect: str, precision: str = "fp32", *, batch: int | None = 1, **decoding: Any
) -> Exported:  # fmt: skip
    seed = tiny.choose_seed()
    print(f"BLOCKSTEP_SEED={seed}")
    source, file = tiny.checkpoint(seed, **decoding), folder / f"{dialect}-{precision}.onnx"
    contract = make_export_contract(source, CAPACITY)
    onnx_ir.save(step_graph.trace(source, CAPACITY, dialect=dialect, dtype=DTYPES[precision], batch=batch), file)
    return Exported(seed, source, contract, file)


Graphs = Callable[[str, str], Exported]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """A graph by dialect and precision, exported when it is first asked for."""
    return functools.cache(lambda dialect, precision: export(tmp_path_factory.mktemp("graph"), dialect, precision))


@pytest.fixture(params=["trt", "plain"])
def exact(request: pytest.FixtureRequest, graphs: Graphs) -> Exported:
    return graphs(request.param, "fp32")


@pytest.fixture(params=["trt", pytest.param("plain", marks=pytest.mark.long)])
def half(request: pytest.FixtureRequest, graphs: Graphs) -> Exported:
    return graphs(request.param, "fp16")


def prompts(seed: int, each: int) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(tiny.prompt(rng, length), DecodeOptions(rng.randrange(6, 13)))
        for length in LENGTHS
        for _ in range(each)
    ]


def test_answers_are_those_of_pytorch_in_every_combination(exact: Exported) -> None:
    answers, excused, requests = 0, 0, prompts(exact.seed + 17, 2)
    for alignment, shift in itertools.product(ALIGNMENTS, (False, True)):
        *_, parity = compare(*exact.pair(alignment=alignment, shift=shift), requests, separate=1)
        where = f"BLOCKSTEP_SEED={exact.seed}, {alignment}, shift {shift}"
        for each in parity.differing:
            assert each.closest < TIE, f"{where}: {each} of {requests[each.request]}"
        assert parity.answers == 2 * len(requests)  # every one with fused commits and with commits of their own
        d = parity.distance
        assert max(d.log_prob, d.entropy, d.keys, d.values) <= 1e-4, f"{where}: {d}"
        answers, excused = answers + parity.answers, excused + len(parity.differing)
    assert excused <= answers // 50, f"BLOCKSTEP_SEED={exact.seed}: {excused} of {answers} excused"


@pytest.mark.parametrize("dialect", ["plain", pytest.param("trt", marks=pytest.mark.long)])
def test_a_model_without_a_cache_answers_alike(dialect: str, tmp_path: Path) -> None:
    exported = export(tmp_path, dialect, attention="full")
    requests = [request for request in prompts(exported.seed, 1) if set(request.prompt.tolist()) != {tiny.MASK}]
    *_, parity = compare(*exported.pair(), requests)
    assert parity.distance.forwards > len(requests) and parity.distance.log_prob <= 1e-4
    assert all(each.closest < TIE for each in parity.differing), f"BLOCKSTEP_SEED={exported.seed}: {parity}"


def test_fp16_stays_within_its_bound_step_by_step(half: Exported) -> None:
    """Every forward goes on from what PyTorch chose: one other token would make another text of all that follows."""
    *_, parity = compare(*half.pair(), prompts(half.seed + 17, 4), separate=1)
    d = parity.distance
    print(f"{half.file.name}: {d}; {len(parity.differing)} of {parity.answers} answers differ")
    where = f"BLOCKSTEP_SEED={half.seed}: {d}"
    assert 0 < d.log_prob <= FP16 and d.entropy <= FP16, where
    assert d.tokens <= d.rows // 50, where
    assert all(each.closest <= FP16 for each in parity.differing), f"{where}, {parity.differing}"


def plan(rng: np.random.Generator) -> list[Forward]:
    """A prefill, a canvas over it, a fused step, and a step in which every query sees another prefix."""
    lines = [(0, [13] * 13), (13, [17] * 4), (13, [17] * 4 + [21] * 4), (17, [1, 24, 2, 18, 24, 19, 17])]
    made = []
    for past, visible in lines:
        ids, rows = rng.integers(0, tiny.VOCAB, (1, len(visible))), rng.integers(0, len(visible), (1, 3))
        made.append(Forward(ids, np.array([past]), np.array([visible]), rows))
    return made


def test_what_lies_behind_the_past_changes_nothing(exact: Exported) -> None:
    """Numbers, that is: a weight of 0 times a NaN is NaN, which is why caches are zeroed when they are allocated."""
    (_, clean), (_, dirty) = exact.pair(), exact.pair()
    clean.open(1, 32)
    dirty.open(1, 32)
    dirty.cache[...] = np.random.default_rng(exact.seed).normal(0, 100, dirty.cache.shape)
    for forward in plan(np.random.default_rng(exact.seed)):
        ours, theirs = clean.forward(forward), dirty.forward(forward)
        np.testing.assert_array_equal(ours.confidence, theirs.confidence)
        np.testing.assert_array_equal(ours.entropy, theirs.entropy)


@pytest.mark.parametrize(
    ("dialect", "precision"),
    [("trt", "fp32"), ("trt", "fp16"), ("plain", "fp32"), pytest.param("plain", "fp16", marks=pytest.mark.long)],
)
def test_a_cache_is_of_the_length_and_type_that_the_graph_has(dialect: str, precision: str, graphs: Graphs) -> None:
    _, candidate = graphs(dialect, precision).pair()
    candidate.open(1, 8)
    assert candidate.cache.shape == (4, 1, 2, CAPACITY, 8)
    assert candidate.cache.dtype == {"fp32": np.float32, "fp16": np.float16}[precision]
    candidate.forward(plan(np.random.default_rng(0))[0])
    assert candidate.cache[..., :13, :].any() and not candidate.cache[..., 13:, :].any()
    _, longer = graphs(dialect, precision).pair(capacity=64)
    assert longer.contract.capacity == CAPACITY


@pytest.mark.long
def test_rows_of_a_batch_are_what_each_is_alone(tmp_path: Path) -> None:
    exported = export(tmp_path, "trt", batch=None)
    reference, _ = exported.pair()
    session = load_session(exported.file, 1)
    rng, batch = np.random.default_rng(exported.seed), 3
    caches = {e.name: np.zeros((batch, *e.shape[1:]), np.float32) for e in session.get_inputs() if len(e.shape) == 4}
    for past, visible in (([0, 0, 0], [6, 6, 6]), ([6, 3, 1], [10, 7, 5])):
        width = visible[0] - past[0]
        ids, rows = rng.integers(0, tiny.VOCAB, (batch, width)), rng.integers(0, width, (batch, 2))
        seen = np.repeat(np.array(visible)[:, None], width, axis=1)
        forward = Forward(ids, np.array(past), seen, rows)
        feeds = {"input_ids": ids, "past_length": forward.past_length, "visible": seen, "rows": rows, **caches}
        token, confidence, entropy, *present = session.run(None, feeds)
        caches = dict(zip(caches, present, strict=True))
        if not any(past):
            reference.open(batch, 32)
        wanted = reference.forward(forward)
        np.testing.assert_allclose(confidence, wanted.confidence, atol=1e-5, err_msg=f"BLOCKSTEP_SEED={exported.seed}")
        np.testing.assert_allclose(entropy, wanted.entropy, atol=1e-4)
        assert (token == wanted.token).mean() > 0.8  # but for ties


def inputs(exported: Exported, forward: Forward, dtype: type) -> dict[str, Ints | np.ndarray]:
    c = exported.contract
    names = [f"past_key_values.{i}.{part}" for i in range(c.layers) for part in ("key", "value")]
    cache = {name: np.zeros((1, c.kv_heads, CAPACITY, c.head_dim), dtype) for name in names}
    given = {name: getattr(forward, name) for name in ("input_ids", "past_length", "visible", "rows")}
    return {**given, **cache}


def types(file: Path) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A graph and the element type of each of its values, as onnx infers them."""
    model = onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True, data_prop=True)
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return model, known | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def narrow_reductions(file: Path) -> list[str]:
    """The reductions, roots, logarithms and squares of a graph that take something narrower than fp32."""
    model, known = types(file)
    wide = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64)
    squares = [n for n in model.graph.node if n.op_type == "Mul" and n.input[0] == n.input[1]]
    asked = [n for n in model.graph.node if n.op_type in REDUCTIONS] + squares
    assert len(squares) >= 5 and len(asked) > 20
    return [f"{node.op_type} {node.name}" for node in asked if known[node.input[0]] not in wide]


def narrow_products(file: Path) -> set[int]:
    """The element types that matrix products, attention and cache of a graph have."""
    model, known = types(file)
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Attention", "TensorScatter")]
    assert len(products) > 10
    return {known[node.input[0]] for node in products}


def test_reductions_and_squares_take_fp32_in_fp16(half: Exported) -> None:
    assert narrow_reductions(half.file) == []
    assert narrow_products(half.file) == {onnx.TensorProto.FLOAT16}


@pytest.mark.long
def test_reductions_and_squares_take_fp32_in_bf16(tmp_path: Path) -> None:
    file = export(tmp_path, "trt", "bf16").file
    assert narrow_reductions(file) == []
    assert narrow_products(file) == {onnx.TensorProto.BFLOAT16}


def test_each_dialect_keeps_to_its_operators(exact: Exported) -> None:
    model = onnx.load(exact.file)
    onnx.checker.check_model(model, full_check=True)
    (opset,) = model.opset_import
    names = [node.op_type for node in model.graph.node]
    attentions = [node for node in model.graph.node if node.op_type == "Attention"]
    if exact.file.name.startswith("plain"):
        assert opset.domain == "" and opset.version <= 20 and not {"Attention", "TensorScatter"} & set(names)
    else:
        assert opset.domain == "" and opset.version == 24 and names.count("TensorScatter") == 4
        assert [len(node.input) for node in attentions] == [4, 4]  # with the mask, without nonpad_kv_seqlen
        assert all(node.input[3] for node in attentions)


def infinite(file: Path, loud: Path, feeds: dict[str, Any]) -> list[str]:
    """The values that are infinite or NaN when a graph is evaluated node by node in its own types, in numpy.

    Its embedding is first made so loud that every token brings an activation of 400; `loud` is where that graph goes.
    """
    model = onnx.load(file)
    (lookup,) = (node for node in model.graph.node if "input_ids" in node.input and node.op_type == "Gather")
    (table,) = (tensor for tensor in model.graph.initializer if tensor.name == lookup.input[0])
    values = onnx.numpy_helper.to_array(table).astype(np.float32)  # [vocab, hidden]
    values *= 400 / np.abs(values).max(axis=1, keepdims=True)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float16), "loud"))
    lookup.input[0] = "loud"  # a table of its own: where the head is tied, the logits would be loud too
    onnx.save(model, loud)
    with np.errstate(over="ignore", invalid="ignore"):
        found = ReferenceEvaluator(str(loud)).run(None, feeds, intermediate=True)
    floats = {name: value for name, value in found.items() if name and np.asarray(value).dtype.kind == "f"}
    assert len(floats) > 100
    return [name for name, value in floats.items() if not np.isfinite(value).all()]


def half_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm as it stands in a graph that was exported in fp16 throughout."""
    return rms_norm(x.half(), weight.half(), eps).float()


def test_activations_of_400_stay_finite_in_fp16(half: Exported, tmp_path: Path) -> None:
    feeds = inputs(half, plan(np.random.default_rng(half.seed))[0], np.float16)
    assert infinite(half.file, tmp_path / "loud.onnx", feeds) == [], f"BLOCKSTEP_SEED={half.seed}"


@pytest.mark.long
def test_they_overflow_in_a_naive_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the two checks of fp16 are seen to fail."""
    monkeypatch.setitem(step_graph.DIALECTS, "naive", replace(PLAIN, norm=half_norm))
    naive = export(tmp_path, "naive", "fp16")
    feeds = inputs(naive, plan(np.random.default_rng(naive.seed))[0], np.float16)
    assert infinite(naive.file, tmp_path / "loud.onnx", feeds)
    assert narrow_reductions(naive.file)


def test_a_cache_that_numpy_has_no_numbers_for_is_refused(tmp_path: Path, exact: Exported) -> None:
    past = onnx.helper.make_tensor_value_info("past_key_values.0.key", onnx.TensorProto.BFLOAT16, [1, 2, 40, 8])
    present = onnx.helper.make_tensor_value_info("present.0.key", onnx.TensorProto.BFLOAT16, [1, 2, 40, 8])
    nodes = [onnx.helper.make_node("Identity", [past.name], [present.name])]
    made = onnx.helper.make_graph(nodes, "graph", [past], [present])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(made, opset_imports=opset, ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="bfloat16"):
        OrtBackend(tmp_path / "model.onnx", exact.contract)


def test_forwards_side_by_side_write_the_same_cache(exact: Exported) -> None:
    both = SideBySide(*exact.pair())
    both.open(1, 32)
    for forward in plan(np.random.default_rng(exact.seed)):
        both.forward(forward)
    d = both.distance
    assert d.rows == 12 and max(d.log_prob, d.entropy, d.keys, d.values) < 5e-5, f"BLOCKSTEP_SEED={exact.seed}: {d}"
