"""Proves a bundle's engine on this machine by its whole recorded reference, for `runtime.verify` and the C library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from ..backend import Inspectable
from ..bundle.manifest import Bundle, Engine, RecordedReference, read
from ..bundle.reference import read_reference
from ..bundle.store import verify_files
from ..engines.registry import OpenOptions, choose_engines
from ..errors import UserError
from .judge import Check, Figure, judge, judge_answers, measure
from .replay import replay


@dataclass(frozen=True, slots=True)
class BundleProof:
    """Holds what a replay found. engine, backend: names; forwards, rows, answers: how many were compared."""

    engine: str
    backend: str
    forwards: int
    rows: int
    answers: int
    figures: Mapping[str, Figure]
    bounds: Mapping[str, float]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def prove_bundle(path: Path, engine: str | None, options: OpenOptions) -> BundleProof:
    """Opens an engine without the proof of a first load, and replays its whole reference.

    engine: as in `runtime.load`. Raises UserError if the engine cannot be opened or has no reference.
    """
    if options.threads is not None and options.threads < 1:
        raise UserError(f"threads is {options.threads}; expected at least 1")
    bundle = read(path)
    engines = choose_engines(bundle, engine, options.device)
    kind = engines[0].kind
    require_reference(bundle, next((each for each in engines if each.reference), engines[0]))
    kind.import_library(options.device)
    verify_files(bundle, replace(engines[0], files={}) if kind.native_code else engines[0], "always")
    chosen, backend = kind.open(bundle, engines, options)
    recorded = require_reference(bundle, chosen)
    reference = read_reference(bundle.path, recorded, bundle.contract)
    replayed = replay(cast(Inspectable, backend), reference.forwards)
    checks = judge(reference.forwards, replayed, recorded.bounds)
    checks += judge_answers(backend, reference.answers, bundle.contract.gate, recorded.bounds)
    counts = len(reference.forwards), len(replayed.token), len(reference.answers)
    figures = measure(reference.forwards, replayed)
    return BundleProof(chosen.name, backend.name, *counts, figures, recorded.bounds, tuple(checks))


def require_reference(bundle: Bundle, engine: Engine) -> RecordedReference:
    """Returns an engine's recorded reference. If it has none, raises UserError naming the command that records one."""
    if engine.reference is None:
        command = "trt" if engine.kind.native_code else "onnx"
        raise UserError(
            f"{engine.name} of {bundle.path} has no recorded reference to be compared with; export it again from its "
            f"checkpoint, which records one: blockstep export {command} --ckpt CHECKPOINT --out "
            f"{bundle.path} --precision {engine.precision}"
        )
    return engine.reference
