"""What predicts a block when it is decoded alone over what is committed: no cache, who sees whom written out."""

from __future__ import annotations

import torch
from slow_decode import sees
from torch import Tensor

from runtime.contract import Contract
from train.transformer.network import Transformer


def who_sees_whom(contract: Contract, prompt: int, begin: int, length: int) -> Tensor:
    """bool [length, length], query by key, of committed tokens up to `begin` and the block in progress after them."""
    if contract.attention != "causal_context":
        return sees(contract, prompt, length)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[begin:] = True
    return seen


def block_alone(model: Transformer, contract: Contract, ids: Tensor, prompt: int, begin: int) -> Tensor:
    """The hidden states [block, width] that predict the last block of `ids`, from `begin` on. With a shift position 0
    is the business of the last committed row, in a forward pass without this block; nothing predicts a prompt's
    first token, which gets zeros."""

    def run(length: int) -> Tensor:
        seen = who_sees_whom(contract, prompt, begin, length)
        hidden: Tensor = model(ids[None, :length], mask=torch.where(seen, 0.0, float("-inf"))[None, None])[0]
        return hidden

    block = run(len(ids))[begin:]
    if not contract.shift:
        return block
    return torch.cat((run(begin)[-1:] if begin else torch.zeros(1, block.shape[1]), block[:-1]))
