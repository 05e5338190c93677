"""Fills a form: which fields are decided together, in which order, and what the probabilities are of.

`parallel`: the fields of a block that nothing before it leaves open are scored on one canvas, on which all of them are
masks, and then get their best values together: the probability of the form is the product of their marginals, as if the
fields did not depend on each other. That is one forward pass for fields of one token, and one more for each further
token of the longest value (`scores`). Fields of a later block are scored with the earlier ones decided, and so is a
field that may reach over its block's end, or that begins a block whose first token the model predicts before the rest.
`ordered`: each field is scored with the fields before it placed and those after it masked, in the form's order: the
probability of the form is the product of each value's given those before it (the chain rule).

In both the probabilities of a field are the softmax of its values' scores: the model's, given that the value is one of
these. They do not cover other texts, and are not calibrated. Each field gets its most probable value;
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
from .form import Decision, Field, FieldDecision, Form, FreeText, Probability
from .free_text import cut_text, write_text
from .pieces import FreeTextPiece, Ids, Piece, Slot, count_longest, encode_once
from .scores import Layout, Scores, lay_out, probabilities, score

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

PROBABILITIES: tuple[Probability, ...] = ("parallel", "ordered")


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
        if self.probability not in PROBABILITIES:
            raise UserError(f"probability is {self.probability!r}; expected {' or '.join(PROBABILITIES)}")
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
    pieces = encode_once(form, tokenizer, backend.contract)
    threshold = make_threshold_reader(options.threshold, gate, backend.contract.vocab)
    canvas = Canvas(backend, prompt, count_longest(pieces), options.max_forwards, options.wanted)
    filling = Filling(canvas, tuple(prompt.tolist()), pieces)
    try:
        while (number := filling.first_open) is not None:
            piece = pieces[number]
            if isinstance(piece, FreeTextPiece):
                ids = filling.known_ids
                text = write_text(canvas, ids, piece, tokenizer.decode, gate, threshold())
                cut = cut_text(text, piece.text.max_characters)  # what follows sees what the document will have
                filling.place_text(number, *cut_to_fit(cut, piece.text.max_tokens, tokenizer))
            elif not filling.place_values(filling.group(number, options.probability)):
                break
    except OutOfForwards:
        pass
    return filling.make_decision(form, options)


def cut_to_fit(text: str, most: int, tokenizer: Tokenizer) -> tuple[str, Ids]:
    """Returns a text, cut until it has at most `most` tokens encoded by itself, and these tokens.

    A text decoded from tokens that end amid a character may take more of them when it is encoded again.
    """
    while len(ids := tokenizer.encode(text)) > most:
        text = text[:-1]
    return text, tuple(ids.tolist())


class Filling:
    """Holds a partly filled form. chosen: the tokens of all decided fields and free texts, by the piece's number."""

    def __init__(self, canvas: Canvas, prompt: Ids, pieces: Sequence[Piece]) -> None:
        self._canvas, self._prompt, self._pieces = canvas, prompt, pieces
        self.chosen: dict[int, Ids] = {}
        self._scores: dict[int, Scores] = {}
        self._texts: dict[int, str] = {}
        for number, piece in enumerate(pieces):
            if isinstance(piece, Slot) and len(piece.values) == 1:  # known from the start
                self.place(number, piece, np.zeros(1))

    @property
    def first_open(self) -> int | None:
        """Returns the number of the first field or free text that is not decided, None if all are."""
        numbers = (
            n for n, p in enumerate(self._pieces) if isinstance(p, Slot | FreeTextPiece) and n not in self.chosen
        )
        return next(numbers, None)

    @property
    def known_ids(self) -> Ids:
        """Returns the sequence up to the first field or free text that is not decided."""
        laid, number = self._lay_out(), self.first_open
        return laid.ids if number is None else laid.ids[: laid.begins[number]]

    def group(self, number: int, probability: Probability) -> list[int]:
        """Returns the fields to decide together: `number`, the first undecided one, and others of its block."""
        begin = self._lay_out().begins[number]
        first, end = self._canvas.find_block(begin)
        group, at = [number], begin
        if probability == "ordered" or (self._canvas.contract.seeded and begin == first):
            return group
        for following in range(number, len(self._pieces)):
            piece, known = self._pieces[following], self.chosen.get(following)
            if isinstance(piece, FreeTextPiece) and known is None:
                break
            if known is not None or isinstance(piece, tuple):
                at += len(known if known is not None else piece)  # type: ignore[arg-type]
                continue
            assert isinstance(piece, Slot)
            at += piece.longest
            if at > end:
                break
            if following != number:
                group.append(following)
        return group

    def place_values(self, group: Sequence[int]) -> bool:
        """Decides the fields of a group. Returns False if the forward passes ended before all of them had values."""
        found = score(self._canvas, self._prompt, self._pieces, self.chosen, group)
        for number, scores in found.items():
            piece = self._pieces[number]
            assert isinstance(piece, Slot)
            self.place(number, piece, scores)
        return len(found) == len(group)

    def place(self, number: int, slot: Slot, scores: Scores) -> None:
        """Gives a field its most probable value, the first of equal ones."""
        self._scores[number], self.chosen[number] = scores, slot.values[int(scores.argmax())]

    def place_text(self, number: int, text: str, ids: Ids) -> None:
        """Stores a free text and `ids`, its tokens if encoded by itself, which may differ from those decoded."""
        self._canvas.rewind(self._lay_out().begins[number])
        self._texts[number], self.chosen[number] = text, ids

    def make_decision(self, form: Form, options: DecisionOptions) -> Decision:
        """Returns what is decided so far, as values and texts of the form."""
        numbers = (n for n, p in enumerate(self._pieces) if isinstance(p, Slot | FreeTextPiece))
        parts = [p if isinstance(p, str) else self._decide_field(next(numbers), p, options) for p in form.parts]
        until = next((place for place, part in enumerate(parts) if part is None), len(parts))
        return Decision(
            text="".join(part if isinstance(part, str) else part.value for part in parts[:until] if part is not None),
            fields=tuple(part for part in parts if isinstance(part, FieldDecision)),
            forwards=self._canvas.forwards,
            partial=until < len(parts),
            probability=options.probability,
        )

    def _decide_field(self, number: int, part: Field | FreeText, options: DecisionOptions) -> FieldDecision | None:
        if isinstance(part, FreeText):
            text = self._texts.get(number)
            return None if text is None else FieldDecision(part.path, text, -1, (), float("nan"))
        if (scores := self._scores.get(number)) is None:
            return None
        each, index = probabilities(scores, options.temperature).tolist(), int(scores.argmax())
        return FieldDecision(part.path, part.values[index], index, tuple(each), each[index])

    def _lay_out(self) -> Layout:
        return lay_out(self._prompt, self._pieces, self.chosen, self._canvas.contract.mask_id)
