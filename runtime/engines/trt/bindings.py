"""Calls of TensorRT's Python bindings, which return False, return None or raise, by version, when C++ refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import DeviceError, UserError

# RuntimeError, ValueError, IndexError: thrown by TensorRT's own bindings; TypeError: pybind11's, of a constructor that
# came to nothing; MemoryError: its std::bad_alloc.
RAISED = (RuntimeError, ValueError, IndexError, TypeError, MemoryError)


def call(name: str, method: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a call of TensorRT returns. Raises DeviceError, naming the call, if the bindings raise."""
    try:
        return method(*arguments)
    except (DeviceError, UserError):
        raise
    except RAISED as error:
        raise DeviceError(f"{name} failed: {one_line(str(error)) or type(error).__name__}") from None


def one_line(text: str) -> str:
    """Returns the beginning of a text that a library wrote, in one line."""
    return " ".join(text.split())[:300]
