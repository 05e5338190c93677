"""Defines the errors that users meet (their mistakes, scores that are not numbers, failed devices) and warnings."""

from __future__ import annotations

import sys

LONGEST = 1500  # maximum of characters in a message
ADVICE = 300  # characters kept at the end of a longer message: the advice
_warned: set[str] = set()


class UserError(ValueError):
    """Reports a mistake in one line: what was got, what was expected, what to do. Commands print it and exit 2.

    The message may quote a stranger's file, so characters that a terminal would obey are escaped, and the middle of a
    long message is left out.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if len(line) > LONGEST:
            line = f"{line[: LONGEST - ADVICE]} [...] {line[-ADVICE:]}"
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


class NumericalError(ArithmeticError):
    """Reports that a model's scores are not numbers; going on would return arbitrary text."""


class DeviceError(RuntimeError):
    """Reports a failed forward pass of ONNX Runtime, or a failed call of CUDA or TensorRT, in one line that names the
    call; commands exit 1."""


def describe_error(error: BaseException, longest: int | None = None) -> str:
    """Returns an exception's message as one line, cut at `longest` characters; without one its class's name."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def warn_once(what: str, text: str) -> None:
    """Prints a warning on stderr, once per process for each `what`."""
    if what not in _warned:
        _warned.add(what)
        print("warning:", text, file=sys.stderr)
