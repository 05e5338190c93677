"""Prompts as token ids, in the checkpoint's chat template where it has one, as the runtime gives them to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer as Engine

from runtime.text import Tokenizer

from .checkpoint import Checkpoint

Encode = Callable[[Sequence[str]], list[list[int]]]


def of_checkpoint(saved: Checkpoint, raw: bool) -> Encode:
    """Encodes prompts for this model; raw leaves its chat template out.

    Encoding raises UserError where the template fails or jinja2 is missing.
    """
    if raw or saved.chat_template is None:
        return plain(saved.read_tokenizer())
    return in_chat(Tokenizer(saved.tokenizer, saved.chat_template))


def plain(tokenizer: Engine) -> Encode:
    """Encodes texts as they stand."""
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def in_chat(tokenizer: Tokenizer) -> Encode:
    """Encodes each text as a user's message in the chat template, as it stands where there is none."""
    return lambda texts: [tokenizer.encode_chat(text).tolist() for text in texts]
