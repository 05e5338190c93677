"""Proves an engine at its first load on a machine, by a part of its recorded reference, and remembers that it passed.

What an engine computes depends on the processor's instructions, the GPU and its driver, and the version of the library
that runs it. So the record of a proof names these, and not the machine.
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
from ..perf.conditions import find_version
from .judge import Check, prove

NVIDIA = Path("/proc/driver/nvidia")  # version: the driver's; gpus/*/information: their models


def is_proved(engine: Engine, device: str) -> bool:
    """Returns whether an engine was proved on a machine like this one, or has no reference to prove it by."""
    return engine.reference is None or trust_records.was_proved(make_key(engine, device))


def remember(engine: Engine, device: str) -> None:
    """Remembers that an engine was proved here."""
    if engine.reference is not None:
        trust_records.remember_proved(make_key(engine, device))


def make_key(engine: Engine, device: str) -> str:
    """Returns a hash of what an engine's numbers depend on: its files, its reference, the machine, the library."""
    packages = {name: find_version(name) for name in ("numpy", *engine.kind.packages)}
    files = [engine.files[engine.model], *sorted(engine.hashed_files.values())]
    judged = engine.reference and [engine.reference.bounds, engine.reference.first_load_bounds]
    parts = [files, judged, device, platform.machine(), read_cpu_features(), packages]
    if device != "cpu" or engine.kind.native_code:
        parts.append(read_gpu_description())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_cpu_features() -> list[str]:
    """Returns the processor's instruction sets as numpy reads them from CPUID.

    The processor's name is not used, since a virtual machine may change it.
    """
    try:
        core = import_module("numpy._core._multiarray_umath")
    except ImportError:
        core = import_module("numpy.core._multiarray_umath")  # of numpy 1
    return sorted(name for name, there in getattr(core, "__cpu_features__", {}).items() if there)


def read_gpu_description(root: Path = NVIDIA) -> list[str]:
    """Returns the driver's version and the GPUs' models, if Linux reports them."""
    found = []
    for file in sorted([root / "version", *root.glob("gpus/*/information")]):
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        found += [" ".join(line.split()) for line in lines if line.startswith(("NVRM", "Model:"))]
    return found


def check_first_load(bundle: Bundle, engine: Engine, backend: Backend) -> list[Check]:
    """Replays the part of an engine's reference that a first load has time for. Raises UserError if it is damaged."""
    recorded = engine.reference
    if recorded is None:
        return []
    forwards = read_reference(bundle.path, recorded, bundle.contract).forwards[: recorded.first_load]
    return prove(cast(Inspectable, backend), forwards, recorded.first_load_bounds)


def find_refusal(bundle: Bundle, engine: Engine, backend: Backend, options: OpenOptions) -> str | None:
    """Returns the error line for an engine that does not compute what PyTorch did, None for one that does.

    The line names what differs, and what to do: which engine of the bundle to use instead, or what to export.
    """
    try:
        wrong = [check for check in check_first_load(bundle, engine, backend) if not check.ok]
    except (DeviceError, NumericalError) as error:
        wrong = [Check("forward pass", False, str(error))]
    if not wrong:
        return None
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f"engine {engine.name} of {bundle.path} does not compute on this machine what PyTorch computed when it was "
        f"exported ({wrong[0].name}: {wrong[0].detail}{more}); {advise(bundle, engine, options)}; blockstep verify "
        "prints all figures, and --verify never loads it as it is"
    )


def advise(bundle: Bundle, engine: Engine, options: OpenOptions) -> str:
    """Returns what to do about an engine that is refused."""
    others = [each for each in bundle.engines if each.kind is engine.kind and each.name != engine.name]
    # Other engines are tried only in the isolated load check, which proves engines of the CPU: nobody has hashed them.
    untried = engine.kind.native_code or options.device != "cpu"
    passing = None if untried else find_passing_engine(bundle, others, options)
    if passing:
        return f"use --engine {passing}, which passes here"
    exact = "fp32" if options.device == "cpu" else "fp16"
    if engine.precision == exact:
        return f"install another version of {engine.kind.packages[0]}, or copy the bundle again"
    return f"export it again with --precision {exact}: blockstep export onnx --ckpt CHECKPOINT --out {bundle.path}"


def find_passing_engine(bundle: Bundle, engines: Sequence[Engine], options: OpenOptions) -> str | None:
    """Returns the name of the first engine that has a reference and passes here, None if there is none."""
    for engine in engines:
        try:
            if engine.reference is None:
                continue
            _, backend = engine.kind.open(bundle, [engine], options)
            if all(check.ok for check in check_first_load(bundle, engine, backend)):
                return engine.name
        except (UserError, DeviceError, NumericalError, MemoryError):
            continue
    return None
