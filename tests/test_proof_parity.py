"""What verify calls right and wrong: each kind of error injected alone, near ties, and the graph's twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny
import torch
from test_graph_step import random_weights

from export.contract_from_checkpoint import make_export_contract
from export.graph.dialect_ort import LARGE
from export.graph.ort_graph import write_ort_graph
from export.graph.step_graph import trace
from export.proof.compare import TIE, Difference, Distance, Parity, SideBySide, compare, compute_relative
from export.proof.instrumented import add_logits, load_instrumented
from export.proof.log_prob_gaps import NOTICED, subtract
from export.proof.prove import sample_requests
from runtime.backend import Forward, Proposal
from runtime.engines.ort.ort_backend import OrtBackend
from samples.bench import standin
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend

SEED = 5
NAN, INFINITY = float("nan"), float("inf")


class Damaged:
    """An engine of which one thing that it says is changed: its proposals, or its cache as it can be looked at."""

    name = "damaged"

    def __init__(
        self, inner: OrtBackend, said: Callable[[Proposal], None] | None, kept: Callable[[np.ndarray], None] | None
    ) -> None:
        self.inner, self.contract, self.said, self.kept = inner, inner.contract, said, kept

    def open(self, batch: int, capacity: int) -> None:
        self.inner.open(batch, capacity)

    def keep(self, rows: np.ndarray) -> None:
        self.inner.keep(rows)

    def forward(self, forward: Forward) -> Proposal:
        proposal = self.inner.forward(forward)
        if self.said:
            self.said(proposal)
        return proposal

    def read_cache(self) -> np.ndarray:
        """[2 * layers, 1, kv_heads, capacity, head_dim], keys and values by turns."""
        cache = self.inner.cache.copy()
        if self.kept:
            self.kept(cache)
        return cache


def exported(source: Checkpoint, folder: Path, precision: str = "fp32") -> tuple[TorchBackend, OrtBackend, Path]:
    contract = make_export_contract(source, None)
    model = write_ort_graph(source, contract, precision, folder)[0]
    return TorchBackend(source.build(), contract), OrtBackend(model, contract, threads=1), model


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchBackend, OrtBackend, Path]:
    return exported(tiny.checkpoint(SEED), tmp_path_factory.mktemp("sound"))


def looked_at(reference: TorchBackend, candidate: Any, twin: OrtBackend | None = None) -> Distance:
    """Forward passes over growing canvases of 4, each with 4 rows, whatever the candidate says."""
    both = SideBySide(reference, candidate, twin)
    run(both)
    return both.distance


def run(both: SideBySide) -> None:
    rng, full = np.random.default_rng(SEED), both.contract.attention == "full"
    both.open(1, 40)
    for past in [0] * 8 if full else range(0, 32, 4):
        ids = rng.integers(0, both.contract.vocab, (1, 4))
        both.forward(Forward(ids, np.array([past]), np.full((1, 4), past + 4), np.arange(4)[None]))


def other_entropy(proposal: Proposal) -> None:
    proposal.entropy[0, 2] += 3


def other_confidence(proposal: Proposal) -> None:
    proposal.confidence[0, 1] *= 0.999


def other_tokens(proposal: Proposal) -> None:
    proposal.token[0, ::2] = (proposal.token[0, ::2] + 1) % tiny.VOCAB


def no_number_of_a_key(cache: np.ndarray) -> None:
    cache[2, 0, 1, :, 3] = NAN


def values_far_off(cache: np.ndarray) -> None:
    cache[1, 0, 0, :, 0] += 9


@pytest.mark.parametrize(
    ("said", "kept", "field"),
    [
        (None, None, ""),
        (other_entropy, None, "entropy"),
        (other_confidence, None, "log_prob"),
        (other_tokens, None, "tokens"),
        (None, no_number_of_a_key, "keys"),
        (None, values_far_off, "values"),
    ],
)
def test_each_error_alone_fails_the_check(
    said: Any, kept: Any, field: str, sound: tuple[TorchBackend, OrtBackend, Path]
) -> None:
    reference, candidate, _ = sound
    found, right = looked_at(reference, Damaged(candidate, said, kept)), looked_at(reference, candidate)
    assert right.check("fp32").ok and right.rows == 32 and right.tokens == 0
    changed = {each.name for each in fields(found) if getattr(found, each.name) != getattr(right, each.name)}
    assert changed == ({field, "margin"} if field == "tokens" else {field} if field else set())
    assert found.check("fp32").ok == (not field), str(found.check("fp32"))
    if field == "tokens":
        assert found.tokens == 16 and "16 of 32 top-1 tokens differ" in found.check("fp32").detail


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("field", ["log_prob", "every_log_prob", "entropy", "keys", "values", "twin"])
@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_what_is_no_number_fails_in_every_precision(precision: str, field: str, value: float) -> None:
    assert Distance().check(precision).ok
    check = Distance(**{field: value}).check(precision)
    assert not check.ok and f"{value:.1e}" in check.detail


def test_bounds_of_a_precision_are_told_and_kept() -> None:
    exact = ("log_prob", "every_log_prob", "entropy", "keys", "values")
    assert Distance(**dict.fromkeys(exact, 1e-4), twin=1e-6).check("fp32").ok
    for field in exact:
        assert not Distance(**{field: 1.01e-4}).check("fp32").ok, field
    for field in ("log_prob", "entropy"):
        assert Distance(**{field: 0.1}).check("fp16").ok and not Distance(**{field: 0.11}).check("fp16").ok, field
    assert not Distance(twin=1.1e-6).check("int8").ok
    reported = Distance(every_log_prob=3.0, entropy=3.0, keys=3.0, values=3.0, tokens=50, rows=100, margin=0.5)
    assert reported.check("int8").ok and reported.check("int8").detail.count("3.0e+00 (no bound)") == 4
    assert not reported.check("fp32").ok


@pytest.mark.parametrize(
    ("rows", "tokens", "margin", "ok"),
    [
        (300, 0, 0.0, True), (300, 3, TIE / 2, True), (300, 4, TIE / 2, False), (300, 1, TIE, False),
        (10, 1, 0.0, True), (10, 2, 0.0, False), (300, 1, NAN, False),
    ],
)  # fmt: skip
def test_another_best_token_is_excused_only_at_near_ties_and_rarely(
    rows: int, tokens: int, margin: float, ok: bool
) -> None:
    check = Distance(rows=rows, tokens=tokens, margin=margin).check("fp32")
    assert check.ok == ok and f"{tokens} of {rows} top-1 tokens differ" in check.detail


@pytest.mark.parametrize(("close", "far", "ok"), [(1, 0, True), (8, 0, True), (0, 1, False), (8, 1, False)])
def test_another_answer_is_excused_only_at_near_ties(close: int, far: int, ok: bool) -> None:
    differing = [Difference(0, True, 0, TIE / 2)] * close + [Difference(0, True, 0, TIE)] * far
    found = Parity(Distance(), 10, tuple(differing))
    assert found.make_checks(TIE)[1].ok == ok and (f"{close} more" in found.make_checks(TIE)[1].detail) == bool(close)
    assert found.make_checks()[1].ok is False and found.make_checks(TIE, "int8")[1].ok


def test_the_margin_is_the_largest_by_which_pytorch_preferred_another_token(
    sound: tuple[TorchBackend, OrtBackend, Path],
) -> None:
    reference, candidate, _ = sound
    both = SideBySide(reference, Damaged(candidate, other_tokens, None))
    run(both)
    gaps = [gap[::2].max() for gap in both.gaps.recent]  # of the rows whose token was changed
    assert both.distance.margin == max(gaps) > min(gaps) > TIE


@pytest.mark.parametrize(
    ("dialect", "precision", "attention"),
    [
        ("ort", "fp32", "block_causal"), ("ort", "int8", "block_causal"), ("ort", "fp32", "full"),
        pytest.param("ort", "fp16", "block_causal", marks=pytest.mark.long),
        pytest.param("trt", "fp32", "block_causal", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_twin_says_what_its_graph_does_and_every_tokens_score(
    dialect: str, precision: str, attention: str, tmp_path: Path
) -> None:
    source = tiny.checkpoint(SEED, attention=attention)
    if dialect == "ort":
        reference, candidate, model = exported(source, tmp_path, precision)
    else:
        contract, model = make_export_contract(source, 40), tmp_path / "graph.onnx"
        ir.save(trace(source, 40, dialect=dialect), model)
        reference, candidate = TorchBackend(source.build(), contract), OrtBackend(model, contract, threads=1)
    twin = load_instrumented(model, candidate)
    found = looked_at(reference, candidate, twin)
    assert twin.last_logits.shape == (1, 4, tiny.VOCAB) and found.twin <= 1e-6
    assert found.every_log_prob is not None
    assert 0 < found.every_log_prob < {"fp32": 5e-5, "fp16": 0.1, "int8": 5.0}[precision], found
    assert found.check(precision).ok, str(found.check(precision))


def test_a_twin_reads_weights_that_lie_in_a_file_of_their_own(tmp_path: Path) -> None:
    source = tiny.checkpoint(SEED)
    contract = make_export_contract(source, None)
    model, data = write_ort_graph(source, contract, "fp32", tmp_path, 1000)
    candidate = OrtBackend(model, contract, threads=1)
    found = looked_at(TorchBackend(source.build(), contract), candidate, load_instrumented(model, candidate))
    assert found.check("fp32").ok and found.twin == 0
    assert sorted(tmp_path.iterdir()) == sorted([model, data])  # nothing was written beside them


@pytest.mark.long
def test_a_graph_with_logits_is_its_own_twin(tmp_path: Path) -> None:
    source = tiny.checkpoint(SEED)
    contract = make_export_contract(source, None)
    file = write_ort_graph(source, contract, "fp32", tmp_path)[0]
    graph = onnx.load(file)
    add_logits(graph, contract.vocab)
    onnx.save(graph, file)
    candidate = OrtBackend(file, contract, threads=1)
    twin = load_instrumented(tmp_path / "not looked at", candidate)
    assert twin.session is candidate.session and twin is not candidate
    assert looked_at(TorchBackend(source.build(), contract), candidate, twin).check("fp32").ok


def test_every_token_of_a_large_vocabulary_is_compared(tmp_path: Path) -> None:
    vocab = LARGE + 16  # its top-1 token is found by groups
    source = tiny.checkpoint(SEED)
    shape = replace(source.model, vocab=vocab)
    source = replace(source, model=shape, weights=random_weights(shape, SEED), tokenizer=standin.make_tokenizer(vocab))
    reference, candidate, model = exported(source, tmp_path)
    found = looked_at(reference, candidate, twin := load_instrumented(model, candidate))
    assert twin.last_logits is not None and twin.last_logits.shape == (1, 4, vocab)
    assert found.check("fp32").ok and found.every_log_prob is not None


def test_a_twin_that_is_another_graph_fails_the_check(
    sound: tuple[TorchBackend, OrtBackend, Path], tmp_path: Path
) -> None:
    reference, candidate, _ = sound
    source = tiny.checkpoint(SEED)
    source.weights["layers.1.mlp.down_proj.weight"][3] += 1e-3
    _, slightly, other = exported(source, tmp_path)
    found = looked_at(reference, candidate, load_instrumented(other, slightly))
    assert found.twin > 1e-6 and not found.check("fp32").ok
    assert replace(found, twin=0.0, every_log_prob=None).check("fp32").ok


def test_a_wrong_score_of_a_token_that_is_never_best_is_seen(tmp_path: Path) -> None:
    """A student that is always sure: the top-1 token's log p is about 0 whatever the others score."""
    source = tiny.certain(SEED, token=7, lead=3.0)
    wrong = replace(source, weights={name: weight.clone() for name, weight in source.weights.items()})
    wrong.weights["lm_head.weight"][9] *= 1.5
    (tmp_path / "wrong").mkdir()
    reference, right, model = exported(source, tmp_path)
    _, other, damaged = exported(wrong, tmp_path / "wrong")
    assert looked_at(reference, right, load_instrumented(model, right)).check("fp32").ok
    blind, found = looked_at(reference, other), looked_at(reference, other, load_instrumented(damaged, other))
    assert blind.check("fp32").ok and blind.every_log_prob is None  # what was compared before twins
    assert found.every_log_prob is not None and found.every_log_prob > 0.1 and not found.check("fp32").ok
    requests = sample_requests(reference.contract)[:2]
    *_, whole = compare(reference, other, requests, instrumented=load_instrumented(damaged, other))
    assert [check.ok for check in whole.make_checks(TIE)] == [False, True]


