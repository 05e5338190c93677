"""A bundle on disk: one flat folder with a manifest, the engines' files, the tokenizer and the chat template.

manifest.json: {format, contract, engines: [{name, dialect, precision, target, gate, model, files: {name: sha256},
parity}], tokenizer: {file, sha256}, chat_template: {file, sha256} or null, provenance}. A file's name carries its
content's hash, and the manifest is replaced by one rename, last, so that whoever reads finds either the older bundle or
the newer one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .contract import Contract, GateSpec, parse_contract, parse_gate
from .errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
KEYS = {"format", "contract", "engines", "tokenizer", "chat_template", "provenance"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # flat: no separator, no leading dot, so no '..' either
SHA256 = re.compile(r"[0-9a-f]{64}")
OURS = re.compile(
    r"[A-Za-z0-9._-]+-[0-9a-f]{8}\.(onnx|data|engine|json|jinja)|\..+\.part"
)  # what a write may leave behind


@dataclass(frozen=True, slots=True)
class Engine:
    """One way to run the model. target: `cpu`, or a GPU's name where the file is bound to one; gate: replaces the
    contract's, since quantisation shifts confidences; model: the file to load; files: all its files with their sha256;
    parity: what was measured against PyTorch when it was made."""

    name: str
    dialect: str
    precision: str
    target: str
    gate: GateSpec | None
    model: str
    files: dict[str, str]
    parity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest that was read and found whole. texts: tokenizer and chat template with their sha256."""

    path: Path
    contract: Contract
    engines: tuple[Engine, ...]
    tokenizer: Path
    chat_template: str | None
    texts: dict[str, str]
    provenance: dict[str, Any]

    def engine(self, name: str | None = None) -> Engine:
        """The engine of that name; by default the first for ONNX Runtime. Raises UserError listing those there are."""
        found = [e for e in self.engines if (e.dialect == "ort" if name is None else e.name == name)]
        if not found:
            wanted = "engine for ONNX Runtime" if name is None else f"engine {name!r}"
            names = ", ".join(e.name for e in self.engines)
            raise UserError(f"{self.path} has no {wanted}; it has {names}: name one with --engine, or export it")
        return found[0]


