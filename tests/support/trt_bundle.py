"""Bundles with TensorRT engines that the fakes of CUDA and TensorRT load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT, Plan

from runtime.bundle import trust_records
from runtime.bundle.store import Build, Bundle, Engine, hash_file, make_content_name, write
from runtime.contract import Contract
from runtime.engines.trt.cuda import Cuda
from runtime.engines.trt.trt_backend import TrtBackend, open_engines

if TYPE_CHECKING:
    from train.transformer.network import Transformer

BLOCK = tiny.BLOCK
PROFILES = ((BLOCK, BLOCK), (2 * BLOCK, 2 * BLOCK), (1, 16))
BUILD = Build("tensorrt", "10.16.1.11", False, None, PROFILES, 64, 1, "float32", "", {"optimization_level": 3})


def add_engine(
    path: Path, contract: Contract, *, dialect: str = "trt", precision: str = "fp32", target: str = "sm89",
    content: bytes | None = None, trusted: bool = True, name: str | None = None, file: str | None = None,
    tokenizer: str = "{}", **build: Any,
) -> Bundle:  # fmt: skip
    """Adds an engine to the bundle at `path`; its file is `content`, by default told by capacity and batch."""
    made = replace(BUILD, **build)
    stem = f"{dialect}-{precision}-{target.replace(',', '-').replace('+', '')}-{made.capacity}"
    stem += "".join(f"-{value}" for value in (build.get("batch"), build.get("flavor")) if value)
    folder = path.parent / "made"
    folder.mkdir(exist_ok=True)
    files = []
    body = make_content(made) if content is None else content
    for suffix, text in ((".engine", body), (".onnx", b"graph of %d" % made.capacity)):
        plain = folder / f"new{suffix}"
        plain.write_bytes(text)
        files.append(plain.rename(folder / make_content_name(file or stem, suffix, hash_file(plain))))
    if trusted:
        trust_records.remember_built(hash_file(files[0]))
    engine = Engine(
        name or stem, dialect, precision, target, None, files[0].name, {}, {}, replace(made, onnx=files[1].name)
    )
    return write(path, contract, engine, files, tokenizer, None, {"checkpoint_sha256": "one"})


def make_content(build: Build) -> bytes:
    return b"engine of %d for %d" % (build.capacity, build.batch)


def make_fake_plan(model: Transformer, contract: Contract, build: Build, cache: str) -> Plan:
    own = replace(contract, capacity=build.capacity, batch=build.batch, dtype=build.dtype, cache=cache)
    return Plan(model, own, build.profiles, contract.block)


def make_fake_backend(
    folder: Path, model: Transformer, contract: Contract, *, dialect: str = "trt", capacities: tuple[int, ...] = (64,),
    batch: int = 1, profiles: tuple[tuple[int, int], ...] = PROFILES, dtype: str = "float32", graphs: bool = True,
    library: Any = None, flavor: str = "tensorrt",
) -> tuple[TrtBackend, FakeCuda, FakeTensorRT]:  # fmt: skip
    """The backend over the fake, from a bundle with an engine for each capacity. library: changes the fake before."""
    full = contract.attention == "full"
    cache = "none" if full else "delta" if dialect == "plain" else "in_place"
    builds = [replace(BUILD, capacity=c, batch=batch, profiles=profiles, dtype=dtype) for c in capacities]
    for build in builds:
        changes = {"capacity": build.capacity, "batch": batch, "profiles": profiles, "dtype": dtype, "flavor": flavor}
        bundle = add_engine(folder / "a.bundle", contract, dialect=dialect, **changes)
    cuda = FakeCuda()
    fake = FakeTensorRT(
        cuda, {make_content(build): make_fake_plan(model, contract, build, cache) for build in builds}, flavor == "rtx"
    )
    if library is not None:
        library(fake)
    backend = open_engines(
        bundle, bundle.find_engines("trt"), cuda=Cuda(cuda), library=lambda _: fake, cuda_graphs=graphs
    )
    return backend, cuda, fake