def test_tokens_that_both_sides_hold_for_impossible_are_not_compared() -> None:
    logits = np.array([[[0.0, NOTICED - 5, NOTICED - 5, NOTICED + 1, -1e30]]], np.float32)
    of = lambda scores: torch.log_softmax(torch.from_numpy(scores), dim=-1)  # noqa: E731
    ours = torch.tensor([[[0.0, NOTICED - 2, NOTICED + 2, NOTICED + 1, -INFINITY]]])
    apart = np.abs(subtract(ours, of(logits)))
    assert apart[0, 0, [1, 4]].tolist() == [0, 0] and apart[0, 0, 2] > 6.9 and apart[0, 0, [0, 3]].max() < 1e-6
    likely = logits.copy()
    likely[0, 0, 4] = -3  # an id that is barred
    assert np.isinf(subtract(ours, of(likely))[0, 0, 4])
    for place in range(5):
        assert np.isnan(subtract(torch.where(torch.arange(5) == place, NAN, ours), of(logits))[0, 0, place])


def test_large_keys_are_compared_in_units_of_their_size() -> None:
    """A bias of hundreds, as Qwen2's keys have, costs fp32 the digits that an absolute bound asks for."""
    ours = torch.randn((2, 1, 2, 4, 8), generator=torch.Generator().manual_seed(SEED))
    ours[0], ours[1] = 500 * ours[0], 0.1 * ours[1]
    apart = np.abs(compute_relative(ours, ours.numpy() + np.float32(0.01)))
    assert apart[0].min() > 1e-5 and apart[0].max() < 3e-5 and np.allclose(apart[1], 0.01, atol=1e-6)
    ours[1, 0, 0, 0, 0] = NAN
    assert np.isnan(compute_relative(ours, ours.numpy())[1]).all()