def read(path: Path) -> Bundle:
    """The bundle at `path`; its engines are not read (see `verify_files`). Raises UserError for anything unexpected."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise UserError(f"no bundle at {path}: expected a folder with {MANIFEST}; make one with python -m export.onnx")
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except ValueError as error:  # malformed JSON or UTF-8, or a refusal of ours
        raise UserError(f"{manifest} cannot be read ({error}); export the bundle again") from None
    except RecursionError:
        raise UserError(f"{manifest} cannot be read (nested too deeply); export the bundle again") from None
    if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
        found = values["format"]
        raise UserError(f"{path} has format {found!r}, this version reads {FORMAT}; export it again with this version")
    _exactly(values, KEYS, "manifest")
    contract = parse_contract(values["contract"])
    if not isinstance(values["engines"], list) or not values["engines"]:
        raise UserError("manifest.engines is not a list of at least one engine; export the bundle again")
    engines = tuple(_engine(entry) for entry in values["engines"])
    if len({engine.name for engine in engines}) != len(engines):
        raise UserError("manifest.engines has two engines of one name; export the bundle again")
    texts = [_text(values["tokenizer"], "tokenizer")]
    if values["chat_template"] is not None:
        texts.append(_text(values["chat_template"], "chat_template"))
    if not isinstance(values["provenance"], dict):
        raise UserError("manifest.provenance is not an object; export the bundle again")
    template = _regular(path / texts[1][0]).read_text(encoding="utf-8") if len(texts) > 1 else None
    return Bundle(path, contract, engines, path / texts[0][0], template, dict(texts), values["provenance"])


def verify_files(bundle: Bundle, engine: Engine, policy: str = "first") -> None:
    """Compares the files that `engine` needs with their sha256; a UserError names the one that differs.

    policy `first`: a file is hashed once and then known by size, time and inode, remembered in the user's cache folder
    (hashed every time where that cannot be written); `always`: hashed now. It finds damage, not forgery.
    """
    if policy not in ("first", "always"):
        raise UserError(f"verify is {policy!r}; expected first or always")
    known = _remembered() if policy == "first" else {}
    found = {}
    for name, expected in {**engine.files, **bundle.texts}.items():
        file = _regular(bundle.path / name)
        status = file.stat()
        mark = [status.st_size, status.st_mtime_ns, status.st_ino, expected]
        if known.get(str(file.resolve())) != mark:
            if sha256(file) != expected:
                raise UserError(f"{file} is damaged: its sha256 is not the manifest's; copy or export the bundle again")
            found[str(file.resolve())] = mark
    if found and policy == "first":
        _remember({**known, **found})


def write(
    path: Path, contract: Contract, engine: Engine, artefacts: Sequence[Path], tokenizer: str,
    chat_template: str | None, provenance: Mapping[str, Any],
) -> Bundle:  # fmt: skip
    """Adds an engine to the bundle at `path`, or makes the bundle; whatever fails, the older one stays whole.

    artefacts: the engine's files, named by `content_name`; `engine.files` is taken from them. They are moved into the
    bundle where they lie on its file system, else copied. An engine of the same
    dialect, precision and target is replaced. The others stay where the bundle came from the same checkpoint
    (`provenance["checkpoint_sha256"]`), and all go with another one. Raises UserError where an engine that stays has
    another contract, and where `path` is something else than a bundle. Writers wait for each other.
    """
    hashes = {file.name: sha256(file) for file in artefacts}
    for file in artefacts:
        if f"-{hashes[file.name][:8]}." not in file.name:
            raise ValueError(f"{file.name} does not carry its content's hash {hashes[file.name][:8]}")
    new = replace(engine, files=hashes)
    texts = {"tokenizer": (tokenizer, "json"), "chat_template": (chat_template, "jinja")}
    with _locked(path):
        engines = (*_others(path, contract, new, provenance), new)
        try:
            for file in artefacts:
                _place(path / file.name, file)
            stored = {name: _place_text(path, name, *text) for name, text in texts.items()}
            values = {"format": FORMAT, "contract": contract.as_dict(), "engines": [asdict(e) for e in engines]}
            values |= {**stored, "provenance": dict(provenance)}
            _replace(path / MANIFEST, json.dumps(values, indent=1).encode())
        finally:
            _sweep(path)
        return read(path)


def content_name(stem: str, suffix: str, digest: str) -> str:
    """The name of a file in a bundle, such as `ort-fp32-1a2b3c4d.onnx`, from its content's sha256."""
    return f"{stem}-{digest[:8]}{suffix}"


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _others(path: Path, contract: Contract, new: Engine, provenance: Mapping[str, Any]) -> list[Engine]:
    """The engines that stay beside the new one."""
    if not (path / MANIFEST).is_file():
        if foreign := [name for name in os.listdir(path) if not OURS.fullmatch(name)]:
            raise UserError(f"{path} is a folder of other files ({foreign[0]}), not a bundle; give --out another path")
        return []
    old = read(path)
    if old.provenance.get("checkpoint_sha256") != provenance.get("checkpoint_sha256"):
        return []
    key = (new.dialect, new.precision, new.target)
    stay = [e for e in old.engines if (e.dialect, e.precision, e.target) != key]
    if stay and old.contract != contract:
        known, wanted = old.contract.as_dict(), contract.as_dict()
        wrong = next(name for name in wanted if known[name] != wanted[name])
        raise UserError(
            f"{path} holds {stay[0].name} with {wrong} {known[wrong]}, but {new.name} has {wanted[wrong]}; export with "
            "the same, or into another bundle"
        )
    return stay


