"""Scores of the values of fields: sums of log-probabilities, level by level over the tries of their tokens.

The score of a value is the sum of log p of its tokens, each given those before it: p of the whole vocabulary, read at
the token's position on a canvas on which the earlier tokens of the value are placed and the later ones are masks. All
prefixes of a level are scored together. Values of different token counts move what follows them, so each count has
canvases of its own; their scores are compared as they are, not divided by the count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas, OutOfForwards, TokenQuery
from .pieces import FreeTextPiece, Ids, Piece, Slot

Scores: TypeAlias = NDArray[np.float64]  # [values]


@dataclass(frozen=True, slots=True)
class Layout:
    """Holds a partly filled form as a token sequence.

    ids: from the prompt's first token to the form's end or the first undecided free text; undecided fields are masks.
    begins: the position at which each piece begins, by the piece's number.
    """

    ids: Ids
    begins: Mapping[int, int]


def lay_out(prompt: Ids, pieces: Sequence[Piece], chosen: Mapping[int, Ids], mask: int) -> Layout:
    """Lays a form out. chosen: tokens of the pieces that have a value, by number; other fields are masks of
    their usual length."""
    ids, begins = [*prompt], dict[int, int]()
    for number, piece in enumerate(pieces):
        begins[number] = len(ids)
        if number in chosen:
            ids += chosen[number]
        elif isinstance(piece, Slot):
            ids += [mask] * piece.usual
        elif isinstance(piece, FreeTextPiece):
            break
        else:
            ids += piece
    return Layout(tuple(ids), begins)


def score(
    canvas: Canvas, prompt: Ids, pieces: Sequence[Piece], chosen: Mapping[int, Ids], group: Sequence[int]
) -> dict[int, Scores]:
    """Returns the scores of the values of each field of a group, by its number; the first of them is the form's first
    field without a value.

    All fields of a group are scored while the others are masks. Those of one length for all values need no canvas but
    the common one for their first token. If no forward pass is left, unfinished fields are left out.
    """
    laid, mask = lay_out(prompt, pieces, chosen, canvas.contract.mask_id), (canvas.contract.mask_id,)
    start = laid.begins[group[0]]
    slots = {number: _get_slot(pieces, number) for number in group}
    scores = {number: np.zeros(len(slot.values)) for number, slot in slots.items()}
    deepest = {number: slot.longest for number, slot in slots.items()}
    for level in range(max(deepest.values())):
        queries, receivers = [], list[tuple[int, list[int]]]()  # per query: its field, and the values to score
        for number, slot in slots.items():
            begin = laid.begins[number]
            before, behind = laid.ids[start:begin], laid.ids[begin + slot.usual :]
            for own, prefix, places in slot.list_nodes(level):
                tokens = tuple(dict.fromkeys(slot.values[place][level] for place in places))
                queries.append(TokenQuery(before + prefix + mask * (own - level) + behind, begin + level, tokens))
                receivers.append((number, places))
        try:
            found = canvas.score_tokens(queries, laid.ids[:start])
        except OutOfForwards:
            return {number: made for number, made in scores.items() if deepest[number] <= level}
        for (number, places), query, log_probs in zip(receivers, queries, found, strict=True):
            by_token = dict(zip(query.tokens, log_probs.tolist(), strict=True))
            for place in places:
                scores[number][place] += by_token[slots[number].values[place][level]]
    return scores


def probabilities(scores: Scores, temperature: float) -> Scores:
    """Returns softmax(scores / temperature). [values]"""
    heat = (scores - scores.max()) / temperature
    made: Scores = np.exp(heat) / np.exp(heat).sum()
    return made


def _get_slot(pieces: Sequence[Piece], number: int) -> Slot:
    piece = pieces[number]
    assert isinstance(piece, Slot)
    return piece
