"""A form, words and fields in order, and the decision that fills it: the types between schemas and the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Path: TypeAlias = tuple[str | int, ...]  # of a field in its document: keys and list indices from the root
Probability = Literal["parallel", "ordered"]


@dataclass(frozen=True, slots=True)
class Field:
    """A place for one of several values. values: their literal texts, such as the JSON texts `"refund"`, `true`, `3`.

    Each is not empty, and no two are equal; one value alone is a field that is certain.
    """

    path: Path
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FreeText:
    """A place for text from ordinary decoding, of at most `max_tokens` tokens, which ends before the text that follows
    it in the form. max_characters: if the text is the content of a JSON string, the most characters that this has."""

    path: Path
    max_tokens: int
    max_characters: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """Holds words and fields in the order of the answer."""

    parts: tuple[str | Field | FreeText, ...]


@dataclass(frozen=True, slots=True)
class FieldDecision:
    """The value chosen for a field.

    index: of `value` in the field's values; probabilities: of each of them, which sum to 1, in their order (see
    `runtime.decisions` for what they are probabilities of); confidence: the chosen one's. A free text has no
    distribution: its index is -1, `probabilities` is empty and `confidence` is nan.
    """

    path: Path
    value: str
    index: int
    probabilities: tuple[float, ...]
    confidence: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A filled form.

    Attributes:
        text: The form's words with the chosen values, in order; up to the first field without a value if `partial`.
        fields: The fields in the form's order that have a value, free texts among them.
        forwards: Forward passes of the model, the prompt's prefill not counted.
        partial: Whether `max_forwards` ended the decision before every field had a value.
        probability: What the probabilities mean: `parallel` or `ordered`.
    """

    text: str
    fields: tuple[FieldDecision, ...]
    forwards: int
    partial: bool
    probability: Probability
