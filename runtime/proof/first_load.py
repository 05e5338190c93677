"""The first load of an engine on a machine proves it with a part of its recorded reference, and remembers that.

What an engine computes depends on the machine: on the instructions of its processor, its GPU and driver, the version of
the library that runs it. So what is remembered names these and not the machine.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from ..backend import Backend, Inspectable
from ..bundle import trust_records
from ..bundle.manifest import Bundle, Engine
from ..bundle.reference import read_reference
from ..engines.registry import OpenOptions
from ..errors import DeviceError, NumericalError, UserError
from ..perf.conditions import installed_version
from .judge import Check, prove

NVIDIA = Path("/proc/driver/nvidia")  # version: the driver's; gpus/*/information: their models


def is_proved(engine: Engine, device: str) -> bool:
    """Returns whether there is nothing to prove an engine by, or it was proved on a machine like this one."""
    return engine.reference is None or trust_records.was_proved(key_of(engine, device))


def remember(engine: Engine, device: str) -> None:
    """Remembers that an engine was proved here."""
    if engine.reference is not None:
        trust_records.remember_proved(key_of(engine, device))


def key_of(engine: Engine, device: str) -> str:
    """Returns a hash of what an engine's numbers depend on: its files, its reference, the machine, the library."""
    packages = {name: installed_version(name) for name in ("numpy", *engine.kind.packages)}
    files = [engine.files[engine.model], *sorted(engine.hashed_files.values())]
    judged = engine.reference and [engine.reference.bounds, engine.reference.first_load_bounds]
    parts = [files, judged, device, platform.machine(), cpu_features(), packages]
    if device != "cpu" or engine.kind.native_code:
        parts.append(gpu_description())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def cpu_features() -> list[str]:
    """Returns the processor's instruction sets as numpy reads them from CPUID; its name may be a virtual machine's."""
    try:
        core = import_module("numpy._core._multiarray_umath")
    except ImportError:
        core = import_module("numpy.core._multiarray_umath")  # of numpy 1
    return sorted(name for name, there in getattr(core, "__cpu_features__", {}).items() if there)


def gpu_description(root: Path = NVIDIA) -> list[str]:
    """Returns the driver's version and the GPUs' models as Linux reports them, as far as it does."""
    found = []
    for file in sorted([root / "version", *root.glob("gpus/*/information")]):
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        found += [" ".join(line.split()) for line in lines if line.startswith(("NVRM", "Model:"))]
    return found


def first_checks(bundle: Bundle, engine: Engine, backend: Backend) -> list[Check]:
    """Replays the part of an engine's reference that a first load has time for. Raises UserError if it is damaged."""
    recorded = engine.reference
    if recorded is None:
        return []
    forwards = read_reference(bundle.path, recorded, bundle.contract).forwards[: recorded.first_load]
    return prove(cast(Inspectable, backend), forwards, recorded.first_load_bounds)


def refusal(bundle: Bundle, engine: Engine, backend: Backend, options: OpenOptions) -> str | None:
    """Returns the line that an engine is refused with, None if it computes what PyTorch did.

    The line names what differs, and which engine of the bundle to use instead or which precision to export.
    """
    try:
        wrong = [check for check in first_checks(bundle, engine, backend) if not check.ok]
    except (DeviceError, NumericalError) as error:
        wrong = [Check("forward pass", False, str(error))]
    if not wrong:
        return None
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"engine {engine.name} of {bundle.path} does not compute on this machine what PyTorch computed when it was "
        f"exported ({wrong[0].name}: {wrong[0].detail}{more}); {advice(bundle, engine, options)}; blockstep verify "
        "prints all figures, and --verify never loads it as it is"
    )


def advice(bundle: Bundle, engine: Engine, options: OpenOptions) -> str:
    """Returns what to do about an engine that is refused."""
    others = [each for each in bundle.engines if each.kind is engine.kind and each.name != engine.name]
    passing = None if engine.kind.native_code else passing_engine(bundle, others, options)
    if passing:
        return f"use --engine {passing}, which passes here"
    exact = "fp32" if options.device == "cpu" else "fp16"
    if engine.precision == exact:
        return f"install another version of {engine.kind.packages[0]}, or copy the bundle again"
    return f"export it again with --precision {exact}: blockstep export onnx --ckpt CHECKPOINT --out {bundle.path}"


def passing_engine(bundle: Bundle, engines: Sequence[Engine], options: OpenOptions) -> str | None:
    """Returns the name of the first engine with a reference that computes here what PyTorch did, None if none does."""
    for engine in engines:
        try:
            if engine.reference is None:
                continue
            _, backend = engine.kind.open(bundle, [engine], options)
            if all(check.ok for check in first_checks(bundle, engine, backend)):
                return engine.name
        except (UserError, DeviceError, NumericalError, MemoryError):
            continue
    return None
