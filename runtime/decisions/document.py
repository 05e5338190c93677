"""Makes a JSON document of a decision: its text, rebuilt from the form; its parsed value; a distribution per field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .form import Decision, Field, FieldDecision, Form, FreeText, Path, Probability
from .free_text import read_free_text
from .keywords import format_json
from .schema import SchemaForm

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FieldDistribution:
    """Holds the value chosen for a field, and how probable each value is.

    path: keys and list indices from the document's root; value: a JSON value; confidence: the value's probability;
    distribution: each value of the field with its probability, in the schema's order; the probabilities sum to 1. A
    free text has the confidence None and an empty distribution.
    """

    path: Path
    value: Any
    confidence: float | None
    distribution: tuple[tuple[Any, float], ...]


@dataclass(frozen=True, slots=True)
class TypedDecision(Generic[T]):
    """Holds a decided JSON document, and its value of the requested type.

    Attributes:
        text: Compact JSON text; if partial, only the text before the first field without a value.
        value: What the text holds, in the requested type; None if partial.
        fields: The fields that have a value, in the form's order.
        forwards: Forward passes without the prompt's prefill.
        partial: Whether `max_forwards` or the caller's `wanted()` ended the decision before every field had a value.
        probability: How the probabilities are conditioned, `parallel` or `ordered`; see docs/decision-probabilities.md.
    """

    text: str
    value: T | None
    fields: tuple[FieldDistribution, ...]
    forwards: int
    partial: bool
    probability: Probability

    def as_json(self) -> dict[str, Any]:
        """Returns what a reply reports of the decision besides its text, as JSON values."""
        return {
            "fields": [
                {
                    "path": list(field.path),
                    "value": field.value,
                    "confidence": field.confidence,
                    "distribution": [{"value": value, "probability": p} for value, p in field.distribution],
                }
                for field in self.fields
            ],
            "forwards": self.forwards,
            "partial": self.partial,
            "probability": self.probability,
        }


def read_document(schema_form: SchemaForm, decision: Decision) -> TypedDecision[Any]:
    """Returns a decision on a schema's form as a document with JSON values.

    The text is built anew from the form's words and the decided values and not taken from the decision: a free text may
    hold anything, such as a wrong escape, so it is read up to the end of its JSON string and escaped again. Raises
    AssertionError for a value that the form does not have.
    """
    fields, parts = read_fields(schema_form.form, decision), schema_form.form.parts
    text, json_values = "", {field.path: field.value for field in fields}
    value_texts = {field.path: field.value for field in decision.fields}
    for part in parts:
        if isinstance(part, str):
            text += part
        elif part.path not in json_values:
            break
        elif isinstance(part, Field):  # a value's text as in the schema, so that 1.0 or 1e3 stays as it is
            text += value_texts[part.path]
        else:  # a free text's content, escaped
            text += format_json(json_values[part.path])[1:-1]
    value = None if decision.partial else json.loads(text)
    if not decision.partial:
        _check_document(value, parts, fields)
    return TypedDecision(text, value, fields, decision.forwards, decision.partial, decision.probability)


def read_fields(form: Form, decision: Decision) -> tuple[FieldDistribution, ...]:
    """Returns the decided fields of a form with JSON values.

    Raises AssertionError for a field or value that the form does not have.
    """
    parts = {part.path: part for part in form.parts if not isinstance(part, str)}
    fields = []
    for field_decision in decision.fields:
        part = parts.get(field_decision.path)
        if part is None:
            raise AssertionError(f"a field at {field_decision.path} was decided, which the form does not have")
        if isinstance(part, Field):
            fields.append(_make_distribution(part, field_decision))
        else:
            text = read_free_text(field_decision.value, part.max_characters)
            fields.append(FieldDistribution(part.path, text, None, ()))
    return tuple(fields)


def _make_distribution(field: Field, decision: FieldDecision) -> FieldDistribution:
    if decision.value not in field.values or len(decision.probabilities) != len(field.values):
        raise AssertionError(f"{decision.value!r} was decided at {field.path}, which is none of its values")
    values = json.loads(f"[{','.join(field.values)}]")
    pairs = tuple(zip(values, decision.probabilities, strict=True))
    return FieldDistribution(field.path, json.loads(decision.value), decision.confidence, pairs)


def _check_document(
    document: Any, parts: Sequence[str | Field | FreeText], fields: Sequence[FieldDistribution]
) -> None:
    """Raises AssertionError unless the document has every field's decided value at the field's path."""
    if len(fields) != sum(not isinstance(part, str) for part in parts):
        raise AssertionError("a whole decision lacks a field")
    for field in fields:
        value = document
        for step in field.path:
            value = value[step]
        if format_json(value) != format_json(field.value):
            raise AssertionError(f"the document has {value!r} at {field.path}, where {field.value!r} was decided")