def _sweep(path: Path) -> None:
    """Removes files of a bundle that its manifest, the older or the newer, does not name."""
    named = {MANIFEST}
    if (path / MANIFEST).is_file():
        bundle = read(path)
        named |= {*bundle.texts, *(name for engine in bundle.engines for name in engine.files)}
    for name in os.listdir(path):
        if name not in named and OURS.fullmatch(name):
            (path / name).unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the one lock of a bundle, on its folder; a folder made here is removed again if nothing came into it."""
    import fcntl  # not on every system, and only writers need it

    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; expected a bundle's folder or a path that is free")
    while True:
        path.mkdir(parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        if path.exists() and os.fstat(folder).st_ino == path.stat().st_ino:
            break
        os.close(folder)  # the writer before failed and took its new folder away
    try:
        yield
    finally:
        if not os.listdir(path):
            path.rmdir()
        os.close(folder)


def _place(target: Path, source: Path) -> None:
    try:
        _settle(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        temporary = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, temporary)
        _settle(temporary, target)


def _place_text(path: Path, stem: str, text: str | None, suffix: str) -> dict[str, str] | None:
    if text is None:
        return None
    content = text.encode()
    digest = hashlib.sha256(content).hexdigest()
    name = content_name(stem, f".{suffix}", digest)
    _replace(path / name, content)
    return {"file": name, "sha256": digest}


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.part")
    temporary.write_bytes(content)
    _settle(temporary, target)


def _settle(temporary: Path, target: Path) -> None:
    """Moves a file to its name once its bytes are on the disk, and the move too."""
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _engine(values: Any) -> Engine:
    _exactly(values, {field.name for field in fields(Engine)}, "manifest.engines")
    for name in ("name", "dialect", "precision", "target", "model"):
        if not isinstance(values[name], str) or not values[name]:
            raise UserError(f"manifest.engines: {name} is {values[name]!r}; expected a text")
    if not isinstance(values["files"], dict) or not isinstance(values["parity"], dict):
        raise UserError("manifest.engines: files and parity have to be objects; export the bundle again")
    files = dict(_text({"file": name, "sha256": digest}, "engines") for name, digest in values["files"].items())
    if values["model"] not in files:
        raise UserError(f"manifest.engines: model {values['model']!r} is not among its files; export the bundle again")
    gate = None if values["gate"] is None else parse_gate(values["gate"])
    return Engine(**{**values, "gate": gate, "files": files})


def _text(values: Any, place: str) -> tuple[str, str]:
    """A file's name and sha256."""
    _exactly(values, {"file", "sha256"}, f"manifest.{place}")
    name, digest = values["file"], values["sha256"]
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == MANIFEST:
        raise UserError(f"manifest.{place}: {name!r} is not a plain file name; a bundle is flat")
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise UserError(f"manifest.{place}: the sha256 of {name} is {digest!r}; expected 64 hexadecimal digits")
    return name, digest


def _exactly(values: Any, keys: set[str], place: str) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{place} is {type(values).__name__}; expected an object")
    if unknown := sorted(values.keys() - keys):
        raise UserError(f"{place} has unknown keys {', '.join(unknown)}; it was written by another version")
    if missing := sorted(keys - values.keys()):
        raise UserError(f"{place} lacks {', '.join(missing)}; export the bundle again")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return values


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _regular(file: Path) -> Path:
    try:
        regular = stat.S_ISREG(file.lstat().st_mode)
    except OSError:
        raise UserError(f"{file} is missing; copy or export the bundle again") from None
    if not regular:
        raise UserError(f"{file} is not a plain file; a bundle holds no links and no folders")
    return file


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockstep" / "verified.json"


def _remembered() -> dict[str, Any]:
    try:
        known = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return known if isinstance(known, dict) else {}


def _remember(marks: dict[str, Any]) -> None:
    try:
        _memory().parent.mkdir(parents=True, exist_ok=True)
        there = {file: mark for file, mark in marks.items() if os.path.exists(file)}
        temporary = _memory().with_name(f".verified.{os.getpid()}.part")
        temporary.write_text(json.dumps(there), encoding="utf-8")
        os.replace(temporary, _memory())
    except (OSError, RuntimeError):
        return  # not remembered: hashed again the next time
