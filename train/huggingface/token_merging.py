"""Merges the tokens that a directory's files name into its tokenizer, with the ids and flags that transformers 5 gives.

`tokenizer.json` may lack some: `added_tokens_decoder` in tokenizer_config.json adds tokens and changes flags. Without
that key, added_tokens.json adds them, and special_tokens_map.json overrides the names in tokenizer_config.json. A
special token that has no id in any file gets the next free one. Files that disagree on an id raise UserError.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Engine

from runtime.errors import UserError
from runtime.text.tokenizer import read_engine, translate_errors

# How Qwen2's tokenizer splits text: each digit is apart, a space is with the word after it, newlines are apart.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
ADDED, MAP = "added_tokens.json", "special_tokens_map.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DECODER, EXTRA, OLD_EXTRA = "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"
OWN_NAMES = "model_specific_special_tokens"
FIELDS = ("content", "lstrip", "rstrip", "normalized", "single_word", "special")
# Tokenizer classes that use tokenizer.json as it is. Qwen2's parts are known; other classes may build parts in code.
PLAIN = (None, "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")  # plain too if tokenizer.json is byte-level
QWEN = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
QWEN_LACKS = (
    "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "dropout", "continuing_subword_prefix",
    "end_of_word_suffix",
)  # fmt: skip
QWEN_DEFAULTS = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
TokenEntry = AddedToken | str  # a str is a token whose flags are set when it is added


@dataclass(frozen=True, slots=True)
class MergedTokenizer:
    """A tokenizer with the tokens of all files.

    source: the tokenizer as JSON text. special: the texts of special tokens, by name. ids: by text. added: the tokens
    that are not in the tokenizer model's vocabulary, by id.
    """

    source: str
    special: dict[str, str]
    ids: dict[str, int]
    added: dict[int, AddedToken]


def merge_tokens(folder: Path, files: Mapping[str, dict[str, Any]]) -> MergedTokenizer:
    """Returns the tokenizer of a directory as transformers loads it.

    files: the objects in CONFIG, ADDED and MAP, if the directory has them. Raises UserError if they disagree, or if the
    tokenizer's class may build another tokenizer from them.
    """
    file, settings = folder / TOKENIZER, files.get(CONFIG, {})
    engine = read_engine(file, f"{file} is not a tokenizer", "download it again")
    source = file.read_text(encoding="utf-8-sig")
    stored = json.loads(source)
    own = {token["id"]: _parse_flagged(file, "added_tokens", token) for token in stored.get("added_tokens", ())}
    listed = _parse_decoder(folder / CONFIG, settings)
    _check_settings(folder / CONFIG, settings)
    _check_class(folder / CONFIG, settings, stored, own.keys() - listed.keys() if DECODER in settings else set())
    named, extras, exact = _find_special(folder, settings, {} if DECODER in settings else files.get(MAP, {}))
    special = {str(token) for token in (*named.values(), *extras)}
    added = _parse_added(folder / ADDED, files.get(ADDED, {}), special, exact)
    ids, before = engine.get_vocab(with_added_tokens=True), repr(engine.get_added_tokens_decoder())
    with translate_errors(f"{folder} has tokens that cannot be added", "download it again"):
        engine.add_tokens(_list_tokens(engine, listed if DECODER in settings else {**added, **own}, named, extras))
        if settings.get("tokenizer_class") in QWEN:  # Qwen2's constructor adds them again, without their flags
            engine.add_tokens([AddedToken(str(token), special=True) for token in (*named.values(), *extras)])
    for name, tokens in ((CONFIG, listed), (ADDED, added), (TOKENIZER, own)):
        _check_ids(folder / name, engine, tokens)
        ids |= {token.content: number for number, token in tokens.items()}
    found = engine.get_added_tokens_decoder()
    texts = {name: str(token) for name, token in named.items()}
    return MergedTokenizer(source if repr(found) == before else engine.to_str(), texts, ids, found)


def _merge_names(
    folder: Path, settings: Mapping[str, Any], mapped: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns all values by key, and the special tokens whose names are the model's own, by name.

    mapped: special_tokens_map.json's content, empty if it is not used. Keys override each other as in transformers.
    """
    # An object under a name of the model's own is a token in `settings` only if it has a __type, in `mapped` always.
    settings = {k: v for k, v in settings.items() if not (_is_own_name(k) and isinstance(v, dict) and not _is_typed(v))}
    values = {**(QWEN_DEFAULTS if settings.get("tokenizer_class") in QWEN else {}), **settings}
    if not values.get(EXTRA) and OLD_EXTRA in values:
        values[EXTRA] = values.pop(OLD_EXTRA)
    own = {name: values.pop(name) for name in [*values] if _is_own_name(name) and isinstance(values[name], str)}
    own |= _pop_names(values)
    own = own or _expect(folder, OWN_NAMES, values.get(OWN_NAMES) or {}, dict)
    for name, value in mapped.items():
        if name == EXTRA and isinstance(value, list):
            before = values.get(EXTRA) or []
            value = [*before, *(token for token in value if token not in before)]
        elif name != EXTRA and isinstance(value, dict):
            value = {**value, "special": True}
        values[name] = value
    own = {**own, **_pop_names(values)}
    flagged = {name: value for name, value in values.items() if _is_own_name(name) and isinstance(value, str | dict)}
    return values, {**flagged, **own}


