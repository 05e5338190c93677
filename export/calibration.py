"""Keeps what `train calibrate --bundle` wrote if the same checkpoint is exported again, and reports what is lost.

A calibration is a gate or a decision temperature of all engines of one dialect and precision, and the order of modes of
the whole bundle. It holds for the checkpoint that it was measured with, decoded as it was then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runtime.bundle.manifest import MANIFEST
from runtime.bundle.store import Bundle, Engine, read
from runtime.contract import Contract

# What a contract may change without changing what is decoded.
NEUTRAL = {"capacity", "top_k", "candidates", "batch", "max_prompt", "dtype", "cache", "modes", "gate"}


def find_bundle(path: Path, provenance: Mapping[str, Any]) -> Bundle | None:
    """Returns the bundle at `path`; None if it is missing or of another checkpoint: `write` then replaces it."""
    found = _read_bundle(path)
    same = found is not None and found.provenance.get("checkpoint_sha256") == provenance.get("checkpoint_sha256")
    return found if same else None


def decodes_alike(one: Contract, other: Contract) -> bool:
    """Returns whether two contracts of one checkpoint decode alike, with the same gate: in equal blocks, and so on."""
    first, second = asdict(one), asdict(other)
    return {*one.modes} == {*other.modes} and all(first[name] == second[name] for name in first.keys() - NEUTRAL)


def keep_mode_order(there: Bundle | None, contract: Contract) -> Contract:
    """Returns the contract with its modes in the order of the bundle `there`, whose first one is the default.

    They stay as they are if the contract decodes in another way now, or has another gate.
    """
    if there is None or not decodes_alike(there.contract, contract) or there.contract.gate != contract.gate:
        return contract
    return replace(contract, modes=there.contract.modes)


def apply_calibration(there: Bundle | None, contract: Contract, engine: Engine) -> Engine:
    """Returns the engine with the gate and decision temperature that its dialect and precision have in `there`.

    Those of `engine` stay if `there` has none, or if the contract decodes in another way now. Its gate also
    stays if the contract has another one now, as with --gate: a calibrated gate would override that.
    """
    if there is None or not decodes_alike(there.contract, contract):
        return engine
    for other in there.engines:
        if (other.dialect, other.precision) == (engine.dialect, engine.precision):
            gate = other.gate if there.contract.gate == contract.gate else engine.gate
            heat = engine.decision_temperature if other.decision_temperature == 1 else other.decision_temperature
            return replace(engine, gate=gate, decision_temperature=heat)
    return engine


def describe_lost_calibration(path: Path, engine: Engine, provenance: Mapping[str, Any]) -> list[str]:
    """Returns a line for each kind of calibration in the bundle at `path` that an export of `engine` drops.

    Call it before the engine is written, with the engine as it will be. A temperature counts as lost only if the
    checkpoint brings none of its own.
    """
    old = _read_bundle(path)
    if old is None:
        return []
    if find_bundle(path, provenance) is None:
        reason, gone = "another checkpoint's", old.engines
    else:
        reason, gone = "for another gate or decoding", tuple(e for e in old.engines if e.key == engine.key)
    heated = gone if engine.decision_temperature == 1 else ()
    lines = []
    for what, flag, names in (
        ("gate", "", [each.name for each in gone if each.gate is not None and each.gate != engine.gate]),
        ("temperature of decisions", " --decisions", [e.name for e in heated if e.decision_temperature != 1]),
    ):
        if names:
            command = f"blockstep train calibrate{flag} --bundle {path} --engine {engine.name}"
            lines.append(f"the calibrated {what} of {', '.join(names)} was {reason} and is gone; calibrate: {command}")
    return lines


def describe_removed_engines(path: Path, engine: Engine, provenance: Mapping[str, Any]) -> list[str]:
    """Returns a line if an export of `engine` removes other engines from the bundle at `path`, else none.

    These are of another checkpoint. Call it before the engine is written.
    """
    old = _read_bundle(path)
    if old is None or find_bundle(path, provenance) is not None:
        return []
    names = [each.name for each in old.engines if each.key != engine.key]
    if not names:
        return []
    return [f"{', '.join(names)} of another checkpoint gone from {path}; give --out another path to keep both"]


def describe_kept_calibration(before: Engine, after: Engine) -> list[str]:
    """Returns a line if `apply_calibration` changed the engine, else none."""
    kept = []
    if after.gate is not None and after.gate != before.gate:
        kept.append("gate" if after.gate.unit is None else f"gate's threshold {after.gate.threshold:g}")
    if after.decision_temperature != before.decision_temperature:
        kept.append(f"temperature of decisions {after.decision_temperature:g}")
    return [f"{after.name} keeps the calibrated {' and '.join(kept)}: the checkpoint is the same"] if kept else []


def _read_bundle(path: Path) -> Bundle | None:
    return read(path) if (path / MANIFEST).is_file() else None
