"""How one request is decoded: its options, their defaults and their bounds, the same for every caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np

from ..backend import Ints
from ..contract import Contract, GateSpec
from ..errors import UserError
from .block_layout import check_ids, check_room, check_suffix, room_before_suffix, room_for_answer
from .sampling import check_sampling, sampler

NEW_TOKENS = 256  # by default, cut to the room that the prompt leaves

Prompt = str | Sequence[int] | Ints
Threshold = float | Callable[[], float]


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How to decode one request.

    Attributes:
        max_new_tokens: Most tokens of the answer; None for 256, cut to the room.
        threshold: Of the gate, a value or a function that is read at every step; None for the gate's own.
        fused: Whether the commit of a block (and the prefill) shares a forward pass with the next canvas; exact either
            way in fp32.
        suffix: Known tokens after exactly `max_new_tokens` positions, by default as many as the block has room for; the
            answer is what comes before it, to an end token. Text is encoded alone, without a chat template, by `Model`;
            the loop takes ids.
        temperature: 0 for the best tokens; above it, to 5, tokens are sampled, of a bundle exported with top tokens. A
            masked position is sampled at every step, see `sampling.Sampler`.
        seed: An int64 that repeats the same samples; None samples one, which the result reports.
        raw: Whether a text prompt goes without the bundle's chat template. Ids have none.
    """

    max_new_tokens: int | None = None
    threshold: Threshold | None = None
    fused: bool = True
    suffix: Prompt = ()
    temperature: float = 0.0
    seed: int | None = None
    raw: bool = False


class OptionKeywords(TypedDict, total=False):
    """The fields of `DecodeOptions` as keywords, so that type checkers and editors know them."""

    max_new_tokens: int | None
    threshold: Threshold | None
    fused: bool
    suffix: Prompt
    temperature: float
    seed: int | None
    raw: bool


DEFAULTS = DecodeOptions()


@dataclass(frozen=True, slots=True)
class Request:
    """What to answer: `prompt` int64 [length], and how."""

    prompt: Ints
    options: DecodeOptions = DEFAULTS


def settle(contract: Contract, prompt: Ints, options: DecodeOptions) -> DecodeOptions:
    """Returns the options with `max_new_tokens`, ids as suffix and, if tokens are sampled, a seed.

    Raises UserError if the request does not fit the model. The threshold is checked by `threshold_reader`.
    """
    suffix, wanted = token_ids(options.suffix), new_tokens(contract, prompt, options)
    check_ids(contract, prompt)
    check_room(contract, len(prompt), wanted)
    check_suffix(contract, len(prompt), wanted, suffix)
    check_sampling(contract, options.temperature, options.seed)
    drawing = sampler(options.temperature, options.seed)
    return replace(options, max_new_tokens=wanted, suffix=suffix, seed=None if drawing is None else drawing.seed)


def new_tokens(contract: Contract, prompt: Ints, options: DecodeOptions) -> int:
    """Returns the most tokens of the answer: the option, or NEW_TOKENS cut to the room."""
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    room = room_for_answer(contract, len(prompt))
    if len(options.suffix):
        room = min(room, room_before_suffix(contract, len(prompt), len(options.suffix)))
    return max(1, min(NEW_TOKENS, room))


def threshold_reader(threshold: Threshold | None, spec: GateSpec, vocab: int) -> Callable[[], float]:
    """Returns what is called at every step for the threshold. Raises UserError for one outside the gate's range."""
    if callable(threshold):
        return lambda: spec.check_threshold(threshold(), vocab)
    fixed = spec.own_threshold(vocab) if threshold is None else spec.check_threshold(threshold, vocab)
    return lambda: fixed


def token_ids(prompt: Sequence[int] | Ints | str) -> Ints:
    """Returns ids as int64 [length]. Raises UserError if they are not a row of whole numbers."""
    ids = np.asarray(prompt if len(prompt) else np.zeros(0, np.int64))
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(f"the prompt is an array {list(ids.shape)} of {ids.dtype}; expected text or a row of token ids")
    return ids.astype(np.int64)