def _find_special(
    folder: Path, settings: Mapping[str, Any], mapped: Mapping[str, Any]
) -> tuple[dict[str, TokenEntry], list[TokenEntry], set[str]]:
    """Returns the named special tokens, the others, and the texts of those that are matched before normalization."""
    values, own = _merge_names(folder, settings, mapped)
    standard = {name: value for name in SPECIAL if (value := own.get(name, values.get(name))) is not None}
    ordered = {**standard, **{name: value for name, value in own.items() if name not in SPECIAL}}
    named = {name: _parse_token(folder, name, value) for name, value in ordered.items()}
    older = values.get(OLD_EXTRA) if EXTRA not in values else None
    first, rest = (_expect(folder, EXTRA, value or [], list) for value in (values.get(EXTRA), older))
    exact = {str(_parse_token(folder, EXTRA, value)) for value in (*standard.values(), *first) if not _is_typed(value)}
    return named, [_parse_token(folder, EXTRA, value) for value in (*first, *rest)], exact


def _is_typed(value: Any) -> bool:
    return isinstance(value, dict) and "__type" in value


def _is_own_name(name: str) -> bool:
    return name.endswith("_token") and name not in SPECIAL


def _pop_names(values: dict[str, Any]) -> dict[str, Any]:
    """Removes the extra tokens that have names, and returns them."""
    return values.pop(EXTRA) if isinstance(values.get(EXTRA), dict) else {}


def _list_tokens(
    engine: Engine, listed: Mapping[int, AddedToken], named: Mapping[str, TokenEntry], extras: list[TokenEntry]
) -> list[AddedToken]:
    """Returns the tokens that transformers adds, in its order: `listed` by id, then special ones not yet there."""
    tokens: list[TokenEntry] = [token for _, token in sorted(listed.items())]
    before = engine.get_added_tokens_decoder().values()
    known = {token.content for token in (*before, *listed.values())}
    flagged = {token.content: token for token in listed.values()}
    wanted = [flagged.get(str(token), token) if name in SPECIAL else token for name, token in named.items()]
    for token in (*wanted, *extras):
        if str(token) not in known and token not in tokens:
            tokens.append(token)
    # In the library, a token that was once special stays so until it is written to JSON.
    special = {str(token) for token in (*named.values(), *(each for each in before if each.special))}
    made = [AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens]
    for token in made:
        token.special = token.special or token.content in special
    return made


def _check_ids(path: Path, engine: Engine, tokens: Mapping[int, AddedToken]) -> None:
    """Raises UserError if a file gives a token another id than the merged tokenizer does."""
    for number, token in tokens.items():
        if (got := engine.token_to_id(token.content)) != number:
            other = engine.id_to_token(number) if 0 <= number < 1 << 32 else None  # the library has no other ids
            there = f"{number} is {other!r}" if other is not None else f"no token has the id before {number}"
            raise UserError(
                f"{path} has {token.content!r} as id {number}, by all of the directory's files it is {got} ({there}); "
                "make them agree: load the tokenizer in transformers and call its save_pretrained on the directory"
            )


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError for settings with which transformers reads another file or splits a template's tokens."""
    if (others := settings.get("fast_tokenizer_files", [TOKENIZER])) != [TOKENIZER]:
        raise UserError(f"{path} has fast_tokenizer_files {reprlib.repr(others)}; only {TOKENIZER} is read, remove it")
    if settings.get("split_special_tokens"):
        raise UserError(f"{path} has split_special_tokens; a chat template's own tokens are not split, remove it")


