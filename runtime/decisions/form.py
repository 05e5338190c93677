"""Defines a form, which is words and fields in order, and its decision: what schemas become and the decoder fills."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

Path: TypeAlias = tuple[str | int, ...]  # a field's place in its document: keys and list indices from the root
Probability = Literal["parallel", "ordered"]


@dataclass(frozen=True, slots=True)
class Field:
    """Describes a place for one of several values.

    values: their literal texts, such as the JSON texts `"refund"`, `true`, `3`; not empty, and all different. A field
    with one value gets it without a forward pass.
    """

    path: Path
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FreeText:
    """Describes a place for text from ordinary decoding, of at most `max_tokens` tokens, which ends before the text
    that follows it in the form. max_characters: if the text is the content of a JSON string, its maximum number of
    characters."""

    path: Path
    max_tokens: int
    max_characters: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """Holds words and fields in the order of the answer."""

    parts: tuple[str | Field | FreeText, ...]

    @property
    def character_count(self) -> int:
        """Returns the number of characters of all words and values."""
        words = (part for part in self.parts if isinstance(part, str))
        values = chain.from_iterable(part.values for part in self.parts if isinstance(part, Field))
        return sum(map(len, chain(words, values)))


@dataclass(frozen=True, slots=True)
class FieldDecision:
    """Holds the value chosen for a field.

    index: the index of `value` among the field's values; probabilities: one per value, in the same order, with the sum
    1 (docs/decision-probabilities.md has their meaning); confidence: the chosen value's probability. A free text has
    no distribution: its index is -1, `probabilities` is empty and `confidence` is nan.
    """

    path: Path
    value: str
    index: int
    probabilities: tuple[float, ...]
    confidence: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Holds a filled form.

    Attributes:
        text: The form's words with the chosen values, in order; up to the first field without a value if `partial`.
        fields: The fields that have a value, free texts included, in the form's order.
        forwards: Forward passes without the prompt's prefill.
        partial: Whether `max_forwards` or `wanted` ended the decision before every field had a value.
        probability: How the probabilities are conditioned: `parallel` or `ordered`.
    """

    text: str
    fields: tuple[FieldDecision, ...]
    forwards: int
    partial: bool
    probability: Probability
