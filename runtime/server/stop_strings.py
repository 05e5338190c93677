"""Finds stop strings in text that arrives in parts, and holds back text that may be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Passes text on up to the first stop string. hit: whether a stop string is complete.

    Each character is compared a bounded number of times on average, whatever the strings (Knuth, Morris, Pratt 1977).
    """

    __slots__ = ("_held", "_prefixes", "hit")

    def __init__(self, strings: Sequence[str]) -> None:
        self._prefixes, self._held = [_Prefix(string) for string in strings], ""
        self.hit = False

    def push(self, text: str) -> str:
        """Takes the next part; returns the text that can now be passed on, nothing after a hit."""
        if self.hit:
            return ""
        seen, self._held = len(self._held), self._held + text
        for end, character in enumerate(text, seen + 1):
            complete = [prefix.length for prefix in self._prefixes if prefix.extend(character)]
            if complete:
                self.hit, text, self._held = True, self._held[: end - max(complete)], ""
                return text
        text = self._held
        kept = max((prefix.length for prefix in self._prefixes), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Returns the text held back: at the text's end it cannot become a stop string."""
        text, self._held = self._held, ""
        return text


class _Prefix:
    """Tracks the length of the longest beginning of a string that the text now ends with."""

    __slots__ = ("_borders", "_string", "length")

    def __init__(self, string: str) -> None:
        self._string, self.length = string, 0
        # For each prefix length, the longest proper prefix that is also a suffix, as far as the text has matched.
        self._borders = [0, 0]

    def extend(self, character: str) -> bool:
        """Takes the next character; returns whether it completes the string. Not to be called again after that."""
        self.length = self._find_next(self.length, character)
        if self.length == len(self._borders):
            self._borders.append(self._find_next(self._borders[-1], character))
        return self.length == len(self._string)

    def _find_next(self, length: int, character: str) -> int:
        while length and self._string[length] != character:
            length = self._borders[length]
        return length + (self._string[length] == character)
