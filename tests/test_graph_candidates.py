"""Log-probabilities of tokens that the host names, as an output of a step graph: what they are, and who pays."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from test_graph_step import forwards

from export.contract_from_checkpoint import make_export_contract
from export.graph.graph_writer import write_graph
from export.graph.step_graph import trace
from export.proof.instrumented import add_logits
from runtime.backend import Forward
from runtime.contract import CANDIDATE_INPUT, CANDIDATE_OUTPUT, Contract
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend

SEED, MOST = 5, 8
PAIRWISE = [("ort", "full"), ("standard", "block_causal"), ("trt", "block_causal")]
KINDS = [
    pytest.param(kind, id="-".join(kind), marks=() if kind in PAIRWISE else pytest.mark.long)
    for kind in itertools.product(("ort", "standard", "trt", "plain"), ("block_causal", "full"))
]
Made = tuple[Checkpoint, Contract, Path]


def made(
    folder: Path, dialect: str, attention: str, candidates: int = MOST, top_k: int = 0, logits: bool = True
) -> Made:
    source = tiny.checkpoint(SEED, attention=attention)
    contract = make_export_contract(source, 64, top_k, candidates)
    batch = None if dialect == "standard" else 1
    file = write_graph(
        trace(source, 64, dialect, top_k=top_k, candidates=candidates > 0, batch=batch), folder, "graph"
    )[0]
    if logits:
        graph = onnx.load(file)
        add_logits(graph, contract.vocab)
        onnx.save(graph, file)
    return source, contract, file


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The instrumented graph: with the logits as one more output."""
    return made(tmp_path_factory.mktemp("kind"), *request.param)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("graph"), "ort", "block_causal", top_k=3)


def with_candidates(forward: Forward, rng: np.random.Generator, count: int) -> Forward:
    known = np.array([token for token in range(tiny.VOCAB) if token != tiny.MASK])
    return replace(forward, candidates=rng.choice(known, (*forward.rows.shape, count)))


def test_they_are_those_of_the_logits_whatever_their_number(kind: Made) -> None:
    _, contract, file = kind
    onnx.checker.check_model(file)
    engine, rng = OrtBackend(file, contract, threads=1), np.random.default_rng(SEED)
    engine.open(1, 32)
    for forward in forwards(rng, contract.attention == "full"):
        for count in (1, 3, MOST):
            asked = with_candidates(forward, rng, count)
            out = engine.forward(asked)
            every = torch.log_softmax(torch.from_numpy(engine.last_logits).double(), -1)
            assert out.candidate_logprob is not None and out.candidate_logprob.dtype == np.float32
            expected = every.gather(-1, torch.from_numpy(asked.candidates)).numpy()
            np.testing.assert_allclose(out.candidate_logprob, expected, rtol=1e-6, atol=2e-6)


def test_pytorch_gives_the_same(kind: Made) -> None:
    source, contract, file = kind
    engine, reference = OrtBackend(file, contract, threads=1), TorchBackend(source.build(), contract)
    rng = np.random.default_rng(SEED + 1)
    for backend in (engine, reference):
        backend.open(1, 32)
    for forward in forwards(rng, contract.attention == "full"):
        asked = with_candidates(forward, rng, 5)
        ours, theirs = engine.forward(asked), reference.forward(asked)
        np.testing.assert_allclose(ours.candidate_logprob, theirs.candidate_logprob, atol=1e-5)


def test_a_forward_without_them_gets_none_and_the_rest_is_the_same_bit_for_bit(cached: Made) -> None:
    engine, rng = OrtBackend(cached[2], cached[1], threads=1), np.random.default_rng(SEED)
    engine.open(1, 32)
    for forward in forwards(rng, False):
        without, asked = engine.forward(forward), engine.forward(with_candidates(forward, rng, 4))
        assert without.candidate_logprob is None and asked.candidate_logprob is not None
        for name in ("token", "confidence", "entropy"):
            np.testing.assert_array_equal(getattr(without, name), getattr(asked, name))
        assert engine.forward(replace(forward, top=True)).top_token is not None


def test_a_confident_rows_small_probabilities_keep_their_logarithms(tmp_path: Path) -> None:
    source = tiny.certain(SEED, 7, 60.0)
    contract = make_export_contract(source, 64, 0, MOST)
    file = write_graph(trace(source, 64, "ort", candidates=True), tmp_path, "graph")[0]
    engine = OrtBackend(file, contract, threads=1)
    engine.open(1, 32)
    forward = Forward(
        np.full((1, 4), 5), np.array([0]), np.full((1, 4), 4), np.array([[1]]), candidates=np.array([[[7, 9]]])
    )
    out = engine.forward(forward).candidate_logprob
    assert out is not None and abs(out[0, 0, 0]) < 1e-6 and -1000 < out[0, 0, 1] < -150  # exp would be 0 in fp32


def test_a_graph_without_them_has_nothing_of_them(cached: Made, tmp_path: Path) -> None:
    plain = onnx.load(made(tmp_path, "ort", "block_causal", candidates=0, top_k=3)[2]).graph
    names = {value.name for value in (*plain.input, *plain.output)}
    assert not names & {CANDIDATE_INPUT, CANDIDATE_OUTPUT}
    graph = onnx.load(cached[2]).graph
    assert {value.name for value in (*graph.input, *graph.output)} - names == {CANDIDATE_INPUT, CANDIDATE_OUTPUT}


def test_a_graph_and_a_manifest_that_disagree_about_them_are_refused(cached: Made, tmp_path: Path) -> None:
    _, contract, file = cached
    plain = made(tmp_path, "ort", "block_causal", candidates=0, top_k=3, logits=False)[2]
    for graph, count in ((file, 0), (plain, MOST)):
        with pytest.raises(UserError, match=r"candidate\w+ differs; export it again"):
            OrtBackend(graph, replace(contract, candidates=count))


@pytest.mark.parametrize("wrong", [tiny.MASK, -1, tiny.VOCAB])
def test_barred_candidates_never_reach_an_engine(cached: Made, wrong: int) -> None:
    source, contract, file = cached
    for backend in (OrtBackend(file, contract, threads=1), TorchBackend(source.build(), contract)):
        backend.open(1, 32)
        forward = Forward(np.full((1, 4), 5), np.array([0]), np.full((1, 4), 4), np.array([[1]]))
        for given in (np.array([[[3, wrong]]]), np.full((1, 1, MOST + 1), 3), np.full((1, 2, 1), 3)):
            with pytest.raises(ValueError, match="candidates"):
                backend.forward(replace(forward, candidates=given))


@pytest.mark.parametrize("count", [-1, tiny.VOCAB])
def test_more_than_the_model_can_give_is_refused(count: int) -> None:
    source = tiny.checkpoint(SEED)
    known = source.count_vocab() - 1 - len(source.list_missing_ids())
    with pytest.raises(UserError, match=rf"--candidates is {count}; expected 0, .* to {known}, the tokens it may give"):
        make_export_contract(source, None, candidates=count)
