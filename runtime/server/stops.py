"""Stop strings over text that comes in pieces: nothing is given out that may turn out to begin one."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Feeds text through; `hit` once one of the strings is complete. The text is what stands before the first such."""

    __slots__ = ("_held", "_strings", "hit")

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings, self._held = tuple(strings), ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is settled by this piece; nothing more after a hit."""
        if self.hit:
            return ""
        text = self._held + text
        found = [(at + len(string), at) for string in self._strings if (at := text.find(string)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return text[: min(found)[1]]
        kept = max((self._begun(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back and begins no stop string after all."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _begun(text: str, string: str) -> int:
        """How many of the text's last characters are the string's first."""
        return next((n for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n])), 0)
