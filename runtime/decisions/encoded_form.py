"""Encodes a form: its words become token ids, and each field gets the token ids of its values.

Each part of a form is encoded by itself, words and values alike, so that a value has the same tokens in every place
and the words around it never merge with it. The model may have been trained on texts that were encoded as a whole, in
which one token can span the end of a word and the start of a value; that is rare if parts end at quotes, spaces or
brackets. First and last tokens that all values of a field share count as words, since they do not depend on the value;
but every value keeps at least one token, and a field's only value keeps all.

Requests often repeat a form, so the last encoded ones are cached, for all models and threads of the process together.
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

# Forms may come from strangers, so the cache is bounded: in the worst case it takes about 0.5 MB per form.
FORM_CACHE_SIZE = 64
MAX_CACHED_CHARACTERS = 1 << 13  # of the words and values of a form; longer forms are not cached


@dataclass(frozen=True, slots=True)
class EncodedField:
    """Holds a field and its values as token ids.

    values: each value's token ids, in the field's order, without the first and last ids that all values share.
    """

    field: Field
    values: tuple[Ids, ...]

    @property
    def max_length(self) -> int:
        """Returns the token count of the longest value."""
        return max(map(len, self.values))

    @property
    def mask_count(self) -> int:
        """Returns how many masks the field has while it is undecided.

        They are as many as most of its values have tokens; if two token counts are equally frequent, the smaller one.
        """
        frequencies = Counter(map(len, self.values))
        return min(frequencies, key=lambda length: (-frequencies[length], length))

    def list_nodes(self, level: int) -> list[tuple[int, Ids, list[int]]]:
        """Returns the inner nodes at `level` (from 0) of tries over the values, one trie per value length.

        Each node holds its trie's value length, a prefix of `level` tokens, and the indices of the values that begin
        with this prefix.
        """
        nodes: dict[tuple[int, Ids], list[int]] = {}
        for index, ids in enumerate(self.values):
            if len(ids) > level:
                nodes.setdefault((len(ids), ids[:level]), []).append(index)
        return [(length, prefix, indices) for (length, prefix), indices in nodes.items()]


@dataclass(frozen=True, slots=True)
class FreeTextPart:
    """Holds a free text. closing_character: the first character of the words after it, which ends it; "" for none."""

    free_text: FreeText
    closing_character: str


EncodedPart: TypeAlias = Ids | EncodedField | FreeTextPart  # Ids: words


def encode_once(form: Form, tokenizer: Tokenizer, contract: Contract) -> Sequence[EncodedPart]:
    """Returns what `encode_form` does, without encoding an equal form for the same tokenizer and contract again.

    Raises the same errors; a form with an error is not cached.
    """
    if form.character_count > MAX_CACHED_CHARACTERS:
        return encode_form(form, tokenizer.encode, contract)
    try:
        hash((form, contract))
    except TypeError:  # lists instead of tuples, in a form that was built by hand
        return encode_form(form, tokenizer.encode, contract)
    return _encode_cached(form, ref(tokenizer), contract)


@lru_cache(FORM_CACHE_SIZE)
def _encode_cached(form: Form, tokenizer_ref: ref[Tokenizer], contract: Contract) -> Sequence[EncodedPart]:
    """Encodes a form. The reference is weak, so that no tokenizer outlives its models; a dead one equals no other."""
    tokenizer = tokenizer_ref()
    assert tokenizer is not None  # the caller holds it
    return tuple(encode_form(form, tokenizer.encode, contract))


def encode_form(form: Form, encode: Encode, contract: Contract) -> list[EncodedPart]:
    """Returns the encoded parts of a form in order; what all values of a field share becomes words around the field.

    Raises UserError for a form without fields, a field without values, a value without tokens, and two values with the
    same tokens.
    """
    if not any(isinstance(part, Field | FreeText) for part in form.parts):
        raise UserError("the form has no field; expected at least one, with the values that it may have")
    encoded_parts: list[EncodedPart] = []
    for index, part in enumerate(form.parts):
        if isinstance(part, str):
            encoded_parts.append(_encode_text(part, encode, contract))
        elif isinstance(part, FreeText):
            encoded_parts.append(_make_free_text_part(part, form.parts[index + 1 :]))
        else:
            encoded_parts += _encode_field(part, encode, contract)
    return [part for part in encoded_parts if part != ()]


def count_max_tokens(parts: Sequence[EncodedPart]) -> int:
    """Returns the maximum number of tokens that the form may have."""
    return sum(_count_max_tokens_of_part(part) for part in parts)


def _count_max_tokens_of_part(part: EncodedPart) -> int:
    if isinstance(part, EncodedField):
        return part.max_length
    return part.free_text.max_tokens if isinstance(part, FreeTextPart) else len(part)


def _make_free_text_part(free_text: FreeText, next_parts: Sequence[str | Field | FreeText]) -> FreeTextPart:
    if free_text.max_tokens < 1:
        raise UserError(f"{describe_part(free_text)} has max_tokens {free_text.max_tokens}; expected at least 1")
    next_part = next((part for part in next_parts if part != ""), "")
    if not isinstance(next_part, str):
        raise UserError(f"nothing ends {describe_part(free_text)}; expected words between it and the next field")
    return FreeTextPart(free_text, next_part[:1])


def _encode_field(field: Field, encode: Encode, contract: Contract) -> list[EncodedPart]:
    """Returns the field with the words that its values begin and end with, if any, before and after it."""
    if not field.values:
        raise UserError(f"{describe_part(field)} has no values; expected at least one")
    values = [_encode_text(value, encode, contract) for value in field.values]
    _check_values(field, values)
    if len(values) == 1:
        return [EncodedField(field, (values[0],))]
    most = min(map(len, values)) - 1  # so that the shortest value keeps a token
    prefix_length = next((i for i in range(most) if len({ids[i] for ids in values}) > 1), most)
    most -= prefix_length
    suffix_length = next((i for i in range(most) if len({ids[-1 - i] for ids in values}) > 1), most)
    encoded_field = EncodedField(field, tuple(ids[prefix_length : len(ids) - suffix_length] for ids in values))
    _check_candidates(encoded_field, contract.candidates)
    return [values[0][:prefix_length], encoded_field, values[0][len(values[0]) - suffix_length :]]


def _check_values(field: Field, values: Sequence[Ids]) -> None:
    """Raises UserError for a value without tokens, and for two values with the same tokens."""
    texts: dict[Ids, str] = {}
    for text, ids in zip(field.values, values, strict=True):
        if not ids:
            raise UserError(f"the value {text!r} of {describe_part(field)} has no tokens; expected a text")
        if ids in texts:
            both = f"{texts[ids]!r} and {text!r}"
            raise UserError(
                f"the values {both} of {describe_part(field)} have the same tokens; expected different ones"
            )
        texts[ids] = text


def _check_candidates(encoded_field: EncodedField, limit: int) -> None:
    """Raises UserError if a field needs more candidates at one position than the bundle's graph was exported for."""
    if (count := count_candidates(encoded_field.values)) > limit:
        raise UserError(
            f"the values of {describe_part(encoded_field.field)} continue the same beginning with {count} different "
            f"tokens, but this bundle takes {limit} candidates per position; export it with --candidates {count}"
        )


