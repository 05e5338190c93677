"""Reads a bundle's manifest strictly: the contract, the engines and how they were made, their files' hashes.

manifest.json: {format, contract, engines: [{name, dialect, precision, target, gate, model, files: {name: sha256},
parity, build (TensorRT's engines), reference and decision_temperature (if it has them)}], tokenizer: {file, sha256},
chat_template: {file, sha256} or null, provenance}. Format 1 has no references.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ..checked_fields import (
    OBJECT,
    PRINTABLE,
    TEXT,
    FieldRule,
    check_names,
    number,
    one_of,
    optional,
    parse_fields,
    whole,
)
from ..contract import TEMPERATURE, Contract, GateSpec, parse_contract, parse_gate
from ..engines.registry import DEFAULT, KINDS, EngineKind
from ..errors import UserError
from . import strict_json

FORMAT = 2  # the format that is written
READABLE = (1, 2)  # the formats that are read
REFERENCED = 2  # the first format in which an engine may have a reference
MANIFEST = "manifest.json"
KEYS = dict.fromkeys(("format", "contract", "engines", "tokenizer", "chat_template", "provenance"), True)
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # flat: no separator, no leading dot, so no '..' either
SHA256 = re.compile(r"[0-9a-f]{64}")
FLAVORS = ("tensorrt", "rtx")
CACHE_DTYPES = ("float32", "float16", "bfloat16")
REFERENCE = ".npz"  # the suffix of a recorded reference
BOUND = number(0)
BOUNDS = FieldRule(
    "an object of one or more numbers from 0",
    lambda value: isinstance(value, dict) and value != {} and all(map(BOUND.holds, value.values())),
)
TEMPLATE = 1 << 20  # bytes that a chat template may have; the longest published ones have some ten thousand


@dataclass(frozen=True, slots=True)
class Build:
    """Describes how a TensorRT engine was built, as far as that decides on which machines and how it runs.

    flavor: tensorrt | rtx (TensorRT for RTX); version: of that library; version_compatible: whether later versions
    load the engine too; device: the GPU model that it is bound to, None if its compute capability is enough; profiles:
    minimum and maximum of tokens per forward pass in each optimization profile; capacity: positions of its KV cache;
    batch: sequences per forward pass; dtype: of the KV cache; onnx: the engine's file that it was built from; options:
    plain values that are only needed to build it again.
    """

    flavor: Annotated[str, one_of(FLAVORS)]
    version: Annotated[str, PRINTABLE]
    version_compatible: bool
    device: Annotated[str | None, optional(TEXT)]
    profiles: tuple[tuple[int, int], ...]
    capacity: int
    batch: int
    dtype: Annotated[str, one_of(CACHE_DTYPES)]
    onnx: Annotated[str, PRINTABLE]
    options: Annotated[dict[str, Any], OBJECT]


@dataclass(frozen=True, slots=True)
class RecordedReference:
    """Names the file of what PyTorch computed in an engine's place (`bundle.reference`), and the engine's bounds.

    bounds: per figure of a replay, by its name in `runtime.proof.judge`; first_load: how many forward passes, from the
    first on, are replayed when a machine loads the engine for the first time; first_load_bounds: the bounds for these
    forward passes alone, whose means are over fewer rows.
    """

    file: Annotated[str, PRINTABLE]
    sha256: Annotated[str, TEXT]
    bounds: Annotated[dict[str, float], BOUNDS]
    first_load: Annotated[int, whole(1)]
    first_load_bounds: Annotated[dict[str, float], BOUNDS]


@dataclass(frozen=True, slots=True)
class Engine:
    """Describes one way to run the model.

    target: `cpu`; `any` for a graph of standard operators, from which TensorRT's engines may be built; or the compute
    capabilities that it was built for (`sm89`, `sm86,sm89`, `sm80+` for that and newer); gate: replaces the contract's,
    since quantization shifts confidences; model: the file to load; files: all its files with their sha256; parity: what
    was measured against PyTorch when it was made; build: for TensorRT's engines, None for an ONNX graph; reference:
    None if nothing was recorded; decision_temperature: divides the scores of a decision's values, 1 if it was not
    fitted (`train.calibrate --decisions`).
    """

    name: Annotated[str, PRINTABLE]
    dialect: Annotated[str, PRINTABLE]
    precision: Annotated[str, PRINTABLE]
    target: Annotated[str, PRINTABLE]
    gate: GateSpec | None
    model: Annotated[str, PRINTABLE]
    files: dict[str, str]
    parity: dict[str, Any]
    build: Build | None = None
    reference: RecordedReference | None = None
    decision_temperature: Annotated[float, TEMPERATURE] = 1.0

    @property
    def kind(self) -> EngineKind:
        """Returns the kind of engine, by the suffix of its file."""
        return next(kind for kind in KINDS.values() if self.model.endswith(kind.suffix))

    @property
    def hashed_files(self) -> dict[str, str]:
        """Returns the engine's files, and its reference's if it has one, with their sha256."""
        return self.files if self.reference is None else {**self.files, self.reference.file: self.reference.sha256}

    @property
    def graph(self) -> str:
        """Returns the file of its ONNX graph: its model, or the graph that the model was built from."""
        return self.build.onnx if self.build else self.model

    @property
    def batch(self) -> int:
        """Returns the sequences per forward pass that it was built for; 1 for a graph."""
        return self.build.batch if self.build else 1

    @property
    def takes_batches(self) -> bool:
        """Whether a forward pass takes several sequences: as many as it was built for, or any number."""
        return self.batch > 1 or (self.build is None and self.dialect == "standard")

    @property
    def cache(self) -> str:
        """Returns how its graph keeps a KV cache: a value of `Contract.cache`."""
        return "delta" if self.dialect == "plain" else "in_place"

    def is_called(self, name: str) -> bool:
        """Returns whether `name`, a value of `--engine`, is its dialect, or its kind if that kind runs its dialect."""
        if name in KINDS:
            return self.kind.name == name and self.dialect in KINDS[name].dialects
        return self.dialect == name

    @property
    def key(self) -> tuple[object, ...]:
        """Returns what identifies an engine in a bundle; a new engine with the same key replaces it."""
        build = self.build
        own = (build.flavor, build.device, build.capacity, build.batch) if build else (self.name,)
        return (self.dialect, self.precision, self.target, *own)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for the manifest."""
        values = asdict(self)
        without = {"build": None, "reference": None, "decision_temperature": 1.0}  # as in older versions
        return {name: value for name, value in values.items() if name not in without or value != without[name]}


