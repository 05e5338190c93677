"""Fills a form: chooses which fields are decided together and in which order.

`parallel`: all fields of a block are scored on one canvas, on which all of them are masks, and then get their best
values together. The probability of the form is the product of their marginals, as if the fields did not depend on each
other. This takes one forward pass for fields of one token, and one more for each further token of the longest value
(`scores`). Fields of a later block are scored once the earlier ones are decided. The same holds for a field that may
reach over its block's end, and for one that begins a block whose first token the model predicts before the rest.
`ordered`: each field is scored with the fields before it decided and those after it masked, in the form's order. The
probability of the form is the product of each value's probability given the values before it (the chain rule).

In both, the probabilities of a field are the softmax of its values' scores: the model's probabilities, given that the
value is one of these. They do not cover other texts, and are not calibrated. Each field gets its most probable value;
with `ordered` that need not give the most probable form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..backend import Backend, Ints
from ..contract import GateSpec
from ..decoding.options import Threshold, make_threshold_reader
from ..errors import UserError
from .canvas import Canvas, OutOfForwards, check_contract
from .encoded_form import EncodedField, EncodedPart, FreeTextPart, Ids, count_max_tokens, encode_once
from .form import Decision, Field, FieldDecision, Form, FreeText, Probability
from .free_text import cut_text, write_text
from .scores import Layout, Scores, compute_probabilities, lay_out, score_values

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

PROBABILITY_KINDS: tuple[Probability, ...] = ("parallel", "ordered")


@dataclass(frozen=True, slots=True)
class DecisionOptions:
    """Configures a decision.

    Attributes:
        probability: What a field's probabilities mean, `parallel` or `ordered`; see the module's docstring.
        max_forwards: Maximum of forward passes without the prompt's prefill; None for no limit.
        temperature: Above 0; divides the scores before the softmax, so that below 1 sharpens. It changes no choice.
        threshold: The gate's threshold for free texts; None for the bundle's.
        wanted: Called before each forward pass; once it returns false, the decision ends and is partial.
    """

    probability: Probability = "parallel"
    max_forwards: int | None = None
    temperature: float = 1.0
    threshold: Threshold | None = None
    wanted: Callable[[], bool] | None = None

    def check(self) -> None:
        """Raises UserError for values out of bounds."""
        if self.probability not in PROBABILITY_KINDS:
            raise UserError(f"probability is {self.probability!r}; expected {' or '.join(PROBABILITY_KINDS)}")
        if self.max_forwards is not None and self.max_forwards < 1:
            raise UserError(f"max_forwards is {self.max_forwards}; expected at least 1")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; expected a number above 0")


def decide(
    backend: Backend, tokenizer: Tokenizer, gate: GateSpec, prompt: Ints, form: Form, options: DecisionOptions
) -> Decision:
    """Fills the form after a prompt, ids int64 [length].

    Raises UserError before any work if the form or the options do not fit the model, or its bundle has no
    candidates; NumericalError for scores that are not numbers.
    """
    options.check()
    check_contract(backend.contract)
    parts = encode_once(form, tokenizer, backend.contract)
    read_threshold = make_threshold_reader(options.threshold, gate, backend.contract.vocab)
    canvas = Canvas(backend, prompt, count_max_tokens(parts), options.max_forwards, options.wanted)
    partial_form = PartialForm(canvas, tuple(prompt.tolist()), parts)
    try:
        while (index := partial_form.next_index) is not None:
            part = parts[index]
            if isinstance(part, FreeTextPart):
                text = write_text(canvas, partial_form.known_ids, part, tokenizer.decode, gate, read_threshold())
                text = cut_text(text, part.free_text.max_characters)  # as the document has it, for what follows
                partial_form.store_text(index, *cut_to_fit(text, part.free_text.max_tokens, tokenizer))
            elif not partial_form.decide_fields(partial_form.choose_group(index, options.probability)):
                break
    except OutOfForwards:
        pass
    return partial_form.make_decision(form, options)


def cut_to_fit(text: str, max_tokens: int, tokenizer: Tokenizer) -> tuple[str, Ids]:
    """Cuts a text until it has at most `max_tokens` tokens when it is encoded by itself; returns it with these tokens.

    A text decoded from tokens that end amid a character may take more of them when it is encoded again.
    """
    while len(ids := tokenizer.encode(text)) > max_tokens:
        text = text[:-1]
    return text, tuple(ids.tolist())


class PartialForm:
    """Holds a partly filled form. part_ids: tokens of all decided fields and free texts, by the part's index."""

    def __init__(self, canvas: Canvas, prompt: Ids, parts: Sequence[EncodedPart]) -> None:
        self._canvas, self._prompt, self._parts = canvas, prompt, parts
        self.part_ids: dict[int, Ids] = {}
        self._scores: dict[int, Scores] = {}
        self._texts: dict[int, str] = {}
        for index, part in enumerate(parts):
            if isinstance(part, EncodedField) and len(part.values) == 1:  # known from the start
                self._choose_value(index, part, np.zeros(1))

    @property
    def next_index(self) -> int | None:
        """Returns the index of the first field or free text that is not decided, None if all are."""
        return next((index for index in self._list_field_indices() if index not in self.part_ids), None)

    @property
    def known_ids(self) -> Ids:
        """Returns the sequence up to the first field or free text that is not decided."""
        layout, index = self._lay_out(), self.next_index
        return layout.ids if index is None else layout.ids[: layout.begins[index]]

    def choose_group(self, first: int, probability: Probability) -> list[int]:
        """Returns the fields to decide together: `first`, the first undecided one, and others of its block."""
        position = self._lay_out().begins[first]
        block_begin, block_end = self._canvas.find_block(position)
        if probability == "ordered" or (self._canvas.contract.seeded and position == block_begin):
            return [first]
        group = [first]
        for index in range(first, len(self._parts)):
            part, ids = self._parts[index], self.part_ids.get(index)
            if isinstance(part, FreeTextPart) and ids is None:
                break
            if ids is not None or isinstance(part, tuple):
                position += len(ids if ids is not None else part)  # type: ignore[arg-type]
                continue
            assert isinstance(part, EncodedField)
            position += part.max_length
            if position > block_end:
                break
            if index != first:
                group.append(index)
        return group

    def decide_fields(self, group: Sequence[int]) -> bool:
        """Decides the fields of a group. Returns False if the forward passes ended before all of them had values."""
        scores = score_values(self._canvas, self._prompt, self._parts, self.part_ids, group)
        for index, field_scores in scores.items():
            part = self._parts[index]
            assert isinstance(part, EncodedField)
            self._choose_value(index, part, field_scores)
        return len(scores) == len(group)

    def _choose_value(self, index: int, field: EncodedField, scores: Scores) -> None:
        """Gives a field its most probable value, the first of equal ones."""
        self._scores[index], self.part_ids[index] = scores, field.values[int(scores.argmax())]

    def store_text(self, index: int, text: str, ids: Ids) -> None:
        """Stores a free text and `ids`, its tokens if encoded by itself, which may differ from those generated."""
        self._canvas.rewind(self._lay_out().begins[index])
        self._texts[index], self.part_ids[index] = text, ids

    def make_decision(self, form: Form, options: DecisionOptions) -> Decision:
        """Returns what is decided so far, as values and texts of the form."""
        indices = iter(self._list_field_indices())
        parts = [p if isinstance(p, str) else self._make_field_decision(next(indices), p, options) for p in form.parts]
        end = next((i for i, part in enumerate(parts) if part is None), len(parts))
        return Decision(
            text="".join(part if isinstance(part, str) else part.value for part in parts[:end] if part is not None),
            fields=tuple(part for part in parts if isinstance(part, FieldDecision)),
            forwards=self._canvas.forwards,
            partial=end < len(parts),
            probability=options.probability,
        )

    def _make_field_decision(
        self, index: int, part: Field | FreeText, options: DecisionOptions
    ) -> FieldDecision | None:
        """Returns the decision of a part, None if there is none yet. index: the part's place in the encoded form."""
        if isinstance(part, FreeText):
            text = self._texts.get(index)
            return None if text is None else FieldDecision(part.path, text, -1, (), float("nan"))
        if (scores := self._scores.get(index)) is None:
            return None
        probabilities, best = compute_probabilities(scores, options.temperature).tolist(), int(scores.argmax())
        return FieldDecision(part.path, part.values[best], best, tuple(probabilities), probabilities[best])

    def _list_field_indices(self) -> list[int]:
        """Returns the indices of all fields and free texts among the encoded parts, in order."""
        return [index for index, part in enumerate(self._parts) if isinstance(part, EncodedField | FreeTextPart)]

    def _lay_out(self) -> Layout:
        return lay_out(self._prompt, self._parts, self.part_ids, self._canvas.contract.mask_id)
