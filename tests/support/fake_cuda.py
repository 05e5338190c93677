"""A scripted stand-in for CUDA's runtime: memory by address, work that is done when it is waited for, faults on demand.

It answers the calls of `cuda.bindings.runtime` that the runtime makes, and no others.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST = 1 << 60  # no address of a process, so that looking at device memory from the host cannot pass


class FakeCuda:
    """`cuda.bindings.runtime` of a machine with one GPU. Work given to a stream is done when the stream is waited for.

    fail: calls that are to fail, by name, with the status and how often they succeed before. log: all calls, in order,
    with their arguments. What is allocated is full of NaNs.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1

    def __init__(self, capability: int = 89, name: str = "Fake 4090", total: int = 1 << 30) -> None:
        self.gpu = SimpleNamespace(name=name.encode(), major=capability // 10, minor=capability % 10)
        self.total, self.devices, self.driver = total, 1, 13000
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.pinned: dict[int, NDArray[np.uint8]] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.fail: dict[str, tuple[int, int]] = {}
        self.log: list[tuple[Any, ...]] = []
        self._next = FIRST

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """Every call goes through here: it is recorded, and fails if it is meant to."""
        if not name.startswith("cuda"):
            raise AttributeError(name)
        work = getattr(self, f"_{name}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.log.append((name, *arguments))
            if name in self.fail:
                status, left = self.fail[name]
                if left == 0:
                    if name == "cudaStreamSynchronize":
                        self.queue.clear()  # what was under way is lost
                    if name == "cudaStreamEndCapture":
                        self.recording = None
                    return (status, None, None) if name == "cudaMemGetInfo" else (status, None)
                self.fail[name] = (status, left - 1)
            made = work(*arguments)
            return (0, *made) if isinstance(made, tuple) else (0, made)

        return call

    def called(self) -> list[str]:
        return [entry[0] for entry in self.log]

    def leaks(self) -> Counter[str]:
        """What is still held."""
        held = {"memory": self.memory, "pinned": self.pinned, "streams": self.streams, "graphs": self.graphs}
        return Counter({name: len(things) for name, things in held.items() if things})

    def at(self, address: int, size: int) -> NDArray[np.uint8]:
        """Device memory as an array; an address that is not allocated is a mistake of the caller."""
        for base, array in self.memory.items():
            if base <= address and address + size <= base + len(array):
                return array[address - base : address - base + size]
        raise AssertionError(f"{size} bytes at {address - FIRST} are not allocated on the device")

    def enqueue(self, work: Callable[[], None], stream: Any) -> None:
        assert int(stream) in self.streams, "no such stream"
        (self.queue if self.recording is None else self.recording).append(work)

    def _fresh(self) -> int:
        self._next += 1 << 32
        return self._next

    def _cudaGetErrorString(self, status: int) -> bytes:
        return b"out of memory" if status == 2 else b"scripted fault"

    def _cudaGetDeviceCount(self) -> int:
        return self.devices

    def _cudaDriverGetVersion(self) -> int:
        return self.driver

    def _cudaGetLastError(self) -> None:
        pass

    def _cudaGetDeviceProperties(self, index: int) -> SimpleNamespace:
        assert index == 0
        return self.gpu

    def _cudaMemGetInfo(self) -> tuple[int, int]:
        return self.total - sum(map(len, self.memory.values())), self.total

    def _cudaMalloc(self, size: int) -> int:
        assert self.recording is None, "allocating breaks a capture"
        address = self._fresh()
        self.memory[address] = np.full(size, 0xFF, np.uint8)
        return address

    def _cudaFree(self, address: int) -> None:
        assert not self.queue, "freed while work was under way"
        del self.memory[address]

    def _cudaHostAlloc(self, size: int, flags: int) -> int:
        array = np.full(size, 0xFF, np.uint8)
        self.pinned[array.ctypes.data] = array
        return array.ctypes.data

    def _cudaFreeHost(self, address: int) -> None:
        del self.pinned[address]

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:
        stream = self._fresh()
        self.streams.add(stream)
        return stream

    def _cudaStreamDestroy(self, stream: int) -> None:
        self.streams.remove(stream)

    def _cudaStreamSynchronize(self, stream: int) -> None:
        assert self.recording is None, "waiting breaks a capture"
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert self.recording is None and not self.queue
        self.recording = []

    def _cudaStreamEndCapture(self, stream: int) -> int:
        assert self.recording is not None
        graph = self._fresh()
        self.graphs[graph], self.recording = self.recording, None
        return graph

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        instance = self._fresh()
        self.graphs[instance] = self.graphs[graph]
        return instance

    def _cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    _cudaGraphExecDestroy = _cudaGraphDestroy

    def _cudaGraphLaunch(self, graph: int, stream: int) -> None:
        for work in self.graphs[graph]:
            self.enqueue(work, stream)

    def _cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> None:
        self.enqueue(lambda: self.at(address, size).fill(value), stream)

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        host = target if kind == 2 else source
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host))

        def copy() -> None:
            if kind == 2:
                array[:] = self.at(source, size)
            else:
                self.at(target, size)[:] = array

        self.enqueue(copy, stream)

    def _cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        rows: int,
        kind: int,
        stream: int,
    ) -> None:
        assert kind == 3 and width <= min(target_pitch, source_pitch)

        def copy() -> None:
            for row in range(rows):
                self.at(target + row * target_pitch, width)[:] = self.at(source + row * source_pitch, width)

        self.enqueue(copy, stream)
