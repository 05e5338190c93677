"""The most likely tokens as outputs of a step graph: what they are, who pays for them, how they are proved."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from test_graph_step import forwards
from test_proof_parity import Damaged, looked_at

from export.contract_from_checkpoint import make_export_contract
from export.graph.graph_writer import write_graph
from export.graph.ort_graph import write_ort_graph
from export.graph.step_graph import trace
from export.proof.by_layer import check_by_layer
from export.proof.compare import TIE, compare
from export.proof.instrumented import add_logits, load_instrumented
from export.proof.prove import prove, sample_requests
from export.quantization.ort_formats import choose_formats
from runtime.backend import Forward, Proposal
from runtime.contract import ALIGNMENTS, TOP, Contract
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend

SEED, K = 5, 6
PAIRWISE = [("ort", "full"), ("trt", "block_causal")]
KINDS = [
    pytest.param(kind, id="-".join(kind), marks=() if kind in PAIRWISE else pytest.mark.long)
    for kind in itertools.product(("ort", "trt", "plain"), ("block_causal", "full"))
]
Made = tuple[Checkpoint, Contract, Path]


def made(folder: Path, dialect: str, attention: str, top_k: int = K, logits: bool = False) -> Made:
    source = tiny.checkpoint(SEED, attention=attention)
    contract = make_export_contract(source, 64, top_k)
    file = write_graph(trace(source, 64, dialect, top_k=top_k), folder, "graph")[0]
    if logits:
        graph = onnx.load(file)
        add_logits(graph, contract.vocab)
        onnx.save(graph, file)
    return source, contract, file


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("graph"), "ort", "block_causal")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The instrumented graph: with the logits as one more output."""
    return made(tmp_path_factory.mktemp("kind"), *request.param, logits=True)


def test_top_tokens_are_those_of_the_logits_best_first(kind: Made) -> None:
    _, contract, file = kind
    onnx.checker.check_model(file)
    engine = OrtBackend(file, contract, threads=1)
    engine.open(1, 32)
    for forward in forwards(np.random.default_rng(SEED), contract.attention == "full"):
        out = engine.forward(replace(forward, top=True))
        assert out.top_token is not None and out.top_logprob is not None
        best = torch.log_softmax(torch.from_numpy(engine.last_logits), -1).topk(K)
        assert out.top_token.dtype == np.int64 and out.top_logprob.dtype == np.float32
        np.testing.assert_array_equal(out.top_token, best.indices.numpy())
        np.testing.assert_allclose(out.top_logprob, best.values.numpy(), atol=2e-6)
        np.testing.assert_array_equal(out.top_token[..., 0], out.token)
        np.testing.assert_allclose(np.exp(out.top_logprob[..., 0]), out.confidence, rtol=1e-6)
        assert not (out.top_token == tiny.MASK).any() and np.isfinite(out.top_logprob).all()


def test_whole_answers_at_a_temperature_are_those_of_pytorch(kind: Made) -> None:
    source, contract, file = kind
    session = OrtBackend(file, contract, threads=1).session
    rng, different = random.Random(3), 0
    for alignment, shift, length in itertools.product(ALIGNMENTS, (False, True), (1, tiny.BLOCK + 1, 14)):
        other = replace(contract, alignment=alignment, shift=shift)
        engine, reference = OrtBackend(session, other), TorchBackend(source.build(), other)
        request = Request(tiny.prompt(rng, length), DecodeOptions(10, temperature=1.5, seed=rng.randrange(2**40)))
        ours = [generate(engine, request, threshold=0.4, fused=fused) for fused in (True, False)]
        theirs = generate(reference, request, threshold=0.4)
        assert {each.token_ids for each in ours} == {theirs.token_ids} and ours[0].seed == request.options.seed
        best, expected = (generate(each, request, threshold=0.4, temperature=0.0) for each in (engine, reference))
        assert best.token_ids == expected.token_ids and best.seed is None
        different += best.token_ids != theirs.token_ids
    assert different > 12


