"""Decides which TensorRT engines may be loaded: made for this GPU and library, undamaged, from a trusted source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from ...bundle import trust_records
from ...bundle.manifest import Build, Engine, check_regular
from ...errors import UserError
from .cuda import Gpu

TARGET_PATTERN = re.compile(r"sm(\d+)(\+?)")


def covers(target: str, capability: int) -> bool:
    """Returns whether an engine's target, such as `sm86,sm89` or `sm80+`, includes GPUs of this compute capability."""
    for part in target.split(","):
        match = TARGET_PATTERN.fullmatch(part)
        if match and (int(match[1]) == capability or (match[2] and int(match[1]) <= capability)):
            return True
    return False


def can_load(build: Build, version: str) -> bool:
    """Returns whether this version of the build's TensorRT library can load the build."""
    if build.version_compatible:
        return parse_version(version) >= parse_version(build.version)
    return version == build.version


def parse_version(version: str) -> list[int]:
    """Returns a version as a list of numbers, which compare correctly."""
    return [int(part) for part in re.findall(r"\d+", version)]


def explain_refusal(engine: Engine, build: Build, gpu: Gpu, version: str) -> str | None:
    """Returns why an engine does not run on this GPU with this version of its library, None if it does."""
    if not covers(engine.target, gpu.capability):
        return f"was built for {engine.target}, here is a GPU of sm{gpu.capability} ({gpu.name})"
    if build.device is not None and build.device != gpu.name:
        return f"was built for {build.device}, here is {gpu.name}"
    if not can_load(build, version):
        return f"was built by version {build.version} of its library, here is {version}"
    return None


def list_siblings(engines: Sequence[Engine], first: Engine) -> list[Engine]:
    """Returns `first` and the engines that differ from it only in capacity, in order of capacity."""

    def list_settings(engine: Engine) -> tuple[object, ...]:
        build = engine.build
        build_settings = (build.flavor, build.version, build.device, build.batch, build.dtype) if build else ()
        calibration = (engine.gate, engine.decision_temperature)  # the first engine's are used for all
        return (engine.dialect, engine.precision, engine.target, *calibration, *build_settings)

    siblings = [engine for engine in engines if list_settings(engine) == list_settings(first)]
    return sorted(siblings, key=lambda engine: engine.build.capacity if engine.build else 0)


def read_content(folder: Path, engine: Engine, trust: bool) -> bytes:
    """Returns the content of an engine's file, which is native code.

    The file is read once, so that the bytes that are loaded are those that were hashed. Raises UserError if the file is
    not the one in the manifest, or this machine did not build it and `trust` is not set.
    """
    expected = engine.files[engine.model]
    if not trust and not trust_records.was_built(expected):
        raise UserError(
            f"{engine.name} was not built on this machine, and an engine is native code: build it here with "
            f"blockstep export trt --bundle {folder}, or give --trust-engine if you trust whoever made it"
        )
    file = check_regular(folder / engine.model)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise UserError(f"{file} is damaged: its sha256 is not the manifest's; copy the bundle or build again")
    return content