@dataclass(frozen=True, slots=True)
class Bundle:
    """Holds a manifest that was read and checked. texts: files of tokenizer and chat template, with their sha256."""

    path: Path
    contract: Contract
    engines: tuple[Engine, ...]
    tokenizer: Path
    chat_template: str | None
    texts: dict[str, str]
    provenance: dict[str, Any]

    def find_engine(self, name: str | None = None) -> Engine:
        """Returns the first of the engines that `find_engines` finds."""
        return self.find_engines(name)[0]

    def find_engines(self, name: str | None = None) -> tuple[Engine, ...]:
        """Returns the engine called `name`, or else all engines of that kind (`ort`, `trt`) or dialect.

        None means `ort`. Raises UserError, listing the bundle's engines, if none matches.
        """
        wanted = DEFAULT if name is None else name
        found = [e for e in self.engines if e.name == wanted] or [e for e in self.engines if e.is_called(wanted)]
        if not found and wanted in KINDS and any(e.dialect in KINDS[wanted].dialects for e in self.engines):
            raise UserError(
                f"{self.path} has graphs for TensorRT, but no engine built of them; build one on the machine that runs "
                f"it: blockstep export trt --bundle {self.path}"
            )
        if not found:
            missing = "engine for ONNX Runtime" if name is None else f"engine {name!r}"
            names = ", ".join(e.name for e in self.engines)
            raise UserError(f"{self.path} has no {missing}; it has {names}: name one with --engine, or export it")
        return tuple(found)


def read(path: Path) -> Bundle:
    """Reads the bundle at `path` but not its engines' files (see `verify_files`).

    Raises UserError for anything unexpected.
    """
    manifest = path / MANIFEST
    if not os.path.lexists(manifest):  # False, too, for a path that is too long or holds a null character
        raise UserError(f"no bundle at {path}: expected a folder with {MANIFEST}; make one with blockstep export onnx")
    check_regular(manifest)
    try:
        values = strict_json.read(manifest)
    except (OSError, ValueError) as error:
        raise UserError(f"{manifest} cannot be read ({error}); export the bundle again") from None
    return parse(path, values)


def parse(path: Path, values: Any) -> Bundle:
    """Makes the bundle at `path` from its manifest's values. Raises UserError for anything unexpected."""
    if isinstance(values, dict) and values.get("format", FORMAT) not in READABLE:
        found = values["format"]
        raise UserError(
            f"{path} has format {found!r}; this version reads formats up to {FORMAT}; install the version that wrote "
            "it, or export it again: blockstep export onnx"
        )
    check_names(values, "manifest", "keys", KEYS)
    contract = parse_contract(values["contract"])
    if not isinstance(values["engines"], list) or not values["engines"]:
        raise UserError("manifest.engines is not a list of at least one engine; export the bundle again")
    engines = tuple(_parse_engine(entry) for entry in values["engines"])
    if values["format"] < REFERENCED and any(engine.reference for engine in engines):
        raise UserError(f"{path} has format {values['format']}, which has no reference, but names one; export it again")
    if len({engine.name for engine in engines}) != len(engines):
        raise UserError("manifest.engines has two engines of one name; export the bundle again")
    for gate in (engine.gate for engine in engines if engine.gate is not None):
        gate.require_threshold(contract.vocab)
    texts = [_parse_file_entry(values["tokenizer"], "tokenizer")]
    if values["chat_template"] is not None:
        texts.append(_parse_file_entry(values["chat_template"], "chat_template"))
    if not isinstance(values["provenance"], dict):
        raise UserError("manifest.provenance is not an object; export the bundle again")
    template = _read_template(path / texts[1][0]) if len(texts) > 1 else None
    return Bundle(path, contract, engines, path / texts[0][0], template, dict(texts), values["provenance"])


