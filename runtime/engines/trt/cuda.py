"""Makes the CUDA calls that an engine needs, and checks each call's status: a thin layer on `cuda.bindings`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DeviceError, UserError

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
OLD_DRIVER = 35  # cudaErrorInsufficientDriver, also returned without a driver
NO_DRIVER = (3, 34, OLD_DRIVER, 100)  # initialization failed, a stub library, a driver too old or none, no device
FOR_CUDA_12 = "for CUDA 12 instead: pip install blockstep tensorrt-cu12 'polygraphy>=0.53' 'cuda-python>=12.6,<13'"
Handle = Any  # a stream's or a graph's handle of cuda.bindings; int() gives what TensorRT takes


@dataclass(frozen=True, slots=True)
class Gpu:
    """Describes a GPU: its name, and its compute capability as two or three digits, such as 89 or 120."""

    name: str
    capability: int


class Cuda:
    """CUDA's runtime on the process's first GPU. Device memory is an integer address, a size is in bytes.

    calls: the module `cuda.bindings.runtime`, or an object with the same functions. Each method raises DeviceError,
    naming the call and CUDA's reason, if the call fails. A method with a stream is asynchronous: the stream runs its
    calls in order, and `synchronize` waits for them.
    """

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def find_gpu(self) -> Gpu | None:
        """Returns the GPU, None if there is none or no driver for it."""
        status, count = self._calls.cudaGetDeviceCount()
        if int(status) in NO_DRIVER or (int(status) == 0 and count == 0):
            return None
        self._check("cudaGetDeviceCount", status)
        found = self._call("cudaGetDeviceProperties", 0)
        return Gpu(found.name.decode(), 10 * found.major + found.minor)

    def explain_missing_gpu(self) -> str:
        """Returns what is missing for a GPU, to be printed after "needs"."""
        old = int(self._calls.cudaGetDeviceCount()[0]) == OLD_DRIVER
        status, version = self._calls.cudaDriverGetVersion()  # 0 if there is no driver
        if not (old and int(status) == 0 and version):
            return "an NVIDIA driver"
        here = f"NVIDIA's driver here is for CUDA {version // 1000}.{version % 1000 // 10}"
        return f"a newer NVIDIA driver, 580 or newer for CUDA 13 ({here}), or what is {FOR_CUDA_12}"

    def free_bytes(self) -> int:
        """Returns the bytes of free device memory."""
        status, free, _ = self._calls.cudaMemGetInfo()
        self._check("cudaMemGetInfo", status)
        return int(free)

    def allocate(self, size: int) -> int:
        """Allocates device memory, not zeroed, aligned to 256 bytes. Raises UserError if there is not enough."""
        status, address = self._calls.cudaMalloc(size)
        if int(status) == OUT_OF_MEMORY:
            raise UserError(
                f"the GPU has {self.free_bytes() / 1e6:.0f} MB free, but {size / 1e6:.0f} MB more are needed; "
                "free some, or build an engine of less capacity"
            )
        self._check("cudaMalloc", status)
        return int(address)

    def free(self, address: int) -> None:
        """Frees device memory."""
        self._call("cudaFree", address)

    def zero(self, address: int, size: int, stream: Handle) -> None:
        """Zeroes device memory."""
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def pin(self, size: int) -> NDArray[np.uint8]:
        """Allocates host memory, zeroed, that the GPU copies from and to directly; `unpin` frees it. uint8 [size]"""
        address = int(self._call("cudaHostAlloc", size, 0))
        array: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array.fill(0)
        return array

    def unpin(self, array: NDArray[np.uint8]) -> None:
        """Frees pinned memory; no array over it may be used any more."""
        self._call("cudaFreeHost", array.ctypes.data)

    def to_device(self, address: int, array: NDArray[np.uint8], stream: Handle) -> None:
        """Copies all of a host array to the device."""
        kind = self._calls.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: NDArray[np.uint8], address: int, stream: Handle) -> None:
        """Fills a host array from the device."""
        kind = self._calls.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: Handle
    ) -> None:
        """Copies `rows` rows of `width` bytes on the device. A pitch is the bytes from one row to the next."""
        kind = self._calls.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, kind, stream)

    def stream(self) -> Handle:
        """Creates a stream that does not wait for the default stream."""
        return self._call("cudaStreamCreateWithFlags", self._calls.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Handle) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Handle) -> None:
        """Waits until the stream has done all its work. Raises DeviceError if any of that failed."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: Handle, work: Callable[[], None]) -> Handle:
        """Captures the calls that `work` makes on the stream, without running them, as a graph for `launch`."""
        mode = self._calls.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may allocate
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            status, graph = self._calls.cudaStreamEndCapture(stream)  # a failure here would hide the first one
            if int(status) == 0:
                self._calls.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def forget_error(self) -> None:
        """Resets the last call's error, which a library might read. If it cannot be reset, the next call fails."""
        self._calls.cudaGetLastError()

    def launch(self, graph: Handle, stream: Handle) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Handle) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._calls, name)(*arguments)
        self._check(name, status)
        return values[0] if values else None

    def _check(self, name: str, status: Any) -> None:
        if int(status) != 0:
            _, reason = self._calls.cudaGetErrorString(status)
            raise DeviceError(f"{name} failed: {reason.decode()} (CUDA error {int(status)})")


def load_cuda() -> Cuda:
    """Loads CUDA's bindings, which needs no driver yet. Raises UserError if cuda-python is not installed."""
    try:
        return Cuda(import_module("cuda.bindings.runtime"))
    except ImportError:
        raise UserError("cuda-python is not installed; pip install 'cuda-python>=12.6'") from None
