"""Decisions on exported graphs: those of PyTorch in every dialect, next to answers; how candidates are proved."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from letters import Letters
from test_proof_parity import Damaged, looked_at

from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import write_ort_graph
from export.proof.instrumented import load_instrumented
from export.proof.prove import prove
from export.quantization.ort_formats import choose_formats
from runtime.backend import Proposal
from runtime.contract import ALIGNMENTS, Contract
from runtime.decisions.decide import PROBABILITY_KINDS, DecisionOptions, decide
from runtime.decisions.form import Field, Form
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import UserError
from runtime.model import Model
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend

SEED, MOST = 5, 8
QUICK = [("ort", "block_causal"), ("ort", "full"), ("standard", "block_causal")]
KINDS = [
    pytest.param(kind, id="-".join(kind), marks=() if kind in QUICK else pytest.mark.long)
    for kind in [*QUICK, ("standard", "full")]
]
FORMS = [
    Form(("ab", Field((0,), ("c", "d", "e")), "f", Field((1,), ("gh", "i", "gjk")), "lm", Field((2,), ("n", "o")))),
    Form((Field((0,), ("abc", "abd", "efg", "h")), "qrst", Field((1,), ("k", "lm")))),
]
Made = tuple[Checkpoint, Contract, Path]


def made(folder: Path, dialect: str, attention: str) -> Made:
    source = tiny.checkpoint(SEED, attention=attention, canvas=6 * tiny.BLOCK)
    contract = make_export_contract(source, 64, candidates=MOST)
    return source, contract, write_ort_graph(source, contract, "fp32", folder, dialect=dialect)[0]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("kind"), *request.param)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("graph"), "ort", "block_causal")


def model_of(backend: Any) -> Model:
    return Model(backend, Letters(), backend.contract.gate, "ort-fp32", "fp32")  # type: ignore[arg-type]


def test_decisions_are_those_of_pytorch_on_every_alignment_with_and_without_a_shift(kind: Made) -> None:
    source, contract, file = kind
    session, rng = OrtBackend(file, contract, threads=1).session, np.random.default_rng(SEED)
    for alignment, shift, probability in itertools.product(ALIGNMENTS, (False, True), PROBABILITY_KINDS):
        other = replace(contract, alignment=alignment, shift=shift)
        engine, reference = OrtBackend(session, other), TorchBackend(source.build(), other)
        for form in FORMS:
            prompt = rng.integers(3, tiny.VOCAB, int(rng.integers(1, 11)))
            ours, theirs = (
                decide(each, Letters(), contract.gate, prompt, form, DecisionOptions(probability))  # type: ignore[arg-type]
                for each in (engine, reference)
            )
            assert ours.text == theirs.text and not ours.partial
            for mine, expected in zip(ours.fields, theirs.fields, strict=True):
                np.testing.assert_allclose(mine.probabilities, expected.probabilities, atol=1e-5)


def test_a_conversation_goes_on_as_before_after_a_decision(cached: Made) -> None:
    _, contract, file = cached
    model = model_of(OrtBackend(file, replace(contract, alignment="absolute"), threads=1))
    session, prompt = model.session(), [5, 9, 4, 8, 7, 11, 12, 6, 3]
    first = session.generate(prompt, max_new_tokens=8).result.token_ids
    alone = model.decide_form(prompt, FORMS[0])
    assert session.decide_form(prompt, FORMS[0]) == alone and model.decide_form(prompt, FORMS[0]) == alone
    again = [*prompt, *first, 4, 5]
    expected = model.generate(again, max_new_tokens=8).result.token_ids
    assert session.generate(again, max_new_tokens=8).result.token_ids == expected


def test_a_model_decides_one_form_at_a_time(cached: Made) -> None:
    model = model_of(OrtBackend(cached[2], cached[1], threads=1))
    stream = model.stream([5, 9], max_new_tokens=8)
    next(stream)
    with pytest.raises(UserError, match="generating another answer"):
        model.decide_form([5, 9], FORMS[0])
    stream.close()  # type: ignore[attr-defined]
    assert not model.decide_form([5, 9], FORMS[0]).partial


def other_scores(proposal: Proposal) -> None:
    assert proposal.candidate_logprob is not None
    likely = np.unravel_index(proposal.candidate_logprob.argmax(), proposal.candidate_logprob.shape)
    proposal.candidate_logprob[likely] -= 3e-4


@pytest.mark.parametrize("damaged", [False, True])
def test_a_wrong_candidate_alone_fails_the_proof(damaged: bool, cached: Made) -> None:
    source, contract, file = cached
    engine, reference = OrtBackend(file, contract, threads=1), TorchBackend(source.build(), contract)
    candidate = Damaged(engine, other_scores if damaged else None, None)
    found = looked_at(reference, candidate)
    assert found.candidates is not None and (found.candidates > 1e-4) == damaged == (not found.check("fp32").ok)
    assert replace(found, candidates=None).check("fp32").ok and "of candidates" in found.check("fp32").detail
    twin = looked_at(reference, candidate, load_instrumented(file, engine))
    assert twin.twin is not None and (twin.twin > 1e-6) == damaged  # so in precisions without a bound too


LONG = [pytest.param(*each, marks=pytest.mark.long) for each in (("whole", "fp16"), ("layers", "int8"))]


@pytest.mark.parametrize(("parity", "precision"), [("whole", "fp32"), ("layers", "fp32"), *LONG])
def test_an_export_proves_them(parity: str, precision: str, tmp_path: Path) -> None:
    source = tiny.checkpoint(SEED)
    contract = make_export_contract(source, 64, candidates=MOST)
    file = write_ort_graph(source, contract, precision, tmp_path)[0]
    checks = {c.name: c for c in prove(source, contract, file, precision, parity, choose_formats("ort", precision))}
    assert all(check.ok for check in checks.values()), [str(check) for check in checks.values()]
    assert "of candidates" in checks["steps" if parity == "whole" else "head"].detail
