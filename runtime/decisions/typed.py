"""Decides a value of a JSON schema or of a Python type for a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from ..decoding.options import Prompt, Threshold, make_threshold_reader
from .decide import DecisionOptions
from .document import TypedDecision, read_document
from .form import Decision, Probability
from .python_types import read_type
from .schema import SchemaForm, read_schema

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

    from ..model import Model


class DecisionKeywords(TypedDict, total=False):
    """Lists the keywords of `Model.decide_form`."""

    probability: Probability
    max_forwards: int | None
    temperature: float | None
    threshold: Threshold | None
    raw: bool
    wanted: Callable[[], bool] | None


def decide_type(model: Model, prompt: Prompt, schema: Any, **keywords: Unpack[DecisionKeywords]) -> TypedDecision[Any]:
    """Decides a value of a Python type or of a JSON schema. Raises what `Model.decide` raises."""
    python_type = read_type(schema)
    decision = decide_schema(model, prompt, read_schema(python_type.schema), **keywords)
    if decision.partial:
        return decision
    return replace(decision, value=python_type.read_value(decision.text, decision.value))


def decide_schema(
    model: Model, prompt: Prompt, schema_form: SchemaForm, **keywords: Unpack[DecisionKeywords]
) -> TypedDecision[Any]:
    """Decides a value of a schema's form. A form without a field takes no forward pass."""
    parts = schema_form.form.parts
    if not all(isinstance(part, str) for part in parts):
        return read_document(schema_form, model.decide_form(prompt, schema_form.form, **keywords))
    temperature, probability = keywords.get("temperature"), keywords.get("probability", "parallel")
    DecisionOptions(probability, keywords.get("max_forwards"), 1.0 if temperature is None else temperature).check()
    make_threshold_reader(keywords.get("threshold"), model.gate, model.contract.vocab)  # only to check the threshold
    return read_document(schema_form, Decision("".join(map(str, parts)), (), 0, False, probability))