def _check_class(path: Path, settings: Mapping[str, Any], stored: Mapping[str, Any], gone: set[int]) -> None:
    """Raises UserError for a class that may build another tokenizer than tokenizer.json describes.

    gone: ids of tokens in tokenizer.json that added_tokens_decoder lacks.
    """
    kind = settings.get("tokenizer_class")
    if kind in QWEN and not _is_qwen(stored, bool(settings.get("add_prefix_space"))):
        raise UserError(
            f"{path} has tokenizer_class {kind}, but {TOKENIZER} has another model, normalizer or pre_tokenizer than "
            "that class; write PreTrainedTokenizerFast there if it is right"
        )
    if kind in QWEN and gone:
        raise UserError(f"{path} lacks id {min(gone)} in {DECODER}, which {TOKENIZER} has; add it there")
    byte_level = "'ByteLevel'" in repr([stored.get(part) for part in ("pre_tokenizer", "decoder")])
    plain = kind in PLAIN or "auto_map" in settings or (kind in LLAMA and byte_level)
    if kind not in QWEN and not plain:
        raise UserError(
            f"{path} has tokenizer_class {reprlib.repr(kind)}, whose code may change what {TOKENIZER} defines; "
            "expected PreTrainedTokenizerFast, write that there if it is right alone"
        )


def _is_qwen(stored: Mapping[str, Any], prefix: bool) -> bool:
    """Returns whether a tokenizer.json has the parts that Qwen2Tokenizer makes. prefix: its add_prefix_space."""
    match stored:
        case {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "use_regex": False, "add_prefix_space": added},
                ],
            },
            "model": {"type": "BPE", **model},
        }:
            return pattern == QWEN2_SPLIT and added == prefix and not any(model.get(name) for name in QWEN_LACKS)
    return False


def _parse_decoder(path: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Returns the tokens in added_tokens_decoder by id."""
    found = _expect(path, DECODER, settings.get(DECODER, {}), dict)
    if wrong := [number for number in found if not number.isdecimal() or len(number) > 9]:
        raise UserError(f"{path} has {reprlib.repr(wrong[0])} in {DECODER}; expected ids with their tokens")
    return {int(number): _parse_flagged(path, DECODER, token) for number, token in found.items()}


def _parse_added(path: Path, values: Mapping[str, Any], special: set[str], exact: set[str]) -> dict[int, AddedToken]:
    """Returns the tokens in added_tokens.json by id. exact: texts of tokens that are matched before normalization."""
    found = dict[int, AddedToken]()
    for text, number in values.items():
        if not isinstance(number, int) or isinstance(number, bool) or number in found:
            raise UserError(f"{path} has {reprlib.repr(number)} as the id of {text!r}; expected an id of its own")
        found[number] = _parse_flagged(
            path, text, {"content": text, "normalized": text not in exact, "special": text in special}
        )
    return found


def _parse_token(path: Path, name: str, value: Any) -> TokenEntry:
    """Returns a token that is written as its text, or as an object with its flags."""
    if isinstance(value, str):
        return str(_parse_flagged(path, name, {"content": value}))
    return _parse_flagged(path, name, value)


def _parse_flagged(path: Path, name: str, value: Any) -> AddedToken:
    try:
        return AddedToken(**{field: value[field] for field in FIELDS if field == "content" or field in value})
    except (TypeError, KeyError, ValueError):  # ValueError: the text has a surrogate
        raise UserError(
            f"{path} has {reprlib.repr(value)} as {name}; expected a token's text, or its content and flags"
        ) from None


def _expect(path: Path, name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{path} has {reprlib.repr(value)} as {name}; expected a {kind.__name__}")
    return value
