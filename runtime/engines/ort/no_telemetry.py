"""Imports ONNX Runtime with its telemetry off; no other module imports the package.

Since 1.29, importing it stores a device id and an event queue in the user's cache directory, and from the first session
on it sends the events to Microsoft. An environment variable turns that off, but only if set before the import.
"""

from __future__ import annotations

import os
import sys
import warnings

VARIABLE = "ORT_DISABLE_TELEMETRY"

unset = not os.environ.get(VARIABLE)  # empty counts as unset: deployment files pass unset variables on so
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
