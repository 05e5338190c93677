"""Scores the values of fields: sums of log-probabilities, level by level over the tries of their tokens.

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
from .encoded_form import EncodedField, EncodedPart, FreeTextPart, Ids

Scores: TypeAlias = NDArray[np.float64]  # [values]


@dataclass(frozen=True, slots=True)
class Layout:
    """Holds a partly filled form as a token sequence.

    ids: from the prompt's first token to the form's end or the first undecided free text; undecided fields are masks.
    begins: the position at which each part begins, by the part's index.
    """

    ids: Ids
    begins: Mapping[int, int]


def lay_out(prompt: Ids, parts: Sequence[EncodedPart], part_ids: Mapping[int, Ids], mask_id: int) -> Layout:
    """Lays a form out. part_ids: tokens of the decided fields and free texts, by the part's index; each undecided field
    has `mask_count` masks."""
    ids, begins = [*prompt], dict[int, int]()
    for index, part in enumerate(parts):
        begins[index] = len(ids)
        if index in part_ids:
            ids += part_ids[index]
        elif isinstance(part, EncodedField):
            ids += [mask_id] * part.mask_count
        elif isinstance(part, FreeTextPart):
            break
        else:
            ids += part
    return Layout(tuple(ids), begins)


def score_values(
    canvas: Canvas, prompt: Ids, parts: Sequence[EncodedPart], part_ids: Mapping[int, Ids], group: Sequence[int]
) -> dict[int, Scores]:
    """Returns the scores of the values of each field of a group, by the field's index among the parts.

    The group's first field is the form's first undecided one. All fields of a group are scored while the others are
    masks. If all values of a field have the same length, their first token is read from the canvas that all such fields
    share. If no forward pass is left, unfinished fields are left out.
    """
    layout, mask = lay_out(prompt, parts, part_ids, canvas.contract.mask_id), (canvas.contract.mask_id,)
    start = layout.begins[group[0]]
    fields = {index: _get_field(parts, index) for index in group}
    scores = {index: np.zeros(len(field.values)) for index, field in fields.items()}
    max_lengths = {index: field.max_length for index, field in fields.items()}
    for level in range(max(max_lengths.values())):
        queries, receivers = ([], list[tuple[int, list[int]]]())  # per query: its field and values, as indices
        for index, field in fields.items():
            begin = layout.begins[index]
            ids_before, ids_after = layout.ids[start:begin], layout.ids[begin + field.mask_count :]
            for length, prefix, value_indices in field.list_nodes(level):
                tokens = tuple(dict.fromkeys(field.values[value_index][level] for value_index in value_indices))
                ids = ids_before + prefix + mask * (length - level) + ids_after
                queries.append(TokenQuery(ids, begin + level, tokens))
                receivers.append((index, value_indices))
        try:
            log_probs = canvas.score_tokens(queries, layout.ids[:start])
        except OutOfForwards:
            return {index: scores[index] for index in group if max_lengths[index] <= level}
        for (index, value_indices), query, query_log_probs in zip(receivers, queries, log_probs, strict=True):
            by_token = dict(zip(query.tokens, query_log_probs.tolist(), strict=True))
            for value_index in value_indices:
                scores[index][value_index] += by_token[fields[index].values[value_index][level]]
    return scores


def compute_probabilities(scores: Scores, temperature: float) -> Scores:
    """Returns softmax(scores / temperature). [values]"""
    exponents = (scores - scores.max()) / temperature
    probabilities: Scores = np.exp(exponents) / np.exp(exponents).sum()
    return probabilities


def _get_field(parts: Sequence[EncodedPart], index: int) -> EncodedField:
    part = parts[index]
    assert isinstance(part, EncodedField)
    return part
