"""Decisions against their definition: every value enumerated in PyTorch, on every kind of model."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from letters import LETTERS, Letters
from slow_decide import Part, TooClose, slow_decide

from runtime.contract import ALIGNMENTS, Contract
from runtime.decisions.decide import DecisionOptions, decide
from runtime.decisions.form import Decision, Field, Form, Probability
from train.torch_backend import TorchBackend

KINDS: list[dict[str, Any]] = [
    {"attention": attention, "alignment": alignment, "shift": shift}
    for attention, alignment, shift in itertools.product(tiny.ATTENTIONS, ALIGNMENTS, (False, True))
]
KINDS += [{"attention": "causal_context", "shift": shift} for shift in (False, True)]
KINDS += [{"attention": "causal", "shift": True, "alignment": each, "modes": ["causal"]} for each in ALIGNMENTS]


class OneByOne(TorchBackend):
    """An engine without batches."""

    most_copies = 1


@cache
def model(seed: int) -> Any:
    return tiny.model(seed)


def contract(kind: dict[str, Any]) -> Contract:
    return tiny.contract(**{"candidates": 8, "canvas": 10 * tiny.BLOCK, "capacity": 64, **kind})


def fill(
    kind: dict[str, Any],
    seed: int,
    prompt: list[int],
    form: Form,
    probability: Probability,
    together: bool = True,
    **options: Any,
) -> Decision:
    backend = (TorchBackend if together else OneByOne)(model(seed), contract(kind))
    asked = DecisionOptions(probability, **options)
    return decide(backend, Letters(), backend.contract.gate, np.array(prompt), form, asked)  # type: ignore[arg-type]


TEXTS = st.text(LETTERS, min_size=1, max_size=3)
VALUES = st.lists(TEXTS, min_size=1, max_size=5, unique=True).flatmap(
    lambda values: st.tuples(st.text(LETTERS, max_size=2), st.text(LETTERS, max_size=1)).map(
        lambda ends: tuple(ends[0] + value + ends[1] for value in values)
    )
)
PARTS = st.lists(st.one_of(st.text(LETTERS, max_size=6), VALUES), min_size=1, max_size=6).filter(
    lambda parts: 1 <= sum(isinstance(part, tuple) for part in parts) <= 4
)


def form_of(parts: list[str | tuple[str, ...]]) -> Form:
    return Form(tuple(part if isinstance(part, str) else Field((i,), part) for i, part in enumerate(parts)))


def encoded(form: Form) -> list[Part]:
    encode = Letters().encode
    return [
        tuple(encode(part).tolist()) if isinstance(part, str) else [tuple(encode(v).tolist()) for v in part.values]  # type: ignore[union-attr]
        for part in form.parts
    ]


def check_against_enumeration(
    kind: dict[str, Any], seed: int, prompt: list[int], form: Form, probability: Probability, together: bool
) -> bool:
    """Whether the definition decides this form by more than rounding; fails where the decision is another one."""
    decision = fill(kind, seed, prompt, form, probability, together)
    fields = [part for part in form.parts if isinstance(part, Field)]
    assert not decision.partial and decision.probability == probability and len(decision.fields) == len(fields)
    values = iter(field.value for field in decision.fields)
    assert decision.text == "".join(part if isinstance(part, str) else next(values) for part in form.parts)
    for field, made in zip(fields, decision.fields, strict=True):
        assert made.path == field.path and made.value == field.values[made.index]
        assert made.confidence == made.probabilities[made.index] == max(made.probabilities)
        assert abs(sum(made.probabilities) - 1) < 1e-9 and len(made.probabilities) == len(field.values)
    try:
        slow = slow_decide(model(seed), contract(kind), prompt, encoded(form), probability == "ordered")
    except TooClose:
        return False
    assert [made.index for made in decision.fields] == slow.chosen
    for made, expected in zip(decision.fields, slow.probabilities, strict=True):
        np.testing.assert_allclose(made.probabilities, expected, atol=1e-5)
    return True


CASES = st.tuples(
    st.sampled_from(KINDS), st.integers(1, 4), st.lists(st.integers(3, tiny.VOCAB - 1), min_size=1, max_size=10), PARTS,
    st.sampled_from(("parallel", "ordered")), st.booleans(),
)  # fmt: skip
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(CASES)
def test_random_forms_are_decided_as_enumeration_says(case: Any) -> None:
    kind, seed, prompt, parts, probability, together = case
    check_against_enumeration(kind, seed, prompt, form_of(parts), probability, together)


@pytest.mark.long
def test_a_thousand_random_forms_are_decided_as_enumeration_says() -> None:
    counts = {"decided": 0, "near ties": 0}

    @settings(QUICK, max_examples=1000, database=None)
    @given(CASES)
    def run(case: Any) -> None:
        kind, seed, prompt, parts, probability, together = case
        told = check_against_enumeration(kind, seed, prompt, form_of(parts), probability, together)
        counts["decided" if told else "near ties"] += 1

    run()
    print(counts)
    assert counts["decided"] >= 950


WORDS = Form(
    ("ab", Field(("one",), ("c", "d", "e")), "f", Field(("more",), ("gh", "i", "gjk")), "lm", Field((2,), ("n", "o")))
)


@pytest.mark.parametrize("probability", ["parallel", "ordered"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_fields_of_one_two_and_three_tokens_on_every_kind_of_model(
    kind: dict[str, Any], probability: Probability
) -> None:
    found = [check_against_enumeration(kind, seed, [5, 9, 4, 8, 7], WORDS, probability, seed > 1) for seed in (1, 2)]
    assert any(found)
