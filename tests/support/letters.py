"""A tokenizer whose tokens are letters: a text has as many as characters."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LETTERS = "abcdefghijklmnopqrstu"  # one token each, from 3 on: all but padding, end and mask of `tiny`


class Letters:
    """Encodes and decodes as `runtime.text.tokenizer.Tokenizer` does."""

    def encode(self, text: str) -> NDArray[np.int64]:
        return np.array([LETTERS.index(letter) + 3 for letter in text], np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(LETTERS[token - 3] for token in ids if token >= 3)
