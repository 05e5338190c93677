"""Whether what a request wants decided fits the model and its `max_tokens`, before it is queued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..backend import Ints
from ..decisions.canvas import check_contract
from ..decisions.form import FreeText
from ..decisions.function_calls import call_form
from ..decisions.pieces import Piece, Slot, encode_form, longest
from ..decisions.schema import SchemaForm
from ..decoding.block_layout import check_room, room_for_answer
from ..errors import UserError
from ..model import Model
from .decision_request import DecisionRequest
from .http_errors import Refusal

PREFIXES = 2048  # of all values of a form, each of which may take a forward pass


def fit_decision(
    model: Model, prompt: Ints, wanted: DecisionRequest, param: str, limit: str, most: int | None
) -> DecisionRequest:
    """Returns what is wanted with free texts so short that every reply fits. prompt: int64 [length].

    param: the field that the schemas came in; limit, most: the field for the new tokens and its value. Raises Refusal
    if words and values alone do not fit, or the bundle cannot decide.
    """
    try:
        check_contract(model.contract)
        text = None if wanted.text is None else _fitted(model, prompt, wanted.text, None, limit, most)
        functions = {name: _fitted(model, prompt, made, name, limit, most) for name, made in wanted.functions.items()}
    except UserError as error:
        raise Refusal(400, f"{param}: {' '.join(str(error).split())}", param) from None
    return replace(wanted, text=text, functions=functions)


def _fitted(
    model: Model, prompt: Ints, made: SchemaForm, function: str | None, limit: str, most: int | None
) -> SchemaForm:
    """The schema's form with free texts that fit. function: whose arguments they are."""
    whole = (made if function is None else call_form(function, made)).form
    if all(isinstance(part, str) for part in whole.parts):
        return made
    free = [part.max_tokens for part in whole.parts if isinstance(part, FreeText)]
    pieces = encode_form(whole, model.tokenizer.encode, model.contract)
    tokens = longest(pieces) - sum(free)
    check_room(model.contract, len(prompt), tokens + len(free))
    if (prefixes := _prefixes(pieces)) > PREFIXES:
        raise UserError(f"the values begin in {prefixes} ways, each a forward pass; expected at most {PREFIXES}")
    if most is not None and tokens + len(free) > most:
        message = f"{limit} is {most}, but the schema's longest reply has {tokens + len(free)} tokens or more"
        raise Refusal(400, f"{message}; send at least so many", limit)
    room = room_for_answer(model.contract, len(prompt)) if most is None else most
    room = min(room, room_for_answer(model.contract, len(prompt))) - tokens
    shorter = [
        replace(part, max_tokens=min(part.max_tokens, room // len(free))) if isinstance(part, FreeText) else part
        for part in made.form.parts
    ]
    return replace(made, form=replace(made.form, parts=tuple(shorter)))


def _prefixes(pieces: Sequence[Piece]) -> int:
    """In how many ways the values begin, of each field and token count: the most forward passes of a decision."""
    count = 0
    for piece in pieces:
        if not isinstance(piece, Slot) or len(piece.values) < 2:
            continue
        before: tuple[int, ...] = ()
        for ids in sorted(piece.values, key=lambda ids: (len(ids), ids)):
            if len(ids) != len(before):
                before, count = (), count + 1  # of the empty beginning
            shared = next((i for i, pair in enumerate(zip(ids, before, strict=False)) if pair[0] != pair[1]), 0)
            before, count = ids, count + len(ids) - shared - 1
    return count
