"""Decodes a form's free texts as ordinary decoding does: block by block, with the gate, up to the closing character."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from ..contract import GateSpec
from ..decoding.gate import Gate
from .canvas import Canvas
from .encoded_form import FreeTextPart, Ids
from .keywords import format_json

Decode = Callable[[Sequence[int]], str]


def write_text(
    canvas: Canvas, known_ids: Ids, part: FreeTextPart, decode: Decode, gate_spec: GateSpec, threshold: float
) -> str:
    """Decodes a free text. known_ids: the prompt and the form up to the free text, all decided.

    The text ends before the closing character, before an end token, or at its maximum number of tokens. A `causal`
    model unmasks one token per step; in others the gate accepts tokens.
    """
    contract, gate, begin = canvas.contract, Gate(gate_spec, canvas.contract.eos_ids), len(known_ids)
    ids, max_tokens = list(known_ids), part.free_text.max_tokens
    while (first := len(ids)) - begin < max_tokens:
        end = min(canvas.find_decoded_block(first)[1], begin + max_tokens)
        block = np.full(end - first, contract.mask_id)
        masked = np.ones(len(block), np.bool_)
        while masked.any():
            places = np.flatnonzero(masked)
            if contract.attention == "causal":
                places = places[:1]
            out = canvas.propose((*ids, *block.tolist()), (first + places).tolist())
            is_seed = contract.seeded and places[0] == 0 and canvas.find_decoded_block(first)[0] == first
            token, confidence, entropy = np.zeros(len(block), np.int64), *np.zeros((2, len(block)), np.float32)
            token[places], confidence[places], entropy[places] = out.token, out.confidence, out.entropy
            if contract.attention == "causal" or is_seed:
                accepted = np.arange(len(block)) == places[0]
            else:
                progress = (first - begin + len(block) - len(places)) / max_tokens
                accepted = gate(token[None], confidence[None], entropy[None], masked[None], [progress], threshold)[0]
            np.copyto(block, token, where=accepted)
            masked &= ~accepted
            before_masks = block[: int(masked.argmax()) if masked.any() else len(block)].tolist()
            written = [*ids[begin:], *before_masks]
            if (text := find_finished_text(written, part.closing_character, decode, contract.eos_ids)) is not None:
                return text
        ids += block.tolist()
    return decode(ids[begin:])


def find_finished_text(
    ids: Sequence[int], closing_character: str, decode: Decode, eos_ids: Sequence[int]
) -> str | None:
    """Returns the text of tokens if its end is among them: an end token, or the closing character, which is cut off.

    A closing character after an odd number of backslashes does not count, as in a JSON string.
    """
    end = next((place for place, token in enumerate(ids) if token in eos_ids), None)
    text = decode(ids if end is None else ids[:end])
    backslashes = 0
    for place, character in enumerate(text):
        if closing_character and character == closing_character and backslashes % 2 == 0:
            return text[:place]
        backslashes = backslashes + 1 if character == "\\" else 0
    return None if end is None else text


def read_free_text(text: str, max_characters: int | None) -> str:
    """Returns the content of the JSON string that begins with `text`: up to its closing quote, cut to `max_characters`.

    Escapes are read if all of them are JSON's; otherwise the text is taken as it is.
    """
    end, is_escaped = len(text), False
    for index, character in enumerate(text):
        if character == '"' and not is_escaped:
            end = index
            break
        is_escaped = character == "\\" and not is_escaped
    literal = text[:end]
    try:
        content = json.loads(f'"{literal}"', strict=False)
        content.encode()
    except ValueError:
        content = literal
    return str(content)[:max_characters]


def cut_text(text: str, max_characters: int | None) -> str:
    """Returns the text unchanged, or, if its content as a JSON string is longer than `max_characters`, the JSON text of
    the content's first `max_characters`."""
    if max_characters is None or len(read_free_text(text, None)) <= max_characters:
        return text
    return format_json(read_free_text(text, max_characters))[1:-1]
