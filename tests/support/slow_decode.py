"""Block decoding written from its definition, slow and obvious: no cache, everything recomputed at every step.

It shares nothing with `runtime/` but the contract's values, and with `train/` but the layers of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.contract import Contract
from train.transformer.network import Transformer, compute_rotary_tables


@dataclass(frozen=True, slots=True)
class Moment:
    """The canvas after a step, and by how little any decision of that step was taken.

    tokens, open [block]; accepted: how many positions the step finalised; forced: whether none passed the threshold;
    closest: the least distance to the threshold, between the two most probable tokens, or of the forced first to the
    second.
    """

    tokens: tuple[int, ...]
    open: tuple[bool, ...]
    accepted: int
    forced: bool
    closest: float


@dataclass(frozen=True, slots=True)
class Rule:
    """Which open places a step finalises: all that pass, or else the best.

    score: of a confidence and an entropy, the higher the surer; limit: the score that decides, for how close a call
    was; sub_block: only places of the first so many that have an open one are looked at.
    """

    score: Callable[[float, float], float]
    passes: Callable[[float], bool]
    limit: float
    sub_block: int | None = None


Pick = Callable[[Tensor, int, int], int]


def best_token(probabilities: Tensor, position: int, step: int) -> int:
    return int(probabilities.argmax())


def sees(contract: Contract, prompt: int, length: int) -> Tensor:
    """Who sees whom when everything is clean up to the canvas: bool [length, length], query by key."""
    block = contract.block
    if contract.attention == "full":
        return torch.ones(length, length, dtype=torch.bool)
    if contract.alignment == "absolute":
        block_of = [i // block for i in range(length)]
    elif contract.alignment == "end":
        block_of = [
            (i - prompt) // block for i in range(length)
        ]  # the prompt's blocks are negative, the first may be short
    else:
        block_of = [-1 if i < prompt else (i - prompt) // block for i in range(length)]
    return torch.tensor([[block_of[key] <= block_of[query] for key in range(length)] for query in range(length)])


@torch.no_grad()
def distributions(model: Transformer, contract: Contract, ids: Sequence[int], prompt: int) -> Tensor:
    """What the model says of every position: probabilities fp64 [length, vocab], the mask token at 0.

    With `shift` the row before predicts, so position 0, which no row predicts, gets zeros.
    """
    seen = sees(contract, prompt, len(ids))
    mask = torch.where(seen, 0.0, float("-inf"))[None, None]  # [1, 1, length, length]
    cos, sin = compute_rotary_tables(torch.arange(len(ids))[None, None], model.config.head_dim, model.config.rope_theta)
    x = model.embed_tokens(torch.tensor([ids]))
    for layer in model.layers:
        x = layer(x, cos, sin, mask, None)
    logits = model.logits(model.norm(x))[0].double()  # [length, vocab]
    logits[:, contract.mask_id] = float("-inf")
    probabilities = torch.softmax(logits, dim=-1)
    if contract.shift:
        probabilities = torch.cat((torch.zeros_like(probabilities[:1]), probabilities[:-1]))
    return probabilities


def slow_decode(
    model: Transformer, contract: Contract, prompt: Sequence[int], max_new_tokens: int, threshold: float = 0.5,
    rule: Rule | None = None, pick: Pick = best_token,
) -> tuple[list[int], str, list[Moment]]:  # fmt: skip
    """The answer, why it ended (eos | length) and every step, by the rule or `confidence >= threshold`.

    pick: a position's token, of its probabilities [vocab], its position in the answer and the step, both from 0.
    """
    rule = rule or Rule(lambda confidence, entropy: confidence, lambda score: score >= threshold, threshold)
    ids, block, moments = list(prompt), contract.block, []
    absolute = contract.alignment == "absolute" and contract.attention != "full"
    start = len(prompt) // block * block if absolute else len(prompt)
    while True:
        waiting = list(range(len(ids), start + block))
        ids += [contract.mask_id] * len(waiting)
        while waiting:
            behind = len(prompt) + contract.canvas - len(ids) if contract.attention == "full" else 0
            all_probs = distributions(model, contract, ids + [contract.mask_id] * behind, len(prompt))
            best = all_probs.topk(2)
            chosen = {place: pick(all_probs[place], place - len(prompt), len(moments)) for place in waiting}
            entropy = torch.special.entr(all_probs).sum(-1)  # [length]
            size = rule.sub_block or block
            near = [place for place in waiting if (place - start) // size == (waiting[0] - start) // size]
            sure = {place: rule.score(all_probs[place, chosen[place]].item(), entropy[place].item()) for place in near}
            passed = [place for place in near if rule.passes(sure[place])]
            ranking = sorted(near, key=lambda place: (-sure[place], place))
            accepted = passed or ranking[:1]
            for place in accepted:
                ids[place] = chosen[place]
            calls = [abs(sure[place] - rule.limit) for place in near]
            calls += [(best.values[place, 0] - best.values[place, 1]).item() for place in near]
            calls += [sure[ranking[0]] - sure[ranking[1]]] if not passed and len(near) > 1 else []
            waiting = [place for place in waiting if place not in accepted]
            still_open = tuple(place in waiting for place in range(start, start + block))
            moments.append(Moment(tuple(ids[start:]), still_open, len(accepted), not passed, min(calls)))
            settled = ids[len(prompt) : min(waiting, default=len(ids))][:max_new_tokens]
            for i, token in enumerate(settled):
                if token in contract.eos_ids:
                    return settled[: i + 1], "eos", moments
            if len(settled) == max_new_tokens:
                return settled, "length", moments
        start += block
