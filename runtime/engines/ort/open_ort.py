"""Opens engines of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import UserError
from . import ort_cuda
from .threads import choose_threads

if TYPE_CHECKING:
    from ...bundle.manifest import Bundle, Engine
    from ..registry import OpenOptions
    from .ort_backend import OrtBackend


def import_library(device: str) -> None:
    """Imports onnxruntime. Raises UserError if it is not installed, or lacks CUDA and `device` is a GPU."""
    try:
        from .ort_backend import OrtBackend  # noqa: F401
    except ModuleNotFoundError as error:
        install = "pip install 'onnxruntime>=1.30'" if device == "cpu" else ort_cuda.install_line()
        raise UserError(f"{error.name} is not installed; {install}") from None
    if device != "cpu":
        ort_cuda.check_available()


def open_backend(bundle: Bundle, engines: Sequence[Engine], options: OpenOptions) -> tuple[Engine, OrtBackend]:
    """Opens the first of the engines."""
    from .ort_backend import OrtBackend

    engine = engines[0]
    size = sum((bundle.path / name).stat().st_size for name in engine.files)
    threads = options.threads or choose_threads(engine.precision, size)
    model = bundle.path / engine.model
    return engine, OrtBackend(
        model, bundle.contract, threads, options.device, engine.files, allow_spinning=options.allow_spinning
    )
