"""Computes where blocks start and end, how a prompt splits into committed tokens and canvas, what each token sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..backend import Ints
from ..contract import Contract, GateSpec
from ..errors import UserError


def count_committed(contract: Contract, prompt: int) -> int:
    """Returns how many of a prompt's tokens are prefilled; the rest, only with `absolute`, begins the first canvas."""
    absolute = contract.has_cache and contract.alignment == "absolute"
    return prompt // contract.block * contract.block if absolute else prompt


def compute_block_bounds(contract: Contract, prompt: int, answer: int) -> tuple[Ints, Ints]:
    """Returns where each position's block begins and ends, for a prompt and `answer` positions after it.

    The answer's blocks are decoded one after the other. Decoding, trajectories and training get block bounds only from
    here and from `round_up_to_blocks`, so that block sizes may differ, up to `contract.block` tokens. int64
    [prompt + answer] each
    """
    block = contract.block
    short = count_committed(contract, prompt) % block  # tokens of the first block, if it is incomplete
    begins = (np.arange(prompt + answer, dtype=np.int64) - short) // block * block + short
    return begins, begins + block


def compute_block_ends(contract: Contract, prompt: int, answer: int = 0) -> Ints:
    """Returns how far each position of a prompt and `answer` positions after it sees: to the end of its block.

    With the alignment `prompt` it sees at least to the prompt's end; without a KV cache it sees everything. int64
    [prompt + answer]
    """
    if not contract.has_cache:
        return np.full(prompt + answer, prompt + answer, np.int64)
    ends = compute_block_bounds(contract, prompt, answer)[1]
    return np.maximum(ends, prompt) if contract.alignment == "prompt" else ends


def compute_committed_ends(contract: Contract, prompt: int, answer: int = 0) -> Ints:
    """Returns how far each position sees once it is committed: to itself in causal models, else as in
    `compute_block_ends`.

    int64 [prompt + answer]
    """
    if contract.commits_causally:
        return np.arange(1, prompt + answer + 1, dtype=np.int64)
    return compute_block_ends(contract, prompt, answer)


def decode_token_by_token(contract: Contract) -> Contract:
    """Returns the contract of the same model decoded as an autoregressive one: blocks of one token, each predicted by
    the row before."""
    return replace(
        contract, alignment="absolute", attention="block_causal", shift=True, block=1, gate=GateSpec(rule="count")
    )


def check_reuse(contract: Contract) -> None:
    """Raises UserError if no prompt can reuse keys and values of an earlier one."""
    if not contract.has_cache:
        raise UserError("a model without a KV cache computes each prompt anew, so it has no prefix caching")
    if contract.alignment == "prompt" and not contract.commits_causally:
        raise UserError(
            "in this model every token of a prompt sees the whole prompt, so that its keys and values fit no other "
            "prompt; generate each answer by itself (prefix caching needs the alignment absolute or end)"
        )


def count_reusable(contract: Contract, held: Ints, earlier: int, prompt: Ints) -> int:
    """Returns how many of a prompt's first tokens need no prefill because the KV cache holds them.

    held [length]: the committed ids of the request before, whose prompt had `earlier` tokens. Only whole blocks are
    reused, since a token sees its block to the end. With `end`, blocks are counted back from the prompt's end, so the
    first blocks of both prompts must have the same length. With `shift`, the last prompt token is prefilled if a
    masked canvas follows: its row predicts the canvas's first token.
    """
    if contract.commits_causally:
        contract = decode_token_by_token(contract)
    block, start = contract.block, count_committed(contract, len(prompt))
    short = len(prompt) % block if contract.alignment == "end" else 0
    if contract.alignment == "end" and earlier % block != short:
        return 0
    both = min(len(held), start)
    differs = (held[:both] != prompt[:both]).nonzero()[0]
    alike = int(differs[0]) if len(differs) else both
    most = alike - 1 if contract.shift and alike == len(prompt) else alike
    return short + (most - short) // block * block if most >= short else 0


