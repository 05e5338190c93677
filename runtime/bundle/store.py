"""A bundle on disk: one flat folder with a manifest, the engines' files, the tokenizer and the chat template.

A file's name carries its content's hash, and the manifest is replaced by one rename, last, so that whoever reads finds
either the older bundle or the newer one. The manifest is read in `manifest`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from .. import files
from ..contract import Contract, GateSpec, led_by
from ..engines.registry import KINDS
from ..errors import UserError
from . import strict_json, trust_records
from .manifest import FORMAT, MANIFEST, Build, Bundle, Engine, parse, read, regular

__all__ = [
    "Build",
    "Bundle",
    "Engine",
    "check_place",
    "content_name",
    "read",
    "set_decision_temperature",
    "set_gate",
    "sha256",
    "verify_files",
    "write",
]

SUFFIXES = "|".join(kind.suffix[1:] for kind in KINDS.values())
OURS = re.compile(
    rf"[A-Za-z0-9._-]+-[0-9a-f]{{8}}\.({SUFFIXES}|data|json|jinja|npz)|\..+\.part"
)  # what a write may leave
UNTRIED = "untried"  # the last part of the mark of a file that was hashed alone


def verify_files(
    bundle: Bundle, engine: Engine, policy: str = "first", trial: Callable[[], bool] | None = None
) -> None:
    """Compares the files that `engine` needs with their sha256; a UserError names the one that differs.

    policy `first`: a file is hashed once and then known by size, time and inode, remembered in the user's cache folder
    (hashed every time if that cannot be written); `always`: hashed now. It finds damage, not forgery. trial: called
    if some were hashed or not tried before, and returns whether it tried them, which is remembered too.
    """
    if policy not in ("first", "always"):
        raise UserError(f"verify is {policy!r}; expected first or always")
    known = trust_records.seen() if policy == "first" else {}
    found = {}
    for name, expected in {**engine.hashed_files, **bundle.texts}.items():
        file = regular(bundle.path / name)
        mark = _mark(file, expected)
        before = known.get(str(file.resolve()))
        if before != mark:
            if before != [*mark, UNTRIED] and _readable_sha256(file) != expected:
                raise UserError(f"{file} is damaged: its sha256 is not the manifest's; copy or export the bundle again")
            found[str(file.resolve())] = mark
    if found and trial is not None and not trial():
        found = {file: [*mark, UNTRIED] for file, mark in found.items()}
    if found and policy == "first":
        trust_records.see({**known, **found})


def check_place(path: Path, contract: Contract, engine: Engine, provenance: Mapping[str, Any]) -> None:
    """Raises UserError if `write` would refuse this engine, its files apart: before the work of making them."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a bundle's folder or a path that is free")
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link that leads nowhere; remove it, or give --out another path")
    if path.exists():
        _others(path, contract, engine, provenance)


def write(
    path: Path,
    contract: Contract,
    engine: Engine,
    artifacts: Sequence[Path],
    tokenizer: str,
    chat_template: str | None,
    provenance: Mapping[str, Any],
) -> Bundle:
    """Adds an engine to the bundle at `path`, or makes the bundle; whatever fails, the older one stays whole.

    artifacts: the engine's files, named by `content_name`, and that of its reference if it has one; `engine.files` is
    taken from the former. They are moved into the bundle if they are on its file system, else copied; those that are in
    it stay. An engine of the same `key` is replaced. The others stay if the bundle came from the same checkpoint
    (`provenance["checkpoint_sha256"]`), and all go with another one. Raises UserError if an engine that stays has
    another contract, or if `path` is something else than a bundle. Writers wait for each other.
    """
    hashes = {file.name: sha256(file) for file in artifacts}
    for file in artifacts:
        if f"-{hashes[file.name][:8]}." not in file.name:
            raise ValueError(f"{file.name} does not carry its content's hash {hashes[file.name][:8]}")
    recorded = engine.reference.file if engine.reference else None
    if engine.reference is not None and hashes.get(engine.reference.file) != engine.reference.sha256:
        raise ValueError(f"{recorded} is not among the artifacts, or has another content")
    new = replace(engine, files={name: digest for name, digest in hashes.items() if name != recorded})
    texts = {"tokenizer": (tokenizer, "json"), "chat_template": (chat_template, "jinja")}
    with _locked(path):
        engines = (*_others(path, contract, new, provenance), new)
        try:
            for file in artifacts:
                if file.parent.resolve() != path.resolve():
                    _place(path / file.name, file)
            stored = {name: _place_text(path, name, *text) for name, text in texts.items()}
            _place_manifest(path, contract, engines, {**stored, "provenance": dict(provenance)})
        finally:
            _sweep(path)
        _remember(path, {**hashes, **{text["file"]: text["sha256"] for text in stored.values() if text}})
        return read(path)


