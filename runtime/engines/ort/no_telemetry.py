"""ONNX Runtime with its telemetry off: the only module that imports the package.

Since 1.29 it stores a device id and an event queue in the user's cache directory at its import, and sends the events to
Microsoft from its first session on. One variable turns that off, and only if it is set before the import.
"""

from __future__ import annotations

import os
import sys
import warnings

VARIABLE = "ORT_DISABLE_TELEMETRY"

unset = not os.environ.get(VARIABLE)  # empty too: a deployment's file passes on so what nobody set
if unset and "onnxruntime" in sys.modules:
    warnings.warn(
        f"onnxruntime was imported before blockstep, so its telemetry may be on; set {VARIABLE}=1 (or 0, to keep it) "
        "in the environment of this program",
        stacklevel=2,
    )
if unset:
    os.environ[VARIABLE] = "1"

import onnxruntime as ort  # noqa: E402

__all__ = ["ort"]
