"""Builds a planned engine and adds it, with its graph, to a bundle; needs neither torch nor a checkpoint."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.calibration import apply_calibration, find_bundle
from export.staging import report_write_errors
from runtime.bundle import trust_records
from runtime.bundle.manifest import MANIFEST
from runtime.bundle.store import Bundle, Engine, hash_file, make_content_name, tidy, write
from runtime.contract import Contract
from runtime.errors import DeviceError

from .builder import BuiltEngine, ShowProgress, build_engine
from .plan import Plan, check_network, list_plan_differences, name_for
from .report import BuildReport


@dataclass(frozen=True, slots=True)
class TargetBundle:
    """Holds the path of a bundle to add engines to, which may not exist yet, and what all its engines share."""

    path: Path
    contract: Contract
    tokenizer: str
    chat_template: str | None
    provenance: Mapping[str, Any]

    def read_bundle(self) -> Bundle | None:
        """Returns the bundle; None if it is missing, or of another checkpoint: `write` then replaces its engines."""
        return find_bundle(self.path, self.provenance)

    def write(self, engine: Engine, files: Sequence[Path]) -> None:
        """Adds an engine to the bundle, and records that a TensorRT engine was built here."""
        if engine.kind.native_code:
            trust_records.remember_built(hash_file(files[0]))
        own = apply_calibration(self.read_bundle(), self.contract, engine)
        write(self.path, self.contract, own, files, self.tokenizer, self.chat_template, self.provenance)


def report_missing(shared: TargetBundle, plan: Plan, report: BuildReport, onnx: str | None = None) -> bool:
    """Returns whether the bundle lacks the engine as planned; reports why, or that there is nothing to build.

    If there is nothing to build, removes what a killed run left in the bundle, and stores a changed chat template.
    """
    bundle = shared.read_bundle()
    name, why = name_for(bundle, plan), list_plan_differences(bundle, plan, onnx)
    if bundle is None and (shared.path / MANIFEST).is_file():
        why = ["the bundle is of another checkpoint, whose engines go"]
    if why:
        report.say(f"{name}: to be built, {'; '.join(why)}")
    else:
        with report_write_errors(shared.path):
            tidy(shared.path)
            if bundle is not None and bundle.chat_template != shared.chat_template:  # other --template-args
                kept = bundle.engines[-1]
                files = [shared.path / file for file in kept.hashed_files]
                write(
                    shared.path, bundle.contract, kept, files, shared.tokenizer, shared.chat_template, bundle.provenance
                )
        report.record_engine(name, "as it should be, nothing to build", built=False)
    return bool(why)


def add(
    shared: TargetBundle, plan: Plan, origin: Engine, files: Sequence[Path], folder: Path, report: BuildReport
) -> bool:
    """Builds the engine and adds it; if a check fails, the bundle stays as it is. Returns whether it was added.

    origin: the graph's entry, with its measured parity, its recorded reference and its decision temperature. files: the
    .onnx file first, then its data file and its reference, if any. folder: the staging directory.
    """
    started, contract = time.perf_counter(), shared.contract
    try:
        with show_progress() as progress:
            made = build_engine(files[0], contract, plan.profiles, plan.settings, progress)
    except DeviceError as error:
        return report.check("engine", False, str(error))
    if not _check(plan, contract, made, report):
        return False
    name, build_of = name_for(shared.read_bundle(), plan), plan.build(files[0].name, made.decomposed)
    with report_write_errors(shared.path):
        file = folder / make_content_name(plan.make_stem(), ".engine", hashlib.sha256(made.content).hexdigest())
        file.write_bytes(made.content)
        engine = plan.make_engine(name, file.name, origin.parity, build_of)
        heat = origin.decision_temperature
        shared.write(replace(engine, reference=origin.reference, decision_temperature=heat), [file, *files])
    seconds, size = round(time.perf_counter() - started, 3), len(made.content)
    values = {"file": file.name, "bytes": size, "target": plan.target, "decomposed": made.decomposed}
    report.record_engine(name, f"built in {seconds:.1f} s, {size / 1e6:.1f} MB", built=True, seconds=seconds, **values)
    return True


def _check(plan: Plan, contract: Contract, made: BuiltEngine, report: BuildReport) -> bool:
    network = made.network
    wrong = check_network(plan, network, contract.layers, not contract.has_cache)
    found = f"strongly typed, {network.attentions} attentions, {network.masked} with a mask"
    found += f", {network.updates} KV-cache updates"
    if made.decomposed:
        found += "; no fused kernel for this attention, so it is decomposed, which is slower"
    return report.check("network", wrong is None, wrong or found)


@contextmanager
def show_progress() -> Iterator[ShowProgress | None]:
    """Shows the builder's progress on a terminal, on one line that is cleared afterwards."""
    if not sys.stderr.isatty():
        yield None
        return

    def show(phase: str, done: int, steps: int) -> None:
        print(f"\r{phase[:60]}: {done} of {steps}\033[K", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