def test_a_graph_without_them_has_nothing_of_them(cached: Made, tmp_path: Path) -> None:
    plain = onnx.load(made(tmp_path, "ort", "block_causal", top_k=0)[2]).graph
    names = {value.name for value in (*plain.input, *plain.output)}
    assert not names & {*TOP, "top_k"} and "TopK" not in {node.op_type for node in plain.node}
    graph = onnx.load(cached[2]).graph
    assert {value.name for value in (*graph.input, *graph.output)} - names == {*TOP, "top_k"}
    assert {node.op_type for node in graph.node} - {node.op_type for node in plain.node} == {"TopK"}


@pytest.mark.long
def test_tensorrt_is_given_a_constant(tmp_path: Path) -> None:
    graph = onnx.load(made(tmp_path, "trt", "block_causal")[2]).graph
    [node] = [node for node in graph.node if node.op_type == "TopK"]
    assert node.input[1] in {each.name for each in graph.initializer} and not node.domain
    shapes = {out.name: [d.dim_value for d in out.type.tensor_type.shape.dim] for out in graph.output}
    assert shapes["top_token"][2] == shapes["top_logprob"][2] == K


def test_a_forward_that_does_not_ask_gets_none_and_the_rest_is_the_same(cached: Made) -> None:
    engine = OrtBackend(cached[2], cached[1], threads=1)
    engine.open(1, 32)
    for forward in forwards(np.random.default_rng(SEED), False):
        without, asked = engine.forward(forward), engine.forward(replace(forward, top=True))
        assert without.top_token is None and without.top_logprob is None and asked.top_token is not None
        for name in ("token", "confidence", "entropy"):
            np.testing.assert_array_equal(getattr(without, name), getattr(asked, name))
        again = engine.forward(replace(forward, top=True))
        np.testing.assert_array_equal(asked.top_token, again.top_token)


def test_pytorchs_top_tokens_are_asked_for_too() -> None:
    reference = TorchBackend(tiny.model(1), tiny.contract(top_k=K))
    reference.open(1, 32)
    for forward in forwards(np.random.default_rng(SEED), False):
        assert reference.forward(forward).top_token is None
        out = reference.forward(replace(forward, top=True))
        assert out.top_token is not None and out.top_token.shape == (1, 3, K)
        np.testing.assert_array_equal(out.top_token[..., 0], out.token)


@pytest.mark.long
def test_a_graph_and_a_manifest_that_disagree_about_them_are_refused(cached: Made, tmp_path: Path) -> None:
    _, contract, file = cached
    plain, trt = made(tmp_path, "ort", "block_causal", top_k=0)[2], made(tmp_path, "trt", "block_causal")[2]
    for graph, top_k in ((file, 0), (plain, K), (trt, K + 1), (trt, 0)):
        with pytest.raises(UserError, match=r"top_\w+ differs; export it again"):
            OrtBackend(graph, replace(contract, top_k=top_k))
    assert OrtBackend(trt, contract).contract.top_k == K


@pytest.mark.parametrize("top_k", [-1, tiny.VOCAB])
def test_more_than_the_model_can_give_is_refused(top_k: int) -> None:
    source = tiny.checkpoint(SEED)
    known = source.count_vocab() - 1 - len(source.list_missing_ids())
    with pytest.raises(UserError, match=rf"--top-k is {top_k}; expected 0, .* to {known}, the tokens it may give"):
        make_export_contract(source, None, top_k)
    assert make_export_contract(source, None, known).top_k == known


LONG = [
    pytest.param(*each, marks=pytest.mark.long)
    for each in (("whole", "fp16"), ("whole", "int8"), ("whole", "int4"), ("layers", "fp32"))
]


