"""The errors users meet: a mistake of theirs, numbers that make no sense, a device that failed."""

from __future__ import annotations


class UserError(ValueError):
    """Told in one line: what was got, what was expected, what to do. Commands print it and exit 2."""


class NumericalError(ArithmeticError):
    """The model gave scores that are not numbers; going on would return arbitrary text."""


class DeviceError(RuntimeError):
    """A call of the GPU's driver or of TensorRT failed. Told in one line that names the call; commands exit 1."""
