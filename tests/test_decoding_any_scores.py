"""Whatever scores a model gives: blocks end in time, and the mask token is no answer's."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BLOCK, END, MASK, VOCAB, Scripted, arbitrary

from runtime.backend import Forward, Proposal
from runtime.contract import ALIGNMENTS
from runtime.decoding.loop import decode_steps, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from train.torch_backend import TorchBackend


@st.composite
def gates(draw: st.DrawFn) -> dict[str, Any]:
    rule = draw(st.sampled_from(["threshold", "factor", "count"]))
    metric = "confidence" if rule == "factor" else draw(st.sampled_from(["confidence", "entropy"]))
    comparator = draw(st.sampled_from([">=", ">"] if metric == "confidence" else ["<=", "<"]))
    return {
        "rule": rule,
        "metric": metric,
        "comparator": comparator,
        "threshold": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "min": draw(st.integers(1, 2)),
        "sub_block": draw(st.sampled_from([None, 2, 3])),
        "eos_guard": draw(st.sampled_from([0.0, 0.5, 1.0])),
    }


@given(
    gate=gates(), alignment=st.sampled_from(ALIGNMENTS), shift=st.booleans(),
    attention=st.sampled_from(tiny.ATTENTIONS),
    fused=st.booleans(), sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_whatever_the_scores_blocks_end_in_time(
    gate: dict[str, Any],
    alignment: str,
    shift: bool,
    attention: str,
    fused: bool,
    sizes: list[tuple[int, int]],
    seed: int,
) -> None:
    backend = Scripted(tiny.contract(gate=gate, alignment=alignment, shift=shift, attention=attention), arbitrary(seed))
    requests = [Request(np.full(length, MASK), DecodeOptions(wanted)) for length, wanted in sizes]
    taken: dict[tuple[int, int], int] = {}
    results = {}
    for done in decode_steps(backend, requests, fused=fused):
        for step in done:
            taken[step.row, step.block] = taken.get((step.row, step.block), 0) + 1
            assert step.accepted.any() and not (step.accepted & step.open).any()
            results[step.row] = step.result
    assert max(taken.values()) <= BLOCK
    for row, (_, wanted) in enumerate(sizes):
        ids = results[row].token_ids
        assert END not in ids[:-1]
        assert len(ids) == wanted if results[row].finish == "length" else ids[-1] == END and len(ids) <= wanted


def mask_first(seed: int, lead: float, levels: int) -> tiny.Script:
    """PyTorch's proposals of random logits with many ties, in which the mask token is `lead` above the best."""
    backend, rng = TorchBackend(tiny.model(0), tiny.contract()), np.random.default_rng(seed)

    def script(forward: Forward) -> Proposal:
        logits = rng.integers(0, levels + 1, (*forward.rows.shape, VOCAB)).astype(np.float32)
        logits[..., MASK] = logits.max(axis=-1) + lead
        return backend.propose(torch.from_numpy(logits))

    return script


@given(
    gate=gates(), alignment=st.sampled_from(ALIGNMENTS), shift=st.booleans(),
    attention=st.sampled_from(tiny.ATTENTIONS),
    fused=st.booleans(), lead=st.sampled_from([0.0, 1.0, 1e4]), levels=st.integers(0, 20), seed=st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=50)
def test_whatever_the_logits_no_mask_is_emitted(
    gate: dict[str, Any], alignment: str, shift: bool, attention: str, fused: bool, lead: float, levels: int, seed: int
) -> None:
    contract = tiny.contract(gate=gate, alignment=alignment, shift=shift, attention=attention)
    requests = [Request(np.full(length, MASK), DecodeOptions(9)) for length in (1, 6)]
    for result in generate_batch(Scripted(contract, mask_first(seed, lead, levels)), requests, fused=fused):
        assert MASK not in result.token_ids


def test_the_mask_token_is_never_proposed_even_where_it_scores_highest() -> None:
    model, contract = tiny.model(0), tiny.contract()
    backend = TorchBackend(model, contract)
    logits = torch.zeros(1, 3, VOCAB)
    logits[..., MASK] = 100.0
    logits[0, 1, 7] = 1.0
    out = backend.propose(logits)
    assert out.token[0, 1] == 7 and MASK not in out.token
    assert np.allclose(out.confidence[0, 0], 1 / (VOCAB - 1)) and np.allclose(out.entropy[0, 0], np.log(VOCAB - 1))
