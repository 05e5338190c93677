"""Converts text and conversations to token ids, and ids to text, by a bundle's tokenizer and chat template."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Engine

from ..backend import Ints
from ..errors import UserError, describe_error
from .chat_template import Arguments, Message, render

LARGEST = 100 << 20  # bytes of a tokenizer; the largest published ones have some forty million
BROKEN = "\ufffd"  # what a decoder returns for bytes that are not a whole character

Messages = Sequence[Message]  # `content` of each is text


class Tokenizer:
    """Wraps a `tokenizer.json` with a chat template or none. What a user writes is never read as special tokens."""

    __slots__ = ("__weakref__", "_plain", "_special", "_special_texts", "chat_template")

    def __init__(self, source: Path | str, chat_template: str | None = None) -> None:
        """Loads a tokenizer. source: a file, or its content as str. Raises UserError if it is not a tokenizer."""
        self.chat_template = chat_template
        self._plain = read_engine(source)
        self._plain.encode_special_tokens = True
        # A second tokenizer reads the template's own special tokens as such; switching one is not safe with threads.
        self._special = read_engine(source) if chat_template is not None else None
        added = self._plain.get_added_tokens_decoder().values()
        self._special_texts = tuple(token.content for token in added if token.special)

    def encode(self, text: str) -> Ints:
        """Returns the token ids of a text without a template, int64 [length]. Raises UserError for invalid Unicode."""
        return np.array(self._encode(self._plain, [text])[0], np.int64)

    def encode_chat(self, text: str) -> Ints:
        """Encodes a user's message in the chat template, int64 [length]; if there is none, the text as it is.

        Raises UserError if jinja2 is missing or the template fails.
        """
        return self.encode_messages([{"role": "user", "content": text}])

    def encode_messages(self, messages: Messages, arguments: Arguments | None = None) -> Ints:
        """Encodes a conversation in the chat template, int64 [length]; if there is none, a single user message.

        arguments: of the template, which override its defaults. Raises UserError for any other conversation without a
        template, if jinja2 is missing, if the template fails, or if anything but a message's content holds special
        tokens.
        """
        texts = [message["content"] for message in messages]
        if self.chat_template is None or self._special is None:
            if len(messages) != 1 or messages[0]["role"] != "user":
                raise UserError("this bundle has no chat template to write a conversation in; send one user message")
            return self.encode(texts[0])
        _refuse_special(self._special_texts, messages, arguments)
        whole = "\0".join(texts)
        if not any(content in whole for content in self._special_texts):
            return np.array(self._encode(self._special, [render(self.chat_template, messages, arguments)])[0], np.int64)
        mark, digits = secrets.token_hex(16), len(f"{len(texts):x}")
        # Placeholders replace the contents: only text around them may be special. One pattern finds all in one pass.
        places = {f"{mark}{i:0{digits}x}": text for i, text in enumerate(texts)}
        stand_ins = [{**message, "content": place} for message, place in zip(messages, places, strict=True)]
        around = re.split(f"({mark}[0-9a-f]{{{digits}}})", render(self.chat_template, stand_ins, arguments))
        if not places.keys() <= set(around):
            raise UserError(
                "the prompt holds special tokens and the chat template changes its text, so they cannot be "
                "distinguished from the template's own; leave them out"
            )
        own = self._encode_once(self._special, (part for part in around if part not in places))
        given = self._encode_once(self._plain, texts)
        ids = chain.from_iterable(given[places[part]] if part in places else own[part] for part in around)
        return np.fromiter(ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids; special tokens have none."""
        with translate_errors("the tokenizer fails on token ids"):
            return str(self._plain.decode([int(token) for token in ids], skip_special_tokens=True))

    def stream(self) -> TextStream:
        """Returns a decoder for ids that come in parts."""
        return TextStream(self)

    def _encode_once(self, engine: Engine, texts: Iterable[str]) -> dict[str, list[int]]:
        """Returns token ids by text; a text that occurs several times is encoded once."""
        different = list(dict.fromkeys(texts))
        return dict(zip(different, self._encode(engine, different), strict=True))

    @staticmethod
    def _encode(engine: Engine, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text. Other threads can run only during the library's batch calls."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                place = error.start + 1
                raise UserError(
                    f"the text has half a surrogate pair at character {place}; expected Unicode, give valid UTF-8"
                ) from None
        with translate_errors("the tokenizer fails on this text"):
            return [encoding.ids for encoding in engine.encode_batch_fast(texts, add_special_tokens=False)]


class TextStream:
    """Turns ids into text as they come, and never returns part of a character.

    If the tokenizer's tokens are bytes (byte-level BPE), the pieces together are the text of all ids. A push decodes
    only the ids since the last whole character, and those that led to it, since some decoders treat the start of a text
    differently.
    """

    __slots__ = ("_before", "_given", "_held", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the ids of the last push that ended on a whole character
        self._held: list[int] = []  # the ids after these
        self._given = 0  # characters of the text of both that were returned

    def push(self, ids: Iterable[int]) -> str:
        """Returns the text that these ids complete; "" while a character is unfinished."""
        self._held += [int(token) for token in ids]
        text = self._tokenizer.decode(self._before + self._held)
        settled = text.rstrip(BROKEN)
        piece, self._given = settled[self._given :], max(self._given, len(settled))
        if self._held and settled == text:
            self._before, self._held = self._held, []
            self._given = len(self._tokenizer.decode(self._before))
        return piece

    def finish(self) -> str:
        """Returns the text that was held back, as no more ids come; broken characters are in it."""
        piece = self._tokenizer.decode(self._before + self._held)[self._given :]
        self._before, self._held, self._given = [], [], 0
        return piece


def _refuse_special(special: Iterable[str], messages: Messages, arguments: Arguments | None) -> None:
    """Raises UserError for a special token outside the messages' content, which would be read as the template's."""
    beside = [arguments or {}, *({k: v for k, v in message.items() if k != "content"} for message in messages)]
    try:
        whole = json.dumps(beside, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the messages or template arguments are not JSON values ({error}); expected those") from None
    if found := next((text for text in special if json.dumps(text, ensure_ascii=False)[1:-1] in whole), None):
        raise UserError(f"a role, a field of a message or a template argument holds {found}; leave it out")


def read_engine(source: Path | str, what: str | None = None, advice: str = "export it again") -> Engine:
    """Makes the library's tokenizer from a file, or from its content as str.

    Raises UserError if that is not a tokenizer; `what` and `advice` are parts of its message.
    """
    what = what or f"{'the text' if isinstance(source, str) else source} is not a tokenizer"
    if not isinstance(source, str) and source.is_file() and source.stat().st_size > LARGEST:
        raise UserError(f"{what} (more than {LARGEST >> 20} MB); {advice}")
    with translate_errors(what, advice):
        engine = Engine.from_str(source if isinstance(source, str) else source.read_text(encoding="utf-8-sig"))
        engine.no_truncation()  # truncation would silently drop the end of a prompt
        engine.no_padding()
        return engine


@contextmanager
def translate_errors(what: str, advice: str = "export it again") -> Iterator[None]:
    """Turns any failure of the library tokenizers into a UserError: its errors share no class, and its panics are not
    Exceptions."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what} ({describe_error(error, 300)}); {advice}") from None
