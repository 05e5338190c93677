"""The errors users meet: a mistake of theirs, numbers that make no sense, an engine that failed; and warnings."""

from __future__ import annotations

import sys

LONGEST = 1500  # characters of a message
ADVICE = 300  # of them at its end, the advice
_warned: set[str] = set()


class UserError(ValueError):
    """Reports a mistake in one line: what was got, what was expected, what to do. Commands print it and exit 2.

    It may quote what a stranger wrote into a file: characters that a terminal would obey are escaped, and of a long
    message the middle is left out.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > LONGEST:
            line = f"{line[: LONGEST - ADVICE]} [...] {line[-ADVICE:]}"
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


class NumericalError(ArithmeticError):
    """Reports scores of a model that are not numbers; going on would return arbitrary text."""


class DeviceError(RuntimeError):
    """Reports a failed forward pass of ONNX Runtime, or a failed call of CUDA or TensorRT, in one line that names the
    call; commands exit 1."""


def warn_once(what: str, text: str) -> None:
    """Warns on stderr, once per process, that something is done without."""
    if what not in _warned:
        _warned.add(what)
        print("warning:", text, file=sys.stderr)
