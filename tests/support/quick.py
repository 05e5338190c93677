"""A pytest plugin for `make quick`: leaves out each test that imports torch or a folder that needs it.

A test file, or a test, is left out the moment it imports one of HEAVY, whether that is installed or not. So nothing
has to be marked, and no overlooked import makes it slow.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

HEAVY = frozenset(("torch", "train", "export", "transformers", "peft", "onnx_ir", "onnxscript", "safetensors"))


class Barrier:
    """Finds no module: it ends the import of HEAVY ones, and leaves others to the next finder."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name.partition(".")[0] in HEAVY:
            pytest.skip(f"needs {name}", allow_module_level=True)


def pytest_configure() -> None:
    sys.meta_path.insert(0, Barrier())  # type: ignore[arg-type]


def pytest_sessionfinish() -> None:
    assert not HEAVY & sys.modules.keys(), "something imported a heavy module in spite of the barrier"
