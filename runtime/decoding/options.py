"""Defines how one request is decoded: its options, their defaults and bounds, the same for every caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np

from ..backend import Ints
from ..contract import Contract, GateSpec
from ..errors import UserError
from .block_layout import (
    check_ids,
    check_room,
    check_suffix,
    count_room_before_suffix,
    count_room_for_answer,
    decode_token_by_token,
)
from .sampling import check_sampling, make_sampler

NEW_TOKENS = 256  # default of max_new_tokens; fewer if the prompt leaves less room

Prompt = str | Sequence[int] | Ints
Threshold = float | Callable[[], float]


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """Describes how to decode one request.

    Attributes:
        max_new_tokens: Maximum of tokens in the answer; None for 256, or fewer if the prompt leaves less room.
        threshold: The gate's threshold, as a value or as a function that is called at every step; None for the gate's
            own.
        fused: Whether a block's commit (or the prefill) shares a forward pass with the next canvas, and a verification
            with the next draft if the model can; in fp32 the answer is the same either way.
        suffix: Known tokens after exactly `max_new_tokens` positions, by default as many as the block has room for. The
            answer is what comes before the suffix, up to an end token. `Model` encodes a text suffix by itself, without
            a chat template; the loop takes ids.
        temperature: 0 for the top-1 tokens; above 0, to 5, tokens are sampled, which needs a bundle exported with top
            tokens. A masked position is sampled at every step, see `sampling.Sampler`.
        seed: An int64; the same seed gives the same samples. None: a random seed, which the result reports.
        raw: Whether to leave the bundle's chat template out of a text prompt; ids never get one.
        mode: How blocks are filled. `block`: the gate accepts tokens. `causal`: token by token, as in an autoregressive
            model. `speculative`: the tokens of `causal`, drafted as a block and verified together. None: `block` if
            there is a threshold or a suffix, which only that mode has, otherwise the first of the contract's `modes`.
    """

    max_new_tokens: int | None = None
    threshold: Threshold | None = None
    fused: bool = True
    suffix: Prompt = ()
    temperature: float = 0.0
    seed: int | None = None
    raw: bool = False
    mode: str | None = None


class OptionKeywords(TypedDict, total=False):
    """Lists the fields of `DecodeOptions` as keywords, so that type checkers and editors know them."""

    max_new_tokens: int | None
    threshold: Threshold | None
    fused: bool
    suffix: Prompt
    temperature: float
    seed: int | None
    raw: bool
    mode: str | None


DEFAULTS = DecodeOptions()


@dataclass(frozen=True, slots=True)
class Request:
    """Holds a prompt, int64 [length], and how to answer it."""

    prompt: Ints
    options: DecodeOptions = DEFAULTS


def complete_options(contract: Contract, prompt: Ints, options: DecodeOptions) -> DecodeOptions:
    """Returns the options completed: with `max_new_tokens`, mode, ids as suffix and, if tokens are sampled, a seed.

    Raises UserError if the request does not fit the model. The threshold is checked by `make_threshold_reader`.
    """
    mode = choose_mode(contract, options.mode, gated=options.threshold is not None or len(options.suffix) > 0)
    if mode != "block":
        _check_ungated(options, mode)
    contract = choose_contract(contract, mode)
    suffix, wanted = convert_token_ids(options.suffix), count_new_tokens(contract, prompt, options)
    check_ids(contract, prompt)
    check_room(contract, len(prompt), wanted)
    check_suffix(contract, len(prompt), wanted, suffix)
    check_sampling(contract, options.temperature, options.seed)
    drawing = make_sampler(options.temperature, options.seed)
    seed = None if drawing is None else drawing.seed
    return replace(options, max_new_tokens=wanted, suffix=suffix, seed=seed, mode=mode)


def choose_mode(contract: Contract, mode: str | None, gated: bool = False) -> str:
    """Returns the mode; for None the contract's default or, if `gated`, `block`.

    gated: whether the request has an option that only the mode `block` has. Raises UserError if the model does not
    support the mode.
    """
    if mode is None:
        return "block" if gated and "block" in contract.modes else contract.modes[0]
    if mode not in contract.modes:
        can = " or ".join(contract.modes)
        raise UserError(f"mode is {mode!r}; this model decodes in the mode {can}")
    return mode


def choose_contract(contract: Contract, mode: str) -> Contract:
    """Returns the contract that gives a request's room in this mode: all modes but `block` go token by token."""
    return contract if mode == "block" else decode_token_by_token(contract)


def _check_ungated(options: DecodeOptions, mode: str) -> None:
    """Raises UserError for options that have no effect in a mode without a gate."""
    if options.threshold is not None:
        raise UserError(f"a threshold was given with mode {mode}, which has no gate; leave one of them out")
    if len(options.suffix):
        raise UserError(f"a suffix was given with mode {mode}, which sees nothing after a token; leave one of them out")


def count_new_tokens(contract: Contract, prompt: Ints, options: DecodeOptions) -> int:
    """Returns how many tokens the answer may have: the option, or NEW_TOKENS, or fewer if there is less room."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    room = count_room_for_answer(contract, len(prompt))
    if len(options.suffix):
        room = min(room, count_room_before_suffix(contract, len(prompt), len(options.suffix)))
    return max(1, min(NEW_TOKENS, room))


def make_threshold_reader(threshold: Threshold | None, spec: GateSpec, vocab: int) -> Callable[[], float]:
    """Returns a function that gives the threshold at every step. Raises UserError for one outside the gate's range."""
    if callable(threshold):
        return lambda: spec.check_threshold(threshold(), vocab)
    fixed = spec.require_threshold(vocab) if threshold is None else spec.check_threshold(threshold, vocab)
    return lambda: fixed


def convert_token_ids(prompt: Sequence[int] | Ints | str) -> Ints:
    """Returns ids as int64 [length]. Raises UserError if they are not a row of whole numbers."""
    ids = np.asarray(prompt if len(prompt) else np.zeros(0, np.int64))
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"the prompt is an array {list(ids.shape)} of {ids.dtype}; expected text or a row of token ids")
    return ids.astype(np.int64)
