"""The step graph in ONNX Runtime against PyTorch: every shape, every mask, every way of committing."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from export.contract_from_checkpoint import make_export_contract
from export.graph.dialect_ort import LARGE, find_first_argmax
from export.graph.ort_graph import write_ort_graph
from export.proof.compare import TIE, Distance, SideBySide, compare
from export.proof.instrumented import load_instrumented
from runtime.backend import Forward
from runtime.contract import ALIGNMENTS
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_backend import OrtBackend, choose_bucket, name_cache_part
from runtime.errors import UserError
from samples.bench import standin
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend
from train.transformer.network import ModelConfig, Transformer

LENGTHS = (1, tiny.BLOCK - 1, tiny.BLOCK, tiny.BLOCK + 1, 3 * tiny.BLOCK + 2)
SHAPES = {
    "grouped": {"heads": 4, "kv_heads": 2, "head_dim": 16},
    "norms": {"heads": 4, "kv_heads": 2, "head_dim": 16, "qk_norm": True},
    "biases_untied": {"heads": 2, "kv_heads": 2, "head_dim": 32, "qkv_bias": True, "tied": False},
    "one_key_head": {"heads": 4, "kv_heads": 1, "head_dim": 64, "qk_norm": True, "qkv_bias": True},
    "small_heads": {"heads": 4, "kv_heads": 2, "head_dim": 8},
    "odd_heads_norms": {"heads": 3, "kv_heads": 3, "head_dim": 24, "qk_norm": True},
    "large_heads": {"heads": 2, "kv_heads": 1, "head_dim": 128},
}


def pair(source: Checkpoint, folder: Path) -> tuple[TorchBackend, OrtBackend]:
    """Both backends of a checkpoint, freshly exported."""
    contract = make_export_contract(source, None)
    model = write_ort_graph(source, contract, "fp32", folder)[0]
    return TorchBackend(source.build(), contract), OrtBackend(model, contract, threads=1)


Exported = tuple[int, Checkpoint, OrtBackend]


def export(attention: str, folder: Path) -> Exported:
    """A model of a seed drawn now, exported once: alignment, shift and gate are data beside the graph."""
    seed = tiny.choose_seed()
    print(f"BLOCKSTEP_SEED={seed}")
    source = tiny.checkpoint(seed, attention=attention)
    return seed, source, pair(source, folder)[1]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export("block_causal", tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export("full", tmp_path_factory.mktemp("graph"))


@pytest.fixture(params=["cached", "full"])
def exported(request: pytest.FixtureRequest) -> Exported:
    made: Exported = request.getfixturevalue(request.param)
    return made


def test_answers_are_those_of_pytorch_in_every_combination(exported: Exported) -> None:
    seed, source, engine = exported
    rng = random.Random(seed + 17)
    answers, excused, full = 0, 0, engine.contract.attention == "full"
    for alignment, shift in itertools.product(ALIGNMENTS, (False, True)):
        contract = replace(engine.contract, alignment=alignment, shift=shift)
        requests = [
            Request(tiny.prompt(rng, length), DecodeOptions(rng.randrange(6, 13)))
            for length in LENGTHS
            for _ in range(4)
        ]
        candidate, reference = OrtBackend(engine.session, contract), TorchBackend(source.build(), contract)
        *_, parity = compare(reference, candidate, requests, separate=1)
        where = f"BLOCKSTEP_SEED={seed}, {alignment}, shift {shift}"
        for each in parity.differing:
            assert each.closest < TIE, f"{where}: {each} of {requests[each.request]}"
        assert parity.answers == len(requests) * (1 if full else 2)
        assert parity.distance.log_prob <= 1e-4, where
        assert max(parity.distance.keys, parity.distance.values) <= 1e-4, where
        assert parity.distance.forwards > 2 * len(requests)
        answers, excused = answers + parity.answers, excused + len(parity.differing)
    print(f"BLOCKSTEP_SEED={seed}: {answers} answers, {excused} excused")
    assert excused <= answers // 100, f"BLOCKSTEP_SEED={seed}: {excused} of {answers} excused"


def random_weights(shape: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Weights under which nothing is near zero, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    weights = dict(Transformer(shape).state_dict())
    for name, weight in weights.items():
        drawn = torch.randn(weight.shape, generator=generator)
        weights[name] = (0.15 if weight.dim() == 2 else 0.3) * drawn + (1.0 if "norm" in name else 0.0)
    return weights


def forwards(rng: np.random.Generator, full: bool) -> list[Forward]:
    """A prefill, a canvas over it, a fused step, one token, and a step in which every query sees another prefix."""
    plan = [(0, [13] * 13), (13, [17] * 4), (13, [17] * 4 + [21] * 4), (17, [18]), (17, [1, 24, 2, 18, 24, 19, 17])]
    made = []
    for past, visible in plan:
        width = len(visible)
        seen = [width] * width if full else visible
        ids, rows = rng.integers(0, tiny.VOCAB, (1, width)), rng.integers(0, width, (1, 3))
        made.append(Forward(ids, np.array([0 if full else past]), np.array([seen]), rows))
    return made


def distance(reference: TorchBackend, candidate: OrtBackend, seed: int, twin: OrtBackend | None = None) -> Distance:
    both = SideBySide(reference, candidate, twin)
    both.open(1, 32)
    for forward in forwards(np.random.default_rng(seed), candidate.contract.attention == "full"):
        both.forward(forward)
    return both.distance


@pytest.mark.parametrize(
    ("variant", "attention"),
    [
        ("one_key_head", "block_causal"),
        ("biases_untied", "block_causal"),
        ("odd_heads_norms", "full"),
        *(
            pytest.param(name, attention, marks=pytest.mark.long)
            for name, attention in [
                *((name, "block_causal") for name in SHAPES if name not in ("one_key_head", "biases_untied")),
                ("norms", "full"),
            ]
        ),
    ],
)
def test_every_shape_of_model_gives_the_logits_of_pytorch(variant: str, attention: str, tmp_path: Path) -> None:
    seed = tiny.choose_seed()
    source = tiny.checkpoint(seed, attention=attention)
    shape = ModelConfig(**{"vocab": tiny.VOCAB, "width": 32, "layers": 2, "ffn": 48, **SHAPES[variant]})  # type: ignore[arg-type]
    source = replace(source, model=shape, weights=random_weights(shape, seed))
    reference, candidate = pair(source, tmp_path)
    twin = load_instrumented(next(tmp_path.glob("*.onnx")), candidate)
    found = distance(reference, candidate, seed, twin)
    assert twin.last_logits.shape == (1, 3, tiny.VOCAB)
    assert found.every_log_prob is not None and found.every_log_prob < 5e-5, f"seed {seed}: {found}"
    assert max(found.log_prob, found.entropy, found.keys, found.values) < 5e-5, f"seed {seed}: {found}"
    assert found.tokens == 0, f"seed {seed}: {found}"


@pytest.mark.parametrize(
    "vocab", [LARGE + 17, *(pytest.param(LARGE + more, marks=pytest.mark.long) for more in (0, 16, 19))]
)  # the first one is a prime
def test_a_large_vocabularys_first_best_token_is_found_in_two_stages(vocab: int, tmp_path: Path) -> None:
    seed = tiny.choose_seed()
    source = tiny.checkpoint(seed)
    shape = replace(source.model, vocab=vocab)
    source = replace(source, model=shape, weights=random_weights(shape, seed), tokenizer=standin.make_tokenizer(vocab))
    reference, candidate = pair(source, tmp_path)
    found = distance(reference, candidate, seed)
    assert found.tokens == 0 and found.log_prob < 5e-5, f"seed {seed}: {found}"
    logits = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 3, (7, vocab)).astype(np.float32)
    )  # mostly equals
    logits[0] = 0
    assert torch.equal(find_first_argmax(logits), logits.argmax(-1, keepdim=True)), f"seed {seed}"


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
def test_a_head_that_prefers_the_mask_token_emits_none(attention: str, tmp_path: Path) -> None:
    source = tiny.certain(2, tiny.MASK, lead=10.0, attention=attention)
    reference, candidate = pair(source, tmp_path)
    rng = random.Random(3)
    for request in [Request(tiny.prompt(rng, length), DecodeOptions(12)) for length in LENGTHS]:
        ids = torch.from_numpy(request.prompt)[None]
        with torch.no_grad():
            model = reference.model
            scores = model.logits(model(ids, torch.full_like(ids, ids.shape[1])))  # [1, length, vocab]
        assert (scores.argmax(-1) == tiny.MASK).all()
        answer = generate(candidate, request)
        assert tiny.MASK not in answer.token_ids and answer.token_ids == generate(reference, request).token_ids


def test_what_lies_behind_the_past_changes_nothing(exported: Exported) -> None:
    seed, _, engine = exported
    clean, dirty = engine.share(), engine.share()
    clean.open(1, 32)
    dirty.open(1, 32)
    dirty.cache[...] = np.nan
    for forward in forwards(np.random.default_rng(seed), engine.contract.attention == "full"):
        for ours, theirs in zip(parts(clean, forward), parts(dirty, forward), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def parts(backend: OrtBackend, forward: Forward) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    proposal = backend.forward(forward)
    return proposal.token, proposal.confidence, proposal.entropy


def test_hidden_positions_do_not_reach_the_queries_that_may_not_see_them(cached: Exported) -> None:
    seed, _, engine = cached
    ids = np.random.default_rng(seed).integers(0, tiny.VOCAB, (1, 8))
    other = ids.copy()
    other[0, 4:] = (ids[0, 4:] + 1) % tiny.VOCAB
    got = []
    for tokens in (ids, other):
        engine.open(1, 16)
        for visible in ([4] * 4 + [8] * 4, [8] * 8):
            got.append(engine.forward(Forward(tokens, np.array([0]), np.array([visible]), np.arange(4)[None])))
    np.testing.assert_array_equal(got[0].confidence, got[2].confidence)
    assert (got[1].confidence != got[3].confidence).any()  # seen, they do


def test_the_cache_is_written_where_it_lies_and_nowhere_else(cached: Exported) -> None:
    seed, _, engine = cached
    engine.open(1, 20)
    address = engine.cache.ctypes.data
    prefill, canvas, *_ = forwards(np.random.default_rng(seed), full=False)
    engine.forward(prefill)
    committed = engine.cache[..., :13, :].copy()
    assert np.abs(committed).min(axis=-1).max() > 0 and not engine.cache[..., 13:, :].any()
    engine.forward(canvas)
    np.testing.assert_array_equal(engine.cache[..., :13, :], committed)
    assert engine.cache[..., 13:17, :].any() and not engine.cache[..., 17:, :].any()
    assert engine.cache.ctypes.data == address
    engine.open(1, 20)
    assert engine.cache.ctypes.data == address and not engine.cache.any()


def test_two_backends_of_one_session_do_not_share_a_cache(exported: Exported) -> None:
    seed, _, engine = exported
    first, second = engine.share(), engine.share()
    plan = forwards(np.random.default_rng(seed), engine.contract.attention == "full")
    first.open(1, 32)
    alone = [parts(first, forward) for forward in plan]
    first.open(1, 32)
    second.open(1, 32)
    second.forward(plan[2])
    for forward, before in zip(plan, alone, strict=True):
        for ours, theirs in zip(parts(first, forward), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        second.forward(plan[0])


def test_a_proposal_outlives_the_next_forward(exported: Exported) -> None:
    seed, _, engine = exported
    prefill = forwards(np.random.default_rng(seed), engine.contract.attention == "full")[0]
    engine.open(1, 32)
    before = engine.forward(prefill)
    kept = before.confidence.copy()
    engine.forward(replace(prefill, input_ids=(prefill.input_ids + 1) % tiny.VOCAB))
    np.testing.assert_array_equal(before.confidence, kept)


def test_forwards_out_of_bounds_are_refused(exported: Exported) -> None:
    _, _, engine = exported
    engine.open(1, 16)
    size = engine.capacity
    ok = Forward(np.zeros((1, 4), np.int64), np.array([0]), np.full((1, 4), 4), np.array([[0]]))
    engine.forward(ok)
    for wrong in (
        {"past_length": np.array([size - 3])},
        {"past_length": np.array([-1])},
        {"visible": np.array([[4, 4, 0, 4]])},
        {"visible": np.array([[4, 4, 5, 4]])},
        {"rows": np.array([[4]])},
        {"rows": np.array([[-1]])},
    ):
        with pytest.raises(ValueError):
            engine.forward(replace(ok, **wrong))
    with pytest.raises(UserError, match="2 sequences"):
        engine.open(2, 16)
    with pytest.raises(ValueError, match="capacity"):
        engine.open(1, engine.contract.capacity + 1)


def test_a_graph_that_is_not_the_manifests_is_refused(cached: Exported, full: Exported, tmp_path: Path) -> None:
    _, _, engine = cached
    with pytest.raises(UserError, match=r"past_key_values\.2\.key differs"):
        OrtBackend(engine.session, replace(engine.contract, layers=3))
    with pytest.raises(UserError, match=r"past_key_values\.0\.key differs"):
        OrtBackend(engine.session, replace(engine.contract, kv_heads=1))
    with pytest.raises(UserError, match=r"past_key_values\.0\.key differs"):
        OrtBackend(full[2].session, engine.contract)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"cannot load .*broken\.onnx"):
        OrtBackend(broken, engine.contract)


def test_buckets_hold_what_was_asked_and_stay_below_the_capacity() -> None:
    for capacity, most in itertools.product(range(1, 300), (1, 63, 64, 65, 200, 1024)):
        if capacity <= most:
            size = choose_bucket(capacity, most)
            assert capacity <= size <= most and (size == most or size in (64, 128, 256, 512))
    assert name_cache_part(3) == ("past_key_values.1.value", "present.1.value")
