"""Decisions written from their definition: every value of every field by itself, no cache, no rows, no tries.

It shares nothing with `runtime/` but the contract's values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from slow_causal import predictions
from slow_decode import distributions

from runtime.contract import Contract

CLOSE = 1e-5  # two probabilities: which is the larger one is a matter of rounding
Ids = tuple[int, ...]
Part = Ids | list[Ids]  # words, or the values of a field


class TooClose(Exception):
    """Two values of a field are as good as one another."""


@dataclass(frozen=True, slots=True)
class SlowDecision:
    """chosen: the index of each field's value; probabilities: of all its values."""

    chosen: list[int]
    probabilities: list[list[float]]


def find_block(spec: Contract, prompt: int, position: int) -> tuple[int, int]:
    """Where the block of a position behind the prompt begins and ends."""
    if spec.attention == "full":
        return prompt, prompt + spec.canvas
    first = prompt // spec.block * spec.block if spec.alignment == "absolute" else prompt
    begin = first + (position - first) // spec.block * spec.block
    return begin, begin + spec.block


def log_prob(model: Any, spec: Contract, prompt: int, ids: Ids, position: int, token: int) -> float:
    """What the model says of a token at a masked position, of the whole vocabulary but the mask token. ids: the whole
    sequence; behind it are masks."""
    begin, end = find_block(spec, prompt, position)
    whole = [*ids, *[spec.mask_id] * (end - len(ids))][:end]
    return math.log(float(row(model, spec, prompt, tuple(whole), position, begin, end)[token]))


@lru_cache(256)  # values that differ in one token are asked of one canvas
def row(model: Any, spec: Contract, prompt: int, whole: Ids, position: int, begin: int, end: int) -> torch.Tensor:
    """The probabilities of a position in the block from `begin` to `end`. [vocab]"""
    if spec.attention in ("block_causal", "full"):
        return distributions(model, spec, whole, prompt)[position]
    if spec.attention == "causal":
        return predictions(model, spec, whole, range(0))[position - 1]
    if position == begin:  # what the last committed token says
        return predictions(model, spec, whole[:begin], range(0))[-1]
    return predictions(model, spec, whole, range(begin, end))[position - spec.shift]


def common(rows: Sequence[Ids]) -> int:
    """How many tokens all rows begin with."""
    return max(n for n in range(min(map(len, rows)) + 1) if len({row[:n] for row in rows}) == 1)


def without_common(values: Sequence[Ids]) -> tuple[Ids, list[Ids], Ids]:
    """What all values begin with, the rest of each (at least one token), and what all end with."""
    if len(values) == 1:
        return (), [*values], ()
    first = common([value[:-1] for value in values])
    rest = [value[first:] for value in values]
    last = common([value[:0:-1] for value in rest])
    end = rest[0][len(rest[0]) - last :]
    return values[0][:first], [value[: len(value) - last] for value in rest], end


def usual(values: Sequence[Ids]) -> int:
    lengths = sorted(map(len, values))
    return max(lengths, key=lambda length: (lengths.count(length), -length))


def slow_decide(model: Any, spec: Contract, prompt: Sequence[int], form: Sequence[Part], ordered: bool) -> SlowDecision:
    """Decides every field. Raises TooClose."""
    parts: list[Part] = []
    for part in form:
        if isinstance(part, list):
            before, values, behind = without_common(part)
            parts += [before, values, behind]
        else:
            parts.append(part)
    fields = [place for place, part in enumerate(parts) if isinstance(part, list)]
    chosen = {place: 0 for place in fields if len(parts[place]) == 1}
    found = {place: [1.0] for place in chosen}

    def lay(tried: dict[int, Ids]) -> tuple[Ids, dict[int, int]]:
        ids, begins = list(prompt), {}
        for place, part in enumerate(parts):
            begins[place] = len(ids)
            if not isinstance(part, list):
                ids += part
            elif place in chosen:
                ids += part[chosen[place]]
            else:
                ids += tried.get(place, (spec.mask_id,) * usual(part))
        return tuple(ids), begins

    def score(place: int, value: Ids) -> float:
        total = 0.0
        for number, token in enumerate(value):
            ids, begins = lay({place: value[:number] + (spec.mask_id,) * (len(value) - number)})
            total += log_prob(model, spec, len(prompt), ids, begins[place] + number, token)
        return total

    while waiting := [place for place in fields if place not in chosen]:
        start = lay({})[1][waiting[0]]
        begin, end = find_block(spec, len(prompt), start)
        group = waiting[:1]
        alone = spec.attention == "causal_context" and not spec.shift and start == begin
        for last in waiting[1:] if not ordered and not alone else []:
            between = parts[waiting[0] : last + 1]
            sizes = [
                max(map(len, part)) if isinstance(part, list) and waiting[0] + i not in chosen
                else len(part[0]) if isinstance(part, list) else len(part)
                for i, part in enumerate(between)
            ]  # fmt: skip
            if start + sum(sizes) > end:
                break
            group.append(last)
        made = {}
        for place in group:
            scores = torch.tensor([score(place, value) for value in parts[place]], dtype=torch.float64)
            found[place] = torch.softmax(scores, 0).tolist()
            best = sorted(found[place])
            if best[-1] - best[-2] < CLOSE:
                raise TooClose
            made[place] = int(scores.argmax())
        chosen |= made
    return SlowDecision([chosen[place] for place in fields], [found[place] for place in fields])