@pytest.mark.parametrize(("parity", "precision"), [("whole", "fp32"), ("layers", "int8"), *LONG])
def test_an_export_proves_them_in_every_precision(precision: str, parity: str, tmp_path: Path) -> None:
    source = tiny.checkpoint(SEED)
    contract = make_export_contract(source, 64, K)
    file = write_ort_graph(source, contract, precision, tmp_path)[0]
    found = {
        check.name: check
        for check in prove(source, contract, file, precision, parity, choose_formats("ort", precision))
    }
    assert all(check.ok for check in found.values()), [str(check) for check in found.values()]
    assert ("of the top tokens" if parity == "whole" else "of the top-1 and the top tokens") in found[
        "steps" if parity == "whole" else "head"
    ].detail


def other_scores(proposal: Proposal) -> None:
    assert proposal.top_logprob is not None
    proposal.top_logprob[0, 1, 2] -= 2e-4


def other_tokens(proposal: Proposal) -> None:
    assert proposal.top_token is not None
    proposal.top_token[0, 2, 1:3] = proposal.top_token[0, 2, 2:0:-1]


def without_the_best(proposal: Proposal) -> None:
    """Right about each token that is listed."""
    for part in proposal.list_arrays()[3:]:
        part[..., :-1] = part[..., 1:].copy()


@pytest.mark.parametrize("damage", [None, other_scores, other_tokens, without_the_best])
def test_each_error_in_them_alone_fails_the_check(damage: Callable[[Proposal], None] | None, cached: Made) -> None:
    source, contract, file = cached
    engine, reference = OrtBackend(file, contract, threads=1), TorchBackend(source.build(), contract)
    found = looked_at(reference, Damaged(engine, damage, None))
    assert found.top is not None and (found.top > 1e-4) == (damage is not None) == (not found.check("fp32").ok)
    assert replace(found, top=None).check("fp32").ok
    twin = looked_at(reference, Damaged(engine, damage, None), load_instrumented(file, engine))
    assert twin.twin is not None and (twin.twin > 1e-6) == (damage is not None)  # so in precisions without a bound too


def test_a_comparison_of_answers_looks_at_them(cached: Made) -> None:
    source, contract, file = cached
    engine, reference = OrtBackend(file, contract, threads=1), TorchBackend(source.build(), contract)
    requests = sample_requests(contract)[:2]
    *_, right = compare(reference, engine, requests, instrumented=load_instrumented(file, engine))
    assert all(check.ok for check in right.make_checks(TIE)) and right.distance.top is not None
    *_, wrong = compare(reference, Damaged(engine, without_the_best, None), requests)
    assert [check.ok for check in wrong.make_checks(TIE)] == [False, True]


def test_a_head_that_ranks_wrongly_fails_layer_by_layer(cached: Made, tmp_path: Path) -> None:
    source, contract, file = cached
    model = onnx.load(file)
    for node in model.graph.node:
        if node.op_type == "TopK":
            assert [each.name for each in node.attribute if each.name == "largest"] == ["largest"]
            next(each for each in node.attribute if each.name == "largest").i = 0
    onnx.save(model, tmp_path / "wrong.onnx")
    assert all(check.ok for check in check_by_layer(source, contract, file, "fp32"))
    wrong = [check.name for check in check_by_layer(source, contract, tmp_path / "wrong.onnx", "fp32") if not check.ok]
    assert wrong == ["head"]


def test_a_forward_that_asks_keeps_its_bindings_apart(cached: Made) -> None:
    """Each shape's buffers are bound once; asking or not is part of the shape."""
    engine = OrtBackend(cached[2], cached[1], threads=1)
    engine.open(1, 32)
    forward = Forward(np.full((1, 4), 5), np.array([0]), np.full((1, 4), 4), np.arange(4)[None])
    kept = engine.forward(replace(forward, top=True))
    before = kept.top_token.copy()  # type: ignore[union-attr]
    engine.forward(replace(forward, input_ids=forward.input_ids + 3, top=True))
    np.testing.assert_array_equal(kept.top_token, before)
