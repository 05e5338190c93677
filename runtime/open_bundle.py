"""Opens a bundle: chooses its engine, checks its files, loads them, and makes a model of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import load_check
from .engines.registry import OpenOptions, choose_engines
from .errors import UserError
from .model import Model


def load(
    path: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    verify: str = "first",
    device: str = "cpu",
    trust_engine: bool = False,
    template_args: Mapping[str, Any] | None = None,
) -> Model:
    """Opens the model in a bundle's folder, ready to generate.

    engine: one that the manifest names, or `ort` or `trt` for the first of that kind that runs here, by default the
    first for ONNX Runtime; threads: of a forward pass, by default the physical cores within the CPU quota, or one for a
    small int8 engine; verify: `first` checks the files' hashes and tries the files in a process of their own, on the
    CPU whatever the device, once, and then remembers them, `always` every time; device: `cpu` or `cuda`, of an ONNX
    Runtime engine, `cuda` for the first that CUDA has kernels for (fp16); trust_engine: load a TensorRT engine, which
    is native code, though this machine did not build it; template_args: default arguments of the chat template, over
    the bundle's own, such as {"enable_thinking": False}. Raises UserError for a bundle, engine, package, driver or GPU
    that is missing or does not fit, and for files that crash, hang or take all memory.
    """
    from .bundle.store import read, verify_files
    from .text.chat_template import with_arguments
    from .text.tokenizer import Tokenizer

    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}; expected at least 1")
    bundle = read(Path(path))
    template = with_arguments(bundle.chat_template, template_args) if template_args else bundle.chat_template
    engines = choose_engines(bundle, engine, device)
    kind, first = engines[0].kind, engines[0]
    kind.import_library(device)
    # Native code is hashed as it is read, and trusted or not loaded; no process of its own would hold it.
    tried = None if kind.native_code else first
    verify_files(bundle, tried or replace(first, files={}), verify, lambda: load_check.attempt(bundle, tried, threads))
    chosen, backend = kind.open(bundle, engines, OpenOptions(device, threads, trust_engine))
    tokenizer = Tokenizer(bundle.tokenizer, template)
    return Model(backend, tokenizer, chosen.gate or bundle.contract.gate, chosen.name, chosen.precision)
