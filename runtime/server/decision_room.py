"""Checks, before a request is queued, that its decision fits the model and `max_tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..backend import Ints
from ..decisions.canvas import check_contract
from ..decisions.encoded_form import EncodedField, EncodedPart, FreeTextPart, count_max_tokens, encode_once
from ..decisions.form import Form, FreeText
from ..decisions.function_calls import make_call_form, make_name_form
from ..decisions.schema import SchemaForm
from ..decoding.block_layout import check_room, count_room_for_answer
from ..errors import UserError
from ..model import Model
from .decision_request import DecisionRequest
from .http_errors import Refusal, blame

PREFIXES = 2048  # maximum of token prefixes over a form's values; each may take a forward pass


def fit_decision(
    model: Model, prompt: Ints, wanted: DecisionRequest, param: str, limit: str, most: int | None
) -> DecisionRequest:
    """Returns what is wanted with free texts so short that every reply fits. prompt: int64 [length].

    param: the field of the text's schema; limit, most: the field for the new tokens and its value. Raises Refusal if
    words and values alone do not fit, or the bundle cannot decide.
    """
    text, functions = wanted.text, wanted.functions
    with blame("tools" if functions else param):
        check_contract(model.contract)
    if text is not None:
        with blame(param):
            text = _fit_form(model, prompt, text, None, limit, most)
    with blame("tools"):
        functions = {name: _fit_form(model, prompt, made, name, limit, most) for name, made in functions.items()}
        if len(functions) + wanted.optional > 1:  # the choice among them is decided before
            _count_least_tokens(model, prompt, make_name_form(functions, wanted.optional))
    return replace(wanted, text=text, functions=functions)


def _fit_form(
    model: Model, prompt: Ints, made: SchemaForm, function: str | None, limit: str, most: int | None
) -> SchemaForm:
    """Returns the schema's form with free texts that fit. function: its name if the schema is of its arguments."""
    whole = (made if function is None else make_call_form(function, made)).form
    free = sum(isinstance(part, FreeText) for part in whole.parts)
    tokens = _count_least_tokens(model, prompt, whole)
    if most is not None and tokens > most:
        message = f"{limit} is {most}, but the schema's longest reply has {tokens} tokens or more"
        raise Refusal(400, f"{message}; send at least so many", limit)
    if not free:
        return made
    room = count_room_for_answer(model.contract, len(prompt)) if most is None else most
    room = min(room, count_room_for_answer(model.contract, len(prompt))) - (tokens - free)
    shorter = [
        replace(part, max_tokens=min(part.max_tokens, room // free)) if isinstance(part, FreeText) else part
        for part in made.form.parts
    ]
    return replace(made, form=replace(made.form, parts=tuple(shorter)))


def _count_least_tokens(model: Model, prompt: Ints, form: Form) -> int:
    """The tokens of a form's longest words and values, with one for each free text.

    Raises UserError for a form that the model has no room for, or that may take more than PREFIXES forward passes. One
    without a choice takes none, and no room.
    """
    if all(isinstance(part, str) for part in form.parts):
        return len(model.tokenizer.encode("".join(map(str, form.parts))))
    parts = encode_once(form, model.tokenizer, model.contract)
    free_texts = (part.free_text for part in parts if isinstance(part, FreeTextPart))
    tokens = count_max_tokens(parts) - sum(free_text.max_tokens - 1 for free_text in free_texts)
    check_room(model.contract, len(prompt), tokens)
    if (prefixes := _count_prefixes(parts)) > PREFIXES:
        raise UserError(f"the values begin in {prefixes} ways, each a forward pass; expected at most {PREFIXES}")
    return tokens


def _count_prefixes(parts: Sequence[EncodedPart]) -> int:
    """Returns how many token prefixes the values have, counted per field and token count.

    Scoring them takes at most so many forward passes.
    """
    count = 0
    for part in parts:
        if not isinstance(part, EncodedField) or len(part.values) < 2:
            continue
        before: tuple[int, ...] = ()
        for ids in sorted(part.values, key=lambda ids: (len(ids), ids)):
            if len(ids) != len(before):
                before, count = (), count + 1  # the empty prefix
            shared = next((i for i, pair in enumerate(zip(ids, before, strict=False)) if pair[0] != pair[1]), 0)
            before, count = ids, count + len(ids) - shared - 1
    return count
