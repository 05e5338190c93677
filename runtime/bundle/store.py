"""Writes and verifies bundles: flat folders with a manifest, the engines' files, the tokenizer and the chat template.

A file's name carries its content's hash, and the manifest is replaced last, by one rename, so that readers find either
the older bundle or the newer one. The module `manifest` reads the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from .. import files
from ..contract import Contract, GateSpec, put_first
from ..engines.registry import KINDS
from ..errors import UserError
from . import strict_json, trust_records
from .manifest import FORMAT, MANIFEST, Build, Bundle, Engine, check_regular, parse, read

__all__ = [
    "Build",
    "Bundle",
    "Engine",
    "check_place",
    "hash_file",
    "make_content_name",
    "read",
    "set_decision_temperature",
    "set_gate",
    "verify_files",
    "write",
]

SUFFIXES = "|".join(kind.suffix[1:] for kind in KINDS.values())
OURS = re.compile(
    rf"[A-Za-z0-9._-]+-[0-9a-f]{{8}}\.({SUFFIXES}|data|json|jinja|npz)|\..+\.part"
)  # names of files that a write may leave
UNTRIED = "untried"  # the last part of the mark of a file that was hashed but not tried


def verify_files(
    bundle: Bundle,
    engine: Engine,
    policy: str = "first",
    check_load: Callable[[], bool] | None = None,
    not_tried: Collection[str] = (),
) -> None:
    """Compares the files that `engine` needs with their sha256; raises UserError naming one that differs.

    policy `first`: hashes a file once and then recognizes it by size, time and inode, remembered in the user's cache
    folder (if that cannot be written, it hashes every time); `always`: hashes every file now. This finds damage, not
    forgery. check_load: called if some files were hashed now, or not tried before; returns whether it tried them, which
    is remembered too. not_tried: names of files that it cannot try here, so that they are remembered as hashed alone.
    """
    if policy not in ("first", "always"):
        raise UserError(f"verify is {policy!r}; expected first or always")
    known = trust_records.read_seen() if policy == "first" else {}
    found = {}
    for name, expected in {**engine.hashed_files, **bundle.texts}.items():
        file = check_regular(bundle.path / name)
        tried = _mark(file, expected)
        hashed = [*tried, UNTRIED]
        before = known.get(str(file.resolve()))
        if before != tried and (before != hashed or name not in not_tried):
            if before != hashed and _hash_readable_file(file) != expected:
                raise UserError(f"{file} is damaged: its sha256 is not the manifest's; copy or export the bundle again")
            found[str(file.resolve())] = hashed if name in not_tried else tried
    if found and check_load is not None and not check_load():
        found = {file: mark if mark[-1] == UNTRIED else [*mark, UNTRIED] for file, mark in found.items()}
    if found and policy == "first":
        trust_records.record_verified({**known, **found})


def check_place(path: Path, contract: Contract, engine: Engine, provenance: Mapping[str, Any]) -> None:
    """Raises UserError if `write` would refuse this engine whatever its files; called before they are made."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a bundle's folder or a path that is free")
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link that leads nowhere; remove it, or give --out another path")
    if path.exists():
        _keep_others(path, contract, engine, provenance)


def write(
    path: Path,
    contract: Contract,
    engine: Engine,
    artifacts: Sequence[Path],
    tokenizer: str,
    chat_template: str | None,
    provenance: Mapping[str, Any],
) -> Bundle:
    """Adds an engine to the bundle at `path`, or makes the bundle; whatever fails, the older bundle stays whole.

    artifacts: the engine's files, named by `make_content_name`, and its reference's file if it has one; `engine.files`
    is set from the former. Files are moved into the bundle, or copied from another file system, or stay if they are in
    it already. An engine with the same `key` is replaced. Other engines stay if they are from the same checkpoint
    (`provenance["checkpoint_sha256"]`), and are removed otherwise. Raises UserError if an engine that stays has another
    contract, or if `path` is something else than a bundle. Writers wait for each other.
    """
    hashes = {file.name: hash_file(file) for file in artifacts}
    for file in artifacts:
        if f"-{hashes[file.name][:8]}." not in file.name:
            raise ValueError(f"{file.name} does not carry its content's hash {hashes[file.name][:8]}")
    recorded = engine.reference.file if engine.reference else None
    if engine.reference is not None and hashes.get(engine.reference.file) != engine.reference.sha256:
        raise ValueError(f"{recorded} is not among the artifacts, or has another content")
    new = replace(engine, files={name: digest for name, digest in hashes.items() if name != recorded})
    texts = {"tokenizer": (tokenizer, "json"), "chat_template": (chat_template, "jinja")}
    with _hold_lock(path):
        engines = (*_keep_others(path, contract, new, provenance), new)
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
    """Sets the gate of an engine: replaces the manifest by one rename and leaves all other files as they are.

    Other engines of its dialect and precision get the gate too: they differ in capacity or device, on which confidences
    do not depend. mode: the bundle's new default mode, if given. Raises UserError if there is no such engine, or if
    gate or mode do not fit the contract.
    """
    contract = read(path).contract
    gate.require_threshold(contract.vocab)
    modes = contract.modes if mode is None else put_first(contract.modes, mode)
    return _change_engines(path, engine, {"gate": asdict(gate)}, modes)


