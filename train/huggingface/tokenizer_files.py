"""Reads tokenizer, special tokens and chat template of a Hugging Face directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import strict_json
from runtime.bundle.manifest import TEMPLATE
from runtime.errors import UserError
from runtime.text.chat_template import RESERVED, add_defaults, reads

from . import token_merging as tokens

TEMPLATES = "additional_chat_templates"
CONSTANTS = {"true", "false", "none", "True", "False", "None"}  # Jinja's constants, which a variable cannot replace
# Files of a slow tokenizer, one that has no tokenizer.json and is read by code of its own.
SLOW = ("vocab.json", "merges.txt", "tokenizer.model", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Text:
    """A directory's tokenizer and chat template.

    tokenizer: the text of a tokenizer.json with the tokens of all files. special: the texts of special tokens by their
    names, such as eos_token. ids: token ids by the tokens' texts. chat_template: Jinja text, None if there is none.
    """

    tokenizer: str
    special: dict[str, str]
    ids: dict[str, int]
    chat_template: str | None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if the file is missing, cannot be read or holds something else."""
    try:
        values = strict_json.read(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a whole Hugging Face directory, download it again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is {type(values).__name__}; expected a JSON object")
    return values


def read_text(folder: Path, vocab: int) -> Text:
    """Reads a directory's tokenizer and chat template. vocab: the number of ids that its model has.

    Raises UserError for a slow tokenizer, a damaged one, or one whose files disagree.
    """
    if not (folder / tokens.TOKENIZER).is_file():
        slow = [name for name in SLOW if (folder / name).is_file()]
        what = f"only a slow tokenizer ({', '.join(slow)})" if slow else "no tokenizer"
        raise UserError(
            f"{folder} has {what}; expected tokenizer.json: load the directory as a fast tokenizer in transformers "
            "and call its save_pretrained on the directory"
        )
    names = (tokens.CONFIG, tokens.ADDED, tokens.MAP)
    files = {name: read_json(folder / name) for name in names if (folder / name).is_file()}
    merged = tokens.merge_tokens(folder, files)
    template = _read_template(folder, files.get(tokens.CONFIG, {}), merged.special)
    for number, token in merged.added.items():
        # A special token can only come from the template: in a user's text it is not recognized.
        if number >= vocab and (not token.special or token.content in (template or "")):
            raise UserError(f"{folder} has the token {token.content!r} with id {number}; its model has {vocab} ids")
    return Text(merged.source, merged.special, merged.ids, template)


def _read_template(folder: Path, settings: dict[str, Any], special: dict[str, str]) -> str | None:
    found = _find_template(folder, settings)
    if found is None:
        return None
    if not isinstance(found, str):
        raise UserError(f"{folder} has a chat template that is {type(found).__name__}; expected text")
    try:
        size = len(found.encode())
    except UnicodeEncodeError as error:
        raise UserError(
            f"{folder} has a chat template with half a surrogate pair at character {error.start + 1}; expected Unicode"
        ) from None
    if size > TEMPLATE // 2:  # with room for the special tokens
        raise UserError(f"{folder} has a chat template of more than {TEMPLATE // 2} bytes; expected a template")
    if wrong := [name for name in RESERVED if name in special]:
        raise UserError(f"{folder} names a special token {wrong[0]}, a variable that every template gets; rename it")
    # Special tokens that transformers passes to a template become its defaults: a bundle has no other place for them.
    names = [name for name in special if name.isidentifier() and name not in CONSTANTS and reads(found, name)]
    return add_defaults(found, {name: special[name] for name in names})


def _find_template(folder: Path, settings: dict[str, Any]) -> Any:
    """Returns the default template: the one in its own file, else that in tokenizer_config.json."""
    file, found = folder / "chat_template.jinja", settings.get("chat_template")
    others = {each.name for each in (folder / TEMPLATES).glob("*.jinja")}
    if others and ("default.jinja" in others or not file.is_file()):
        raise UserError(f"{folder} has {TEMPLATES}; expected the default one in {file.name}, move it there")
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except ValueError as error:
            raise UserError(f"{file} is not UTF-8 text ({error}); download it again") from None
    if isinstance(found, list):  # several by name
        found = {str(each.get("name")): each.get("template") for each in found if isinstance(each, dict)}
    if not isinstance(found, dict):
        return found
    if "default" not in found:
        raise UserError(f"{folder} has chat templates, none of them named default; name one of them so")
    return found["default"]