def _parse_engine(values: Any) -> Engine:
    place = "manifest.engines"
    engine = parse_fields(
        Engine, values, place, "keys", gate=lambda gate: None if gate is None else parse_gate(gate), build=_build,
        reference=_parse_reference,
    )  # fmt: skip
    if not isinstance(engine.files, dict) or not isinstance(engine.parity, dict):
        raise UserError(f"{place}: files and parity have to be objects; export the bundle again")
    for name, digest in engine.files.items():
        _parse_file_entry({"file": name, "sha256": digest}, "engines")
    if engine.model not in engine.files:
        raise UserError(f"{place}: model {engine.model!r} is not among its files; export the bundle again")
    if engine.reference is not None and engine.reference.file in engine.files:
        raise UserError(f"{place}: {engine.reference.file!r} is reference and engine at once; export the bundle again")
    if engine.build is not None and engine.build.onnx not in engine.files:
        raise UserError(
            f"{place}.build: onnx {engine.build.onnx!r} is not among the engine's files; export the bundle again"
        )
    suffixes = [kind.suffix for kind in KINDS.values() if kind.native_code == (engine.build is not None)]
    if not engine.model.endswith(tuple(suffixes)):  # ONNX Runtime's own format has fewer checks
        expected = " or ".join(suffixes)
        raise UserError(f"{place}: model {engine.model!r} is not a {expected} file; export the bundle again")
    return engine


def _build(values: Any) -> Build:
    place = "manifest.engines.build"
    build = parse_fields(Build, values, place, "keys")
    profiles = build.profiles
    plain = isinstance(profiles, list) and profiles and all(isinstance(p, list) and len(p) == 2 for p in profiles)
    numbers = [build.capacity, build.batch, *(n for p in profiles for n in p)] if plain else [None]
    if not all(type(n) is int and n >= 1 for n in numbers) or any(least > most for least, most in profiles):
        raise UserError(f"{place}: capacity, batch and profiles [[least, most], ...] have to be whole numbers from 1")
    return replace(build, profiles=tuple((least, most) for least, most in profiles))


def _parse_reference(values: Any) -> RecordedReference:
    place = "manifest.engines.reference"
    reference = parse_fields(RecordedReference, values, place, "keys")
    _parse_file_entry({"file": reference.file, "sha256": reference.sha256}, "engines.reference")
    if not reference.file.endswith(REFERENCE):
        raise UserError(f"{place}: {reference.file!r} is not a {REFERENCE} file; export the bundle again")
    return reference


def _parse_file_entry(values: Any, place: str) -> tuple[str, str]:
    """Returns the name and sha256 of a manifest's file entry. Raises UserError if they are not well-formed."""
    check_names(values, f"manifest.{place}", "keys", {"file": True, "sha256": True})
    name, digest = values["file"], values["sha256"]
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name) or name == MANIFEST:
        raise UserError(f"manifest.{place}: {name!r} is not a plain file name; a bundle is flat")
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise UserError(f"manifest.{place}: the sha256 of {name} is {digest!r}; expected 64 hexadecimal digits")
    return name, digest


def _read_template(file: Path) -> str:
    try:
        with open(check_regular(file), "rb") as handle:
            content = handle.read(TEMPLATE + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); copy or export the bundle again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text at byte {error.start}; copy or export the bundle again") from None
    if len(content) > TEMPLATE:
        raise UserError(f"{file} has more than {TEMPLATE} bytes, too many for a chat template; export the bundle again")
    return text


def check_regular(file: Path) -> Path:
    """Returns `file` if it is a regular file or a link to one, as in caches and Kubernetes volumes.

    Raises UserError for anything else, which must not be opened: a FIFO or a device might never end.
    """
    try:
        plain = stat.S_ISREG(file.stat().st_mode)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise UserError(f"{file} cannot be read ({error.strerror}); change its folder's permissions") from None
        reason = f"is a link that leads nowhere ({error.strerror})" if file.is_symlink() else "is missing"
        raise UserError(f"{file} {reason}; copy or export the bundle again") from None
    if not plain:
        raise UserError(f"{file} is not a plain file or a link to one; copy or export the bundle again")
    return file
