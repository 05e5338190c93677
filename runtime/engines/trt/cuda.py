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
NO_GPU_STATUSES = (3, 34, OLD_DRIVER, 100)  # initialization failed, a stub library, a driver too old or none, no device
CUDA_12_ADVICE = "for CUDA 12 instead: pip install blockstep tensorrt-cu12 'polygraphy>=0.53' 'cuda-python>=12.6,<13'"
Handle = Any  # a stream's or a graph's handle of cuda.bindings; int() gives what TensorRT takes


@dataclass(frozen=True, slots=True)
class Gpu:
    """Describes a GPU: its name, and its compute capability as two or three digits, such as 89 or 120."""

    name: str
    capability: int


class Cuda:
    """Makes calls of CUDA's runtime on the process's first GPU. Addresses are integers, sizes are in bytes.

    calls: the module `cuda.bindings.runtime`, or an object with the same functions. Each method raises DeviceError,
    naming the call and CUDA's reason, if the call fails. Methods that take a stream are asynchronous: the stream runs
    its calls in order, and `synchronize` waits for them.
    """

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def find_gpu(self) -> Gpu | None:
        """Returns the GPU, None if the machine has none or no driver for it."""
        status, count = self._calls.cudaGetDeviceCount()
        if int(status) in NO_GPU_STATUSES or (int(status) == 0 and count == 0):
            return None
        self._check("cudaGetDeviceCount", status)
        properties = self._call("cudaGetDeviceProperties", 0)
        return Gpu(properties.name.decode(), 10 * properties.major + properties.minor)

    def explain_missing_gpu(self) -> str:
        """Returns what is missing for a GPU, to be printed after "needs"."""
        may_be_old = int(self._calls.cudaGetDeviceCount()[0]) == OLD_DRIVER
        status, version = self._calls.cudaDriverGetVersion()  # version 0: no driver
        if not (may_be_old and int(status) == 0 and version):
            return "an NVIDIA driver"
        driver = f"NVIDIA's driver here is for CUDA {version // 1000}.{version % 1000 // 10}"
        return f"a newer NVIDIA driver, 580 or newer for CUDA 13 ({driver}), or what is {CUDA_12_ADVICE}"

    def count_free_bytes(self) -> int:
        """Returns how many bytes of device memory are free."""
        status, free, _ = self._calls.cudaMemGetInfo()
        self._check("cudaMemGetInfo", status)
        return int(free)

    def allocate(self, size: int) -> int:
        """Allocates device memory, not zeroed, aligned to 256 bytes. Raises UserError if there is not enough."""
        status, address = self._calls.cudaMalloc(size)
        if int(status) == OUT_OF_MEMORY:
            raise UserError(
                f"the GPU has {self.count_free_bytes() / 1e6:.0f} MB free, but {size / 1e6:.0f} MB more are needed; "
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

    def allocate_pinned(self, size: int) -> NDArray[np.uint8]:
        """Allocates host memory, zeroed, that the GPU copies from and to directly. uint8 [size]"""
        address = int(self._call("cudaHostAlloc", size, 0))
        array: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array.fill(0)
        return array

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        """Frees pinned memory; no array over it may be used any more."""
        self._call("cudaFreeHost", array.ctypes.data)

    def copy_to_device(self, address: int, array: NDArray[np.uint8], stream: Handle) -> None:
        """Copies all of a host array to the device."""
        kind = self._calls.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_to_host(self, array: NDArray[np.uint8], address: int, stream: Handle) -> None:
        """Fills a host array from the device."""
        kind = self._calls.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: Handle
    ) -> None:
        """Copies `rows` rows of `width` bytes on the device. A pitch is the bytes from one row to the next."""
        kind = self._calls.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, kind, stream)

    def create_stream(self) -> Handle:
        """Creates a stream that does not wait for the default stream."""
        return self._call("cudaStreamCreateWithFlags", self._calls.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Handle) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Handle) -> None:
        """Waits until the stream has done all its work. Raises DeviceError if any of that failed."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: Handle, work: Callable[[], None]) -> Handle:
        """Captures the calls that `work` makes on the stream as a CUDA graph for `launch`, without running them."""
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
