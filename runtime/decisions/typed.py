"""Decides a JSON schema or a Python type on a prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..decoding.options import Prompt
from .document import TypedDecision, read_document
from .form import Decision, Probability
from .python_types import read_type
from .schema import SchemaForm, read_schema

if TYPE_CHECKING:
    from ..model import Model


def decide_type(
    model: Model, prompt: Prompt, schema: Any, probability: Probability, max_forwards: int | None
) -> TypedDecision[Any]:
    """Decides a value of a Python type, or of a JSON schema. Raises what `Model.decide` does."""
    kind = read_type(schema)
    decided = decide_schema(model, prompt, read_schema(kind.schema), probability, max_forwards)
    return decided if decided.partial else replace(decided, value=kind.read(decided.text, decided.value))


def decide_schema(
    model: Model, prompt: Prompt, made: SchemaForm, probability: Probability, max_forwards: int | None
) -> TypedDecision[Any]:
    """Decides a schema that has been read. One without a choice needs no forward pass."""
    parts = made.form.parts
    if all(isinstance(part, str) for part in parts):
        return read_document(made, Decision("".join(map(str, parts)), (), 0, False, probability))
    decision = model.decide_form(prompt, made.form, probability=probability, max_forwards=max_forwards)
    return read_document(made, decision)
