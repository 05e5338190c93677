"""Encodes prompts as the runtime does, in the checkpoint's chat template if it has one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as Engine

from runtime.contract import Contract
from runtime.decoding.block_layout import check_room
from runtime.errors import UserError
from runtime.text.tokenizer import Tokenizer
from train import distributed
from train.checkpoint import Checkpoint

SHOWN = 10  # maximum of lines that a warning names

Encode = Callable[[Sequence[str]], list[list[int]]]


def make_encoder(saved: Checkpoint, raw: bool) -> Encode:
    """Returns an encoder of prompts for this model; `raw` leaves its chat template out.

    The encoder raises UserError if the template fails or jinja2 is missing.
    """
    if raw or saved.chat_template is None:
        return make_plain_encoder(saved.read_tokenizer())
    return make_chat_encoder(Tokenizer(saved.tokenizer, saved.chat_template))


def make_plain_encoder(tokenizer: Engine) -> Encode:
    """Returns an encoder of plain text, without chat template or special tokens."""
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def make_chat_encoder(tokenizer: Tokenizer) -> Encode:
    """Returns an encoder of each text as a user's message in the chat template, or as plain text without a template."""
    return lambda texts: [tokenizer.encode_chat(text).tolist() for text in texts]


def find_fitting(
    encoded: Sequence[Sequence[int]], lines: Sequence[int], contract: Contract, least: int = 1
) -> list[int]:
    """Returns the indices of the prompts that have tokens and leave room for an answer of at least `least` tokens.

    Names the others on stderr. Raises UserError if all prompts are left out.

    Args:
        lines: each prompt's line in its file, or 0 (see `Problem`); may be empty.
    """
    kept, reasons = list[int](), dict[int, str]()
    for place, ids in enumerate(encoded):
        try:
            check_room(contract, len(ids), least)
            kept.append(place)
        except UserError as error:
            reasons[place] = str(error)
    first, count = next(iter(reasons.values()), ""), len(encoded)
    if reasons and not kept:
        raise UserError(
            f"{count} of {count} prompts leave no room in a KV-cache capacity of {contract.capacity}: {first}"
        )
    if reasons and distributed.get_rank() == 0:
        known = any(lines)
        named = name_lines([lines[place] if known else place + 1 for place in reasons], "line" if known else "problem")
        print(f"{len(reasons)} of {count} prompts are left out, {named}: {first}", file=sys.stderr)
    return kept


def name_lines(lines: Sequence[int], what: str = "line") -> str:
    """Names lines of a file, at most SHOWN of them: `lines 3, 7 and 12 more`."""
    numbers = sorted(set(lines))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"{what}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:SHOWN]))}{more}"
