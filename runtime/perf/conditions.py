"""Describes what measured figures depend on: the processor, the libraries, the model."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..engines.ort.threads import count_physical_cores
from ..engines.registry import KINDS
from ..model import Model

PACKAGES = ("numpy", *(package for kind in KINDS.values() for package in kind.packages))


def describe_conditions(
    model: Model, prompts: str, threshold: float | None, repeat: int, warmup: int
) -> dict[str, Any]:
    """Returns what the figures depend on. prompts: a description of them; threshold: None for the gate's own."""
    contract = model.contract
    return {
        "processor": read_processor_name(),
        "cores": count_physical_cores(),
        "logical_cores": os.cpu_count(),
        "threads": getattr(model.backend, "threads", None),  # CPU threads; a TensorRT engine has none
        "engine": model.engine,
        "backend": model.backend.name,
        "precision": model.precision,
        "block": contract.block,
        "capacity": contract.capacity,
        "threshold": model.gate.threshold if threshold is None else threshold,
        "prompt": prompts,
        "repeat": repeat,
        "warmup": warmup,
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := find_version(name))},
        },
    }


def read_processor_name() -> str:
    """Returns the processor's name as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def find_version(package: str) -> str | None:
    """Returns a package's version, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
