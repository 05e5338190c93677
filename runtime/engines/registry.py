"""Lists the kinds of engines, one row each: their files, which are trusted, where they run, how they are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UserError
from .ort import open_ort, ort_cuda

if TYPE_CHECKING:
    from ..backend import Backend
    from ..bundle.manifest import Bundle, Engine

DEFAULT = "ort"  # the kind that is opened if none is named
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """Configures how an engine is opened.

    Args:
        device: one of DEVICES.
        threads: threads per forward pass of ONNX Runtime, None for the default (`ort.threads`).
        trust_engine: whether to open native code that this machine did not build.
        allow_spinning: whether ONNX Runtime's threads spin while they wait for work; if not, they sleep.
        cuda_graphs: whether TensorRT engines replay forward passes of a fixed width as CUDA graphs.
    """

    device: str = "cpu"
    threads: int | None = None
    trust_engine: bool = False
    allow_spinning: bool = True
    cuda_graphs: bool = True


@dataclass(frozen=True, slots=True)
class EngineKind:
    """Describes a kind of engine. Only its functions import its library.

    Args:
        name: the kind's name for `--engine`.
        suffix: suffix of the file that is opened.
        native_code: whether that file is machine code, built from a graph for one device (the manifest's `build`), and
            opened only if this machine built it or the user trusts it. Other files are data, and are first loaded in
            an isolated load check.
        dialects: dialects of the graphs that it runs.
        devices: devices that it runs on.
        packages: packages whose versions are reported with measured figures.
        open: opens the first of some engines that runs here. Raises UserError if none does.
        import_library: imports what a device needs. Raises UserError, with what to install, if it is missing.
        select: returns the engines that a device has kernels for. Raises UserError if there are none.
    """

    name: str
    suffix: str
    native_code: bool
    dialects: tuple[str, ...]
    devices: tuple[str, ...]
    packages: tuple[str, ...]
    open: Callable[[Bundle, Sequence[Engine], OpenOptions], tuple[Engine, Backend]]
    import_library: Callable[[str], object] = lambda device: None
    select: Callable[[Bundle, Sequence[Engine], str], Sequence[Engine]] = lambda bundle, engines, device: engines


def open_tensorrt(bundle: Bundle, engines: Sequence[Engine], options: OpenOptions) -> tuple[Engine, Backend]:
    """Opens the first engine that runs on this machine's GPU, and those that differ from it only in capacity."""
    from .trt.trt_backend import open_engines

    if not options.allow_spinning:
        raise UserError(
            f"{engines[0].name} is an engine of TensorRT, which has no threads of ONNX Runtime that spin or sleep; "
            "leave --no-allow-spinning (allow_spinning=False) out"
        )
    backend = open_engines(bundle, engines, trust=options.trust_engine, cuda_graphs=options.cuda_graphs)
    return backend.engines[0], backend


KINDS = {
    kind.name: kind
    for kind in (
        EngineKind(
            "ort",
            suffix=".onnx",
            native_code=False,
            dialects=("ort", "standard"),
            devices=DEVICES,
            packages=("onnxruntime", "onnxruntime-gpu"),
            open=open_ort.open_backend,
            import_library=open_ort.import_library,
            select=ort_cuda.select_engines,
        ),
        EngineKind(
            "trt",
            suffix=".engine",
            native_code=True,
            dialects=("trt", "plain"),
            devices=("cuda",),
            packages=("tensorrt", "tensorrt-cu12", "tensorrt-rtx", "tensorrt-rtx-cu12", "cuda-bindings"),
            open=open_tensorrt,
        ),
    )
}


def choose_engines(bundle: Bundle, name: str | None, device: str) -> Sequence[Engine]:
    """Returns the engines for a name and a device, all of one kind, best first. Raises UserError if there are none."""
    if device not in DEVICES:
        raise UserError(f"device is {device!r}; expected {' or '.join(DEVICES)}")
    found = bundle.find_engines(name)
    kind = found[0].kind
    if device != DEVICES[0] and device not in kind.devices:
        raise UserError(f"{found[0].name} does not run on {device}; use --device {kind.devices[0]}")
    return kind.select(bundle, [engine for engine in found if engine.kind is kind], device)
