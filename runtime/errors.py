"""The two errors users meet: a mistake of theirs, and numbers that make no sense."""

from __future__ import annotations


class UserError(ValueError):
    """Told in one line: what was got, what was expected, what to do. Commands print it and exit 2."""


class NumericalError(ArithmeticError):
    """The model gave scores that are not numbers; going on would return arbitrary text."""
