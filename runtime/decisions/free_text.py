"""Decodes a form's free texts: ordinary decoding, block by block with the gate, up to the closing character."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from ..contract import GateSpec
from ..decoding.gate import Gate
from .canvas import Canvas
from .keywords import format_json
from .pieces import FreeTextPiece, Ids

Decode = Callable[[Sequence[int]], str]


def write_text(canvas: Canvas, ids: Ids, gap: FreeTextPiece, decode: Decode, gate: GateSpec, threshold: float) -> str:
    """Decodes a gap's text. ids: the prompt and the form up to the gap, all decided.

    The text ends before the closing character, before an end token, or at the gap's maximum of tokens. A `causal`
    model unmasks one token per step; in others the gate accepts tokens.
    """
    contract, rule, begin = canvas.contract, Gate(gate, canvas.contract.eos_ids), len(ids)
    known = list(ids)
    while (first := len(known)) - begin < gap.text.max_tokens:
        end = min(canvas.find_decoded_block(first)[1], begin + gap.text.max_tokens)
        block = np.full(end - first, contract.mask_id)
        masked = np.ones(len(block), np.bool_)
        while masked.any():
            places = np.flatnonzero(masked)
            if contract.attention == "causal":
                places = places[:1]
            out = canvas.propose((*known, *block.tolist()), (first + places).tolist())
            seed = contract.seeded and places[0] == 0 and canvas.find_decoded_block(first)[0] == first
            token, confidence, entropy = np.zeros(len(block), np.int64), *np.zeros((2, len(block)), np.float32)
            token[places], confidence[places], entropy[places] = out.token, out.confidence, out.entropy
            if contract.attention == "causal" or seed:
                accepted = np.arange(len(block)) == places[0]
            else:
                progress = (first - begin + len(block) - len(places)) / gap.text.max_tokens
                accepted = rule(token[None], confidence[None], entropy[None], masked[None], [progress], threshold)[0]
            np.copyto(block, token, where=accepted)
            masked &= ~accepted
            settled = block[: int(masked.argmax()) if masked.any() else len(block)].tolist()
            if (
                text := find_finished_text([*known[begin:], *settled], gap.closing, decode, contract.eos_ids)
            ) is not None:
                return text
        known += block.tolist()
    return decode(known[begin:])


def find_finished_text(ids: Sequence[int], closing: str, decode: Decode, eos_ids: Sequence[int]) -> str | None:
    """Returns the text of tokens if its end is among them: an end token, or the closing character, which is cut off.

    A closing character after an odd number of backslashes does not count, as in a JSON string.
    """
    ended = next((place for place, token in enumerate(ids) if token in eos_ids), None)
    text = decode(ids if ended is None else ids[:ended])
    backslashes = 0
    for place, character in enumerate(text):
        if closing and character == closing and backslashes % 2 == 0:
            return text[:place]
        backslashes = backslashes + 1 if character == "\\" else 0
    return None if ended is None else text


def read_free_text(written: str, most: int | None) -> str:
    """Returns the content of the JSON string that begins with this text, to its closing quote, of `most` characters.

    Escapes are read if all of them are JSON's; otherwise the text is taken as it stands.
    """
    end, escaped = len(written), False
    for index, letter in enumerate(written):
        if letter == '"' and not escaped:
            end = index
            break
        escaped = letter == "\\" and not escaped
    raw = written[:end]
    try:
        content = json.loads(f'"{raw}"', strict=False)
        content.encode()
    except ValueError:
        content = raw
    return str(content)[:most]


def cut_text(written: str, most: int | None) -> str:
    """Returns the text as it is, or what a JSON string holds of it if that has more than `most` characters."""
    if most is None or len(read_free_text(written, None)) <= most:
        return written
    return format_json(read_free_text(written, most))[1:-1]