def round_up_to_blocks(contract: Contract, prompt: int, tokens: int) -> int:
    """Returns where the last block of an answer of `tokens` tokens ends, in positions from the prompt's first token."""
    start = count_committed(contract, prompt)
    return start - (start - prompt - tokens) // contract.block * contract.block


def count_positions(contract: Contract, prompt: int, tokens: int) -> int:
    """Returns how many positions are occupied by one request at most: prompt and whole blocks, or prompt and canvas."""
    return round_up_to_blocks(contract, prompt, tokens) if contract.has_cache else prompt + contract.canvas


def compute_longest_answer(contract: Contract) -> int:
    """Returns how many positions at most belong to an answer of `contract.canvas` tokens, its last block complete."""
    lengths = range(contract.block, 2 * contract.block)
    return max(count_positions(contract, prompt, contract.canvas) - prompt for prompt in lengths)


def count_room_for_answer(contract: Contract, prompt: int) -> int:
    """Returns the most tokens that an answer to a prompt of `prompt` tokens may have; 0 if none fits."""
    if not contract.has_cache:
        return contract.canvas if prompt + contract.canvas <= contract.capacity else 0
    start = count_committed(contract, prompt)
    return max(0, start + (contract.capacity - start) // contract.block * contract.block - prompt)


def check_room(contract: Contract, prompt: int, tokens: int) -> None:
    """Raises UserError, before any work, if prompt and answer do not fit."""
    if prompt < 1:
        raise UserError("the prompt is empty; give at least one token")
    if tokens < 1:
        raise UserError(f"max_new_tokens is {tokens}; expected at least 1")
    if contract.max_prompt is not None and prompt > contract.max_prompt:
        raise UserError(
            f"the prompt has {prompt} tokens, but this engine takes one of at most {contract.max_prompt}; shorten it, "
            "or build the engine with a larger --max-prompt"
        )
    room = count_room_for_answer(contract, prompt)
    if tokens > room:
        limit = f"blocks of {contract.block}" if contract.has_cache else f"a canvas of {contract.canvas} tokens"
        raise UserError(
            f"a prompt of {prompt} tokens leaves room for {room} new ones in a KV-cache capacity of "
            f"{contract.capacity} ({limit}), but {tokens} were requested; shorten the prompt or request fewer"
        )


def count_room_before_suffix(contract: Contract, prompt: int, suffix: int) -> int:
    """Returns how many tokens fit between a prompt and a suffix of these lengths, if each is to see the suffix.

    A `full` model sees its whole canvas, a `block_causal` one nothing after the block. 0 or less: none fits.
    """
    if not contract.has_cache:
        return contract.canvas - suffix
    return contract.block - (prompt - count_committed(contract, prompt)) - suffix


def check_suffix(contract: Contract, prompt: int, tokens: int, suffix: Ints) -> None:
    """Raises UserError, before any work, if `suffix` [length] cannot follow a prompt and `tokens` positions."""
    if len(suffix) == 0:
        return
    check_ids(contract, suffix)
    room = count_room_before_suffix(contract, prompt, len(suffix))
    if tokens > room:
        where = (
            f"one block of {contract.block} tokens, beyond which this model sees nothing"
            if contract.has_cache
            else f"a canvas of {contract.canvas} tokens"
        )
        advice = f"request at most {room}" if room > 0 else "shorten the suffix"
        raise UserError(f"{tokens} new tokens and a suffix of {len(suffix)} do not fit {where}; {advice}")


def check_ids(contract: Contract, prompt: Ints) -> None:
    """Raises UserError if one of a prompt's ids [length] is not an id of the model."""
    strange = prompt[(prompt < 0) | (prompt >= contract.vocab)]
    if len(strange):
        raise UserError(f"token id {strange[0]} is not in the vocabulary; expected 0 to {contract.vocab - 1}")