def set_gate(path: Path, engine: str, gate: GateSpec, mode: str | None = None) -> Bundle:
    """Makes `gate` the accept rule of an engine: a new manifest in one rename, all other files untouched.

    Engines of its dialect and precision get it too: they differ in room or device, which no confidence depends on.
    mode: becomes the default of the bundle's modes, if given. Raises UserError if there is no such engine, or if gate
    or mode do not fit the contract.
    """
    contract = read(path).contract
    gate.own_threshold(contract.vocab)
    modes = contract.modes if mode is None else led_by(contract.modes, mode)
    return _change_engines(path, engine, {"gate": asdict(gate)}, modes)


def set_decision_temperature(path: Path, engine: str, temperature: float) -> Bundle:
    """Makes `temperature` what an engine's decisions are calibrated with, as `set_gate` does with its gate.

    Raises UserError if there is no such engine, or for a temperature out of bounds.
    """
    return _change_engines(path, engine, {"decision_temperature": temperature})


def _change_engines(path: Path, engine: str, change: Mapping[str, Any], modes: Sequence[str] = ()) -> Bundle:
    """Sets fields of an engine and of those of its dialect and precision, and the order of modes, in one rename."""
    with _locked(path):
        chosen = read(path).engine(engine)
        values = strict_json.read(path / MANIFEST)
        for entry in values["engines"]:
            if (entry["dialect"], entry["precision"]) == (chosen.dialect, chosen.precision):
                entry.update(change)
        if len(modes) > 1:
            values["contract"]["modes"] = list(modes)
        parse(path, values)
        _write(path / MANIFEST, json.dumps(values, indent=1).encode())
        return read(path)


def content_name(stem: str, suffix: str, digest: str) -> str:
    """Returns the name of a file in a bundle, such as `ort-fp32-1a2b3c4d.onnx`, from its content's sha256."""
    return f"{stem}-{digest[:8]}{suffix}"


def sha256(file: Path) -> str:
    """Returns the hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _mark(file: Path, digest: str) -> list[Any]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, digest]


def _readable_sha256(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); copy or export the bundle again") from None


def _remember(path: Path, hashes: Mapping[str, str]) -> None:
    """Remembers files as seen whole: they were hashed as they were written, and the export ran them."""
    written = {path / name: digest for name, digest in hashes.items()}
    trust_records.see(
        {**trust_records.seen(), **{str(file.resolve()): _mark(file, digest) for file, digest in written.items()}}
    )


def _others(path: Path, contract: Contract, new: Engine, provenance: Mapping[str, Any]) -> list[Engine]:
    """Returns the engines that stay next to the new one."""
    if not (path / MANIFEST).is_file():
        if foreign := [name for name in os.listdir(path) if not OURS.fullmatch(name)]:
            raise UserError(f"{path} is a folder of other files ({foreign[0]}), not a bundle; give --out another path")
        return []
    old = read(path)
    if old.provenance.get("checkpoint_sha256") != provenance.get("checkpoint_sha256"):
        return []
    stay = [e for e in old.engines if e.key != new.key]
    if stay and old.contract != contract:
        names = [each.name for each in fields(Contract)]
        wrong = next(name for name in names if getattr(old.contract, name) != getattr(contract, name))
        known, wanted = (str(getattr(each, wrong)) for each in (old.contract, contract))
        raise UserError(
            f"{path} holds {stay[0].name} with {wrong} {known}, but {new.name} has {wanted}; export with the same, or "
            "into another bundle"
        )
    return stay


def tidy(path: Path) -> None:
    """Removes what a killed run left in and next to a bundle that exists and is whole."""
    files.sweep(files.real_path(path))
    with _locked(path):
        _sweep(path)


def _sweep(path: Path) -> None:
    """Removes files of a bundle that its manifest, the older or the newer, does not name."""
    named = {MANIFEST}
    if (path / MANIFEST).is_file():
        bundle = read(path)
        named |= {*bundle.texts, *(name for engine in bundle.engines for name in engine.hashed_files)}
    for name in os.listdir(path):
        if name not in named and OURS.fullmatch(name):
            (path / name).unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the one lock of a bundle, on its folder; a folder made here is removed again if nothing came into it."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a bundle's folder or a path that is free")
    with files.locked(path, wait=True):
        try:
            yield
        finally:
            if not os.listdir(path):
                path.rmdir()


def _place(target: Path, source: Path) -> None:
    try:
        files.move(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        files.write_whole(target, lambda temporary: shutil.copyfile(source, temporary))


def _place_text(path: Path, stem: str, text: str | None, suffix: str) -> dict[str, str] | None:
    if text is None:
        return None
    content = text.encode()
    digest = hashlib.sha256(content).hexdigest()
    name = content_name(stem, f".{suffix}", digest)
    _write(path / name, content)
    return {"file": name, "sha256": digest}


def _place_manifest(path: Path, contract: Contract, engines: Sequence[Engine], rest: Mapping[str, Any]) -> None:
    values = {"format": FORMAT, "contract": contract.as_dict(), "engines": [e.as_dict() for e in engines], **rest}
    text = json.dumps(values, indent=1)
    parse(path, json.loads(text))  # or a name that no reader takes would spoil the bundle
    _write(path / MANIFEST, text.encode())


def _write(target: Path, content: bytes) -> None:
    files.write_whole(target, lambda temporary: temporary.write_bytes(content))