def set_decision_temperature(path: Path, engine: str, temperature: float) -> Bundle:
    """Sets the decision temperature of an engine, and of others of its dialect and precision, as `set_gate` does.

    Raises UserError if there is no such engine, or for a temperature out of bounds.
    """
    return _change_engines(path, engine, {"decision_temperature": temperature})


def _change_engines(path: Path, engine: str, change: Mapping[str, Any], modes: Sequence[str] = ()) -> Bundle:
    """Sets fields of all engines of an engine's dialect and precision, and the order of modes, by one rename."""
    with _hold_lock(path):
        chosen = read(path).find_engine(engine)
        values = strict_json.read(path / MANIFEST)
        for entry in values["engines"]:
            if (entry["dialect"], entry["precision"]) == (chosen.dialect, chosen.precision):
                entry.update(change)
        if len(modes) > 1:
            values["contract"]["modes"] = list(modes)
        parse(path, values)
        _write(path / MANIFEST, json.dumps(values, indent=1).encode())
        return read(path)


def make_content_name(stem: str, suffix: str, digest: str) -> str:
    """Returns the name of a file in a bundle, such as `ort-fp32-1a2b3c4d.onnx`, from its content's sha256."""
    return f"{stem}-{digest[:8]}{suffix}"


def hash_file(file: Path) -> str:
    """Returns the hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _mark(file: Path, digest: str) -> list[Any]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino, digest]


def _hash_readable_file(file: Path) -> str:
    try:
        return hash_file(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); copy or export the bundle again") from None


def _remember(path: Path, hashes: Mapping[str, str]) -> None:
    """Remembers files as verified: they were hashed when they were written, and the export ran them."""
    written = {path / name: digest for name, digest in hashes.items()}
    trust_records.record_verified(
        {**trust_records.read_seen(), **{str(file.resolve()): _mark(file, digest) for file, digest in written.items()}}
    )


def _keep_others(path: Path, contract: Contract, new: Engine, provenance: Mapping[str, Any]) -> list[Engine]:
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
    """Removes what a killed run left in and next to an existing, whole bundle."""
    files.sweep(files.resolve_path(path))
    with _hold_lock(path):
        _sweep(path)


def _sweep(path: Path) -> None:
    """Removes files that a write made in a bundle and that its manifest, old or new, does not name."""
    named = {MANIFEST}
    if (path / MANIFEST).is_file():
        bundle = read(path)
        named |= {*bundle.texts, *(name for engine in bundle.engines for name in engine.hashed_files)}
    for name in os.listdir(path):
        if name not in named and OURS.fullmatch(name):
            if (path / name).is_dir() and not (path / name).is_symlink():  # what another command staged here
                files.sweep(path / name.removeprefix(".").removesuffix(".part"))
            else:
                (path / name).unlink()


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Holds a bundle's lock, which is on its folder; makes a missing folder, and removes it if it stays empty."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a bundle's folder or a path that is free")
    with files.hold_lock(path, wait=True):
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
    name = make_content_name(stem, f".{suffix}", digest)
    _write(path / name, content)
    return {"file": name, "sha256": digest}


def _place_manifest(path: Path, contract: Contract, engines: Sequence[Engine], rest: Mapping[str, Any]) -> None:
    values = {"format": FORMAT, "contract": contract.as_dict(), "engines": [e.as_dict() for e in engines], **rest}
    text = json.dumps(values, indent=1)
    parse(path, json.loads(text))  # so that a name that readers refuse does not spoil the bundle
    _write(path / MANIFEST, text.encode())


def _write(target: Path, content: bytes) -> None:
    files.write_whole(target, lambda temporary: temporary.write_bytes(content))
