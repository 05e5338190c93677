"""A form as token ids: its words, and for each field the tokens of its values.

Each part of a form is encoded by itself, words and values alike, so that a value has the same tokens at each place
and the words around it never merge with it. The model may have been trained on texts that were encoded as a whole,
where one token can span the end of a word and the start of a value; that is rare if parts end at quotes, spaces or
brackets. First and last tokens that all values of a field share count as words, since they do not depend on the value;
but every value keeps at least one token, and a field's only value keeps all.

Requests often repeat a form, so the last encoded ones are kept, for all models and threads of the process together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias
from weakref import ref

from ..backend import Ints
from ..contract import Contract
from ..errors import UserError
from .form import Field, Form, FreeText

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

Ids: TypeAlias = tuple[int, ...]
Encode: TypeAlias = Callable[[str], Ints]

# Forms may come from strangers, so what is kept of them is bounded: in the worst case about 0.5 MB per form.
KEPT_FORMS = 64
KEPT_CHARACTERS = 1 << 13  # of the words and values of a form that is kept


@dataclass(frozen=True, slots=True)
class Slot:
    """Holds a field.

    values: each value's token ids, in the field's order, without the first and last ids that all values share.
    """

    field: Field
    values: tuple[Ids, ...]

    @property
    def longest(self) -> int:
        """Returns the token count of the longest value."""
        return max(map(len, self.values))

    @property
    def usual(self) -> int:
        """Returns its token count while undecided: the most frequent length of its values, the shortest on a tie."""
        lengths = Counter(map(len, self.values))
        return min(lengths, key=lambda length: (-lengths[length], length))

    def list_nodes(self, level: int) -> list[tuple[int, Ids, list[int]]]:
        """Returns the inner nodes at `level` (from 0) of tries over the values, one trie per value length.

        A node is its trie's value length, a prefix of `level` tokens, and the indices of the values that begin with it.
        """
        nodes: dict[tuple[int, Ids], list[int]] = {}
        for place, ids in enumerate(self.values):
            if len(ids) > level:
                nodes.setdefault((len(ids), ids[:level]), []).append(place)
        return [(length, prefix, places) for (length, prefix), places in nodes.items()]


@dataclass(frozen=True, slots=True)
class FreeTextPiece:
    """A free text. closing: the character that ends it, the first of the words after it; "" for none."""

    text: FreeText
    closing: str


Piece: TypeAlias = Ids | Slot | FreeTextPiece


def encode_once(form: Form, tokenizer: Tokenizer, contract: Contract) -> Sequence[Piece]:
    """Returns what `encode_form` does, without encoding an equal form for the same tokenizer and contract again.

    Raises the same; a form that is refused is not kept.
    """
    if form.characters > KEPT_CHARACTERS:
        return encode_form(form, tokenizer.encode, contract)
    try:
        hash((form, contract))
    except TypeError:  # lists instead of tuples, in a form that was built by hand
        return encode_form(form, tokenizer.encode, contract)
    return _encode_once(form, ref(tokenizer), contract)


@lru_cache(KEPT_FORMS)
def _encode_once(form: Form, tokenizer: ref[Tokenizer], contract: Contract) -> Sequence[Piece]:
    """Encodes a form. The reference is weak, so that no tokenizer outlives its models; a dead one equals no other."""
    alive = tokenizer()
    assert alive is not None  # the caller holds it
    return tuple(encode_form(form, alive.encode, contract))


def encode_form(form: Form, encode: Encode, contract: Contract) -> list[Piece]:
    """Returns the pieces of a form in order; tokens that all values of a field share become words before or after it.

    Raises UserError for a form without fields, a field without values, a value without tokens, and two values with the
    same tokens.
    """
    if not any(isinstance(part, Field | FreeText) for part in form.parts):
        raise UserError("the form has no field; expected at least one, with the values that it may have")
    pieces: list[Piece] = []
    for place, part in enumerate(form.parts):
        if isinstance(part, str):
            pieces.append(_encode_text(part, encode, contract))
        elif isinstance(part, FreeText):
            pieces.append(_make_gap(part, form.parts[place + 1 :]))
        else:
            pieces += _encode_field(part, encode, contract)
    return [piece for piece in pieces if piece != ()]


def count_longest(pieces: Sequence[Piece]) -> int:
    """Returns the maximum of tokens that the form may have."""
    return sum(_count_most(piece) for piece in pieces)


def _count_most(piece: Piece) -> int:
    if isinstance(piece, Slot):
        return piece.longest
    return piece.text.max_tokens if isinstance(piece, FreeTextPiece) else len(piece)


def _make_gap(part: FreeText, behind: Sequence[str | Field | FreeText]) -> FreeTextPiece:
    if part.max_tokens < 1:
        raise UserError(f"the free text {name_of(part.path)} has max_tokens {part.max_tokens}; expected at least 1")
    following = next((each for each in behind if each != ""), None)
    if following is not None and not isinstance(following, str):
        raise UserError(
            f"nothing ends the free text {name_of(part.path)}; expected words between it and the next field"
        )
    return FreeTextPiece(part, following[0] if following else "")


def _encode_field(field: Field, encode: Encode, contract: Contract) -> list[Piece]:
    if not field.values:
        raise UserError(f"the field {name_of(field.path)} has no values; expected at least one")
    whole = [_encode_text(value, encode, contract) for value in field.values]
    seen: dict[Ids, str] = {}
    for value, ids in zip(field.values, whole, strict=True):
        if not ids:
            raise UserError(f"the value {value!r} of {name_of(field.path)} has no tokens; expected a text")
        if ids in seen:
            both = f"{seen[ids]!r} and {value!r}"
            raise UserError(f"the values {both} of {name_of(field.path)} have the same tokens; expected different ones")
        seen[ids] = value
    if len(whole) == 1:
        return [Slot(field, (whole[0],))]
    shortest = min(map(len, whole))
    first = next((i for i in range(shortest - 1) if len({ids[i] for ids in whole}) > 1), shortest - 1)
    room = shortest - 1 - first
    last = next((i for i in range(room) if len({ids[-1 - i] for ids in whole}) > 1), room)
    slot = Slot(field, tuple(ids[first : len(ids) - last] for ids in whole))
    _check_count(slot, contract.candidates)
    return [whole[0][:first], slot, whole[0][len(whole[0]) - last :]]


def _check_count(slot: Slot, most: int) -> None:
    """Raises UserError if a field needs more candidates at one position than the bundle's graph was exported for."""
    if (count := count_candidates(slot.values)) > most:
        raise UserError(
            f"the field {name_of(slot.field.path)} has {count} values that differ in one token, but this bundle takes "
            f"{most} candidates; export it with --candidates {count}"
        )


def count_candidates(values: Sequence[Ids]) -> int:
    """Returns the maximum number of different tokens that can follow one beginning, among values of one length.

    It goes once over all tokens: a stranger's schema may have 1,024 values, or values of 2,000 tokens.
    """
    by_length = dict[int, list[Ids]]()
    for ids in values:
        by_length.setdefault(len(ids), []).append(ids)
    alike, level, most = [*by_length.values()], 0, 0  # values that begin in the same way
    while alike:
        longer = list[list[Ids]]()
        for group in alike:
            by_token = dict[int, list[Ids]]()
            for ids in group:
                by_token.setdefault(ids[level], []).append(ids)
            most = max(most, len(by_token))
            longer += [each for each in by_token.values() if len(each) > 1]
        alike, level = longer, level + 1
    return most


def _encode_text(text: str, encode: Encode, contract: Contract) -> Ids:
    ids = tuple(encode(text).tolist())
    if contract.mask_id in ids:
        raise UserError(f"the form's text {text[:40]!r} holds the mask token; leave it out")
    return ids


def name_of(path: Sequence[str | int]) -> str:
    """Returns a field's path as text, such as `items.0.name`."""
    return ".".join(map(str, path)) or "the value"
