"""Forms that requests repeat are encoded once, for the same tokenizer and contract alone, and few are kept."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import ref

import numpy as np
import pytest
import tiny
from letters import LETTERS, Letters
from numpy.typing import NDArray

from runtime import Model
from runtime.decisions.encoded_form import (
    FORM_CACHE_SIZE,
    MAX_CACHED_CHARACTERS,
    EncodedField,
    EncodedPart,
    encode_form,
    encode_once,
)
from runtime.decisions.form import Field, Form
from runtime.decisions.schema import SchemaForm
from runtime.errors import UserError
from runtime.server.decision_request import DecisionRequest
from runtime.server.decision_room import fit_decision
from train.torch_backend import TorchBackend

SPEC = tiny.contract(candidates=8, capacity=64)


class Shifted(Letters):
    """Letters whose ids are `by` higher; texts: what it has encoded."""

    def __init__(self, by: int = 0) -> None:
        self.by, self.texts = by, list[str]()

    def encode(self, text: str) -> NDArray[np.int64]:
        self.texts.append(text)
        return super().encode(text) + self.by


def form(word: str = "ab", values: Sequence[str] = ("cd", "ce")) -> Form:
    """A form of its own, equal to others of the same words."""
    return Form((word, Field(("x",), tuple(values))))


def once(made: Form, tokenizer: Letters, spec: Any = SPEC) -> list[EncodedPart]:
    return [*encode_once(made, tokenizer, spec)]  # type: ignore[arg-type]


@pytest.mark.smoke
def test_a_form_that_requests_repeat_is_encoded_once() -> None:
    tokenizer = Shifted()
    backend = TorchBackend(tiny.model(1), SPEC)
    model = Model(backend, tokenizer, SPEC.gate, "torch", "fp32")  # type: ignore[arg-type]
    decided = []
    for _ in range(3):
        wanted = DecisionRequest(SchemaForm(form()), {}, False, "parallel", None)
        assert fit_decision(model, np.array([4, 5]), wanted, "response_format", "max_tokens", None) == wanted
        decided.append(model.decide_form([4, 5], form()))
    assert tokenizer.texts == ["ab", "cd", "ce"] and decided == decided[:1] * 3


def test_another_tokenizer_or_contract_never_gets_the_cached_parts() -> None:
    plain, shifted = Shifted(), Shifted(2)
    first = once(form(), plain)
    assert once(form(), shifted) == encode_form(form(), shifted.encode, SPEC) != first
    assert once(form(), plain) == first and plain.texts == ["ab", "cd", "ce"]
    for change, why in (({"candidates": 1}, "takes 1 candidates"), ({"mask_id": first[0][0]}, "the mask token")):  # type: ignore[index]
        for _ in range(2):  # a form that was refused is refused again
            with pytest.raises(UserError, match=why):
                once(form(), plain, tiny.contract(capacity=64, **{"candidates": 8, **change}))
    for by in range(20):  # each new one may be where the last was, which is gone
        assert once(form(), Shifted(by))[0] == tuple(range(3 + by, 5 + by))


def test_a_form_with_lists_is_encoded_like_one_with_tuples() -> None:
    loose = Form(["ab", Field(["x"], ["cd", "ce"])])  # type: ignore[arg-type]
    for made in (loose, form()):
        words, *rest = once(made, Shifted())
        assert (words, [part.values for part in rest if isinstance(part, EncodedField)]) == ((3, 4), [((6,), (7,))])


def test_few_forms_are_kept_none_of_them_large_and_no_tokenizer() -> None:
    tokenizer = Shifted()
    forms = [form(LETTERS[i // 20] + LETTERS[i % 20]) for i in range(FORM_CACHE_SIZE + 1)]
    for made in (*forms[:-1], *forms[:-1]):
        once(made, tokenizer)
    assert len(tokenizer.texts) == 3 * FORM_CACHE_SIZE  # all are kept
    once(forms[-1], tokenizer)
    once(forms[1], tokenizer)
    assert len(tokenizer.texts) == 3 * (FORM_CACHE_SIZE + 1)
    once(forms[0], tokenizer)  # unused for the longest time, so it made room
    assert len(tokenizer.texts) == 3 * (FORM_CACHE_SIZE + 2)
    for word, times in (("a" * (MAX_CACHED_CHARACTERS - 4), 1), ("a" * (MAX_CACHED_CHARACTERS - 3), 2)):
        tokenizer.texts.clear()
        assert once(form(word), tokenizer) == once(form(word), tokenizer)
        assert tokenizer.texts == [word, "cd", "ce"] * times
    there = ref(tokenizer)
    del tokenizer
    assert there() is None


def test_threads_get_the_parts_of_their_own_forms() -> None:
    tokenizers = [Shifted(by) for by in range(4)]
    forms = [form(letter, (letter, "b" + letter)) for letter in LETTERS[2:]]  # with four tokenizers, more than are kept
    wanted = [(made, each) for made in forms for each in tokenizers] * 20
    with ThreadPoolExecutor(8) as threads:
        found = [*threads.map(lambda pair: once(*pair), wanted)]
    assert found == [encode_form(made, each.encode, SPEC) for made, each in wanted]
