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
    """Imports onnxruntime. Raises UserError if it cannot be imported, or if `device` is `cuda` and it has no CUDA."""
    try:
        from .ort_backend import OrtBackend  # noqa: F401
    except ModuleNotFoundError as error:
        install = "pip install 'onnxruntime>=1.30'" if device == "cpu" else ort_cuda.install_line()
        raise UserError(f"{error.name} is not installed; {install}") from None
    except (ImportError, OSError) as error:  # a shared library that it needs is missing
        raise UserError(f"onnxruntime cannot be used here ({error}); install it again, for this Python") from None
    if device != "cpu":
        ort_cuda.check_available()


def open_backend(bundle: Bundle, engines: Sequence[Engine], options: OpenOptions) -> tuple[Engine, OrtBackend]:
    """Opens `engines[0]`, the best for the device; returns it with its backend. The others are not tried."""
    from .ort_backend import OrtBackend

    engine = engines[0]
    engine_bytes = sum((bundle.path / name).stat().st_size for name in engine.files)
    threads = options.threads or choose_threads(engine.precision, engine_bytes)
    model = bundle.path / engine.model
    return engine, OrtBackend(
        model, bundle.contract, threads, options.device, engine.files, allow_spinning=options.allow_spinning
    )
