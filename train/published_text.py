"""Tokenizer, special tokens and chat template of a Hugging Face directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import json_file
from runtime.chat_template import reads, with_defaults
from runtime.errors import UserError
from runtime.manifest import TEMPLATE
from runtime.text import read_engine

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SLOW = ("vocab.json", "merges.txt", "tokenizer.model", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Text:
    """tokenizer: JSON text; special: the strings of named special tokens; ids: of every token, added ones included."""

    tokenizer: str
    special: dict[str, str]
    ids: dict[str, int]
    chat_template: str | None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where there is none."""
    try:
        values = json_file.read(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a whole Hugging Face directory, download it again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is {type(values).__name__}; expected a JSON object")
    return values


def read_text(folder: Path) -> Text:
    """What a directory has of text. Raises UserError for a tokenizer that only code can read, or a damaged one."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        slow = [name for name in SLOW if (folder / name).is_file()]
        what = f"only a slow tokenizer ({', '.join(slow)})" if slow else "no tokenizer"
        raise UserError(
            f"{folder} has {what}; expected tokenizer.json: load it once as a fast tokenizer in transformers and "
            "save_pretrained it there"
        )
    ids = read_engine(file, f"{file} is no tokenizer", "download it again").get_vocab(with_added_tokens=True)
    source = file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    settings = read_json(config) if config.is_file() else {}
    special = {name: text for name in SPECIAL if (text := _content(settings.get(name))) is not None}
    return Text(source, special, ids, _template(folder, settings, special))


def _content(token: Any) -> str | None:
    """A special token is written as a string or as an object with its content."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _template(folder: Path, settings: dict[str, Any], special: dict[str, str]) -> str | None:
    file, found = folder / "chat_template.jinja", settings.get("chat_template")
    if file.is_file():
        try:
            found = file.read_text(encoding="utf-8")
        except ValueError as error:
            raise UserError(f"{file} is no UTF-8 text ({error}); download it again") from None
    if isinstance(found, list):  # several by name
        named = [each for each in found if isinstance(each, dict) and each.get("name") == "default"]
        found = named[0].get("template") if named else None
    if found is None:
        return None
    if not isinstance(found, str):
        raise UserError(f"{folder} has a chat template that is {type(found).__name__}; expected text")
    if len(found.encode(errors="replace")) > TEMPLATE // 2:  # with room for the special tokens
        raise UserError(f"{folder} has a chat template of more than {TEMPLATE // 2} bytes; expected a template")
    # What transformers hands to a template travels inside it: a bundle carries no other text.
    return with_defaults(found, {name: token for name, token in special.items() if reads(found, name)})
