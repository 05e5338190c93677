"""Opens a bundle: chooses its engine, checks its files, loads them, and makes a model of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import load_check
from .backend import Backend
from .engines.ort import ort_cuda
from .engines.ort.threads import usual_threads
from .errors import UserError
from .model import Model

if TYPE_CHECKING:
    from .bundle.manifest import Bundle, Engine


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
    from .bundle.store import read
    from .text.chat_template import with_arguments
    from .text.tokenizer import Tokenizer

    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}; expected at least 1")
    bundle = read(Path(path))
    template = with_arguments(bundle.chat_template, template_args) if template_args else bundle.chat_template
    chosen = ort_cuda.choose_engine(bundle, engine, device)
    if chosen.build is None:
        backend = _on_ort(bundle, chosen, threads, verify, device)
    else:
        chosen, backend = _on_tensorrt(bundle, bundle.matching(engine), verify, trust_engine)
    tokenizer = Tokenizer(bundle.tokenizer, template)
    return Model(backend, tokenizer, chosen.gate or bundle.contract.gate, chosen.name, chosen.precision)


def _on_ort(bundle: Bundle, engine: Engine, threads: int | None, verify: str, device: str) -> Backend:
    from .bundle.store import verify_files

    try:
        from .engines.ort.ort_backend import OrtBackend
    except ModuleNotFoundError as error:
        install = "pip install 'onnxruntime>=1.30'" if device == "cpu" else ort_cuda.install_line()
        raise UserError(f"{error.name} is not installed; {install}") from None
    if device != "cpu":
        ort_cuda.check_available()
    verify_files(bundle, engine, verify, lambda: load_check.attempt(bundle, engine, threads))
    size = sum((bundle.path / name).stat().st_size for name in engine.files)
    threads = threads or usual_threads(engine.precision, size)
    return OrtBackend(bundle.path / engine.model, bundle.contract, threads, device, engine.files)


def _on_tensorrt(bundle: Bundle, engines: Sequence[Engine], verify: str, trust: bool) -> tuple[Engine, Backend]:
    from .bundle.store import verify_files
    from .engines.trt.trt_backend import open_engines

    texts = replace(engines[0], files={})  # the engine's own file is hashed as it is read, and trusted or not loaded
    verify_files(bundle, texts, verify, lambda: load_check.attempt(bundle, None))
    backend = open_engines(bundle, engines, trust=trust)
    return backend.engines[0], backend
