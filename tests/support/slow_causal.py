"""Models that are autoregressive too, decoded from the definition: no cache, no rows, every mask written out.

It shares nothing with `runtime/` but the contract's values, and with `train/` but the layers of the model, which may be
a stock class (`foreign.Stock`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from runtime.contract import Contract
from train.transformer.network import compute_rotary_tables

CLOSE = 1e-5


class TooClose(Exception):
    """Two tokens are as good as one another: which is the best is a matter of rounding."""


@torch.no_grad()
def predictions(model: Any, spec: Contract, ids: Sequence[int], both_ways: range) -> torch.Tensor:
    """Probabilities fp64 [length, vocab] of every row, the mask token at 0. both_ways: positions that see each other,
    all others see what is before them, and themselves."""
    length = len(ids)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    for row in both_ways:
        seen[row, both_ways.start : both_ways.stop] = True
    mask = torch.where(seen, 0.0, float("-inf"))[None, None]
    cos, sin = compute_rotary_tables(torch.arange(length)[None, None], model.config.head_dim, model.config.rope_theta)
    x = model.embed_tokens(torch.tensor([list(ids)]))
    for layer in model.layers:
        x = layer(x, cos, sin, mask, None)
    logits = model.logits(model.norm(x))[0].double()
    logits[:, spec.mask_id] = float("-inf")
    return torch.softmax(logits, dim=-1)


def best(row: torch.Tensor) -> int:
    two = row.topk(2)
    if float(two.values[0] - two.values[1]) < CLOSE:
        raise TooClose
    return int(two.indices[0])


def cut_at_end(spec: Contract, ids: Sequence[int], wanted: int) -> list[int] | None:
    """The answer if these tokens hold all of it."""
    for i, token in enumerate(ids[:wanted]):
        if token in spec.eos_ids:
            return [*ids[: i + 1]]
    return [*ids[:wanted]] if len(ids) >= wanted else None


def slow_causal(model: Any, spec: Contract, prompt: Sequence[int], wanted: int) -> list[int]:
    """Token by token."""
    answer: list[int] = []
    while (done := cut_at_end(spec, answer, wanted)) is None:
        answer.append(best(predictions(model, spec, [*prompt, *answer], range(0))[-1]))
    return done


def slow_blocks(model: Any, spec: Contract, prompt: Sequence[int], wanted: int, threshold: float) -> list[int]:
    """Hugging Face's loop of Nemotron-Labs-Diffusion, or for a shift the same with the row before each position."""
    ids, begin = [*prompt], len(prompt)
    while True:
        places = range(begin, begin + spec.block)
        canvas = {place: spec.mask_id for place in places}
        waiting = [*places]
        if spec.seeded:
            canvas[begin] = best(predictions(model, spec, ids, range(0))[-1])
            waiting.remove(begin)
        while True:
            known = [canvas[p] for p in range(begin, min(waiting, default=places.stop))]
            if (done := cut_at_end(spec, [*ids[len(prompt) :], *known], wanted)) is not None:
                return done
            if not waiting:
                break
            said = predictions(model, spec, [*ids, *canvas.values()], places)
            rows = {p: said[p - spec.shift] for p in waiting}
            if spec.shift and begin in rows:
                rows[begin] = predictions(model, spec, ids, range(0))[-1]
            sure = {p: float(row.max()) for p, row in rows.items()}
            order = sorted(waiting, key=lambda p: -sure[p])
            calls = [abs(sure[p] - threshold) for p in waiting]
            calls += [sure[order[0]] - sure[order[1]]] if len(order) > 1 and sure[order[0]] < threshold else []
            if min(calls) < CLOSE:
                raise TooClose
            for place in [p for p in waiting if sure[p] >= threshold] or order[:1]:
                canvas[place] = best(rows[place])
                waiting.remove(place)
        ids += canvas.values()
        begin += spec.block
