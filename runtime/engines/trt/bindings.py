"""Calls TensorRT's Python bindings; if C++ refuses, they return False or None, or raise, depending on the version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import DeviceError, UserError

# RuntimeError, ValueError and IndexError come from TensorRT's bindings; TypeError from pybind11, if a constructor
# returns nothing; MemoryError from pybind11, for std::bad_alloc.
BINDING_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, MemoryError)


def call(name: str, method: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a call of TensorRT returns. Raises DeviceError, naming the call, if the bindings raise."""
    try:
        return method(*arguments)
    except (DeviceError, UserError):
        raise
    except BINDING_ERRORS as error:
        raise DeviceError(f"{name} failed: {shorten_to_line(str(error)) or type(error).__name__}") from None


def shorten_to_line(text: str) -> str:
    """Returns the beginning of a library's text as one line."""
    return " ".join(text.split())[:300]