def count_candidates(values: Sequence[Ids]) -> int:
    """Returns the maximum number of different tokens that can follow one beginning, among values of one length.

    It goes once over all tokens: a stranger's schema may have 1,024 values, or values of 2,000 tokens.
    """
    by_length = dict[int, list[Ids]]()
    for ids in values:
        by_length.setdefault(len(ids), []).append(ids)
    groups, level, max_count = [*by_length.values()], 0, 0  # the values of a group share their first `level` tokens
    while groups:
        next_groups = list[list[Ids]]()
        for group in groups:
            by_token = dict[int, list[Ids]]()
            for ids in group:
                by_token.setdefault(ids[level], []).append(ids)
            max_count = max(max_count, len(by_token))
            next_groups += [each for each in by_token.values() if len(each) > 1]
        groups, level = next_groups, level + 1
    return max_count


def _encode_text(text: str, encode: Encode, contract: Contract) -> Ids:
    ids = tuple(encode(text).tolist())
    if contract.mask_id in ids:
        raise UserError(f"the form's text {text[:40]!r} holds the mask token; leave it out")
    return ids


def describe_part(part: Field | FreeText) -> str:
    """Returns a part's kind and path for a message, such as `the field items.0.name`; without a path only its kind."""
    kind = "free text" if isinstance(part, FreeText) else "field"
    path = ".".join(map(str, part.path))
    return f"the {kind} {path}" if path else f"the {kind}"
