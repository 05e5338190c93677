"""Runs one optimization profile of a TensorRT engine, with its own context, buffers and CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backend import Forward, Proposal
from ...contract import CANDIDATE_INPUT, CANDIDATE_OUTPUT, REDUCED, TOP, Contract
from ...errors import DeviceError, UserError
from .bindings import call
from .cuda import Cuda, Handle

ALIGNED = 256  # bytes; the alignment of addresses that cudaMalloc gives and TensorRT needs
BUCKET = 64  # tokens; in a profile with a range, widths are padded to multiples of it, so that few shapes occur

BufferSpec = tuple[type[np.generic], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Widths:
    """Describes a profile: it takes `least` to `most` tokens and up to `rows` logits rows per sequence and pass."""

    index: int
    least: int
    most: int
    rows: int

    @property
    def fixed(self) -> bool:
        return self.least == self.most


def choose_profile(profiles: Sequence[Widths], width: int, room: int, padding: bool) -> tuple[Widths, int]:
    """Returns the profile for `width` tokens, and the padded width to run it with.

    The smallest padded width wins, and of equal ones a fixed profile. room: positions left in the KV cache; padding:
    whether padding tokens, which no token sees, may be added. Raises UserError if no profile takes that width.
    """
    options = []
    for profile in profiles:
        padded = width
        if padding:
            padded = max(profile.least, min(-(-width // BUCKET) * BUCKET, profile.most, room))
        if width <= padded <= room and profile.least <= padded <= profile.most:
            options.append((padded, not profile.fixed, profile.index, profile))
    if not options:
        raise UserError(f"no profile of this engine takes {width} tokens with room for {room}; build the engine again")
    padded, _, _, profile = min(options, key=lambda option: option[:3])
    return profile, padded


class PinnedBuffers:
    """Holds arrays that are copied between host and device in one call: pinned memory, and as much on the device.

    specs: type and largest shape per array. addresses: the arrays' device addresses.
    """

    def __init__(self, cuda: Cuda, specs: Mapping[str, BufferSpec], stack: ExitStack) -> None:
        sizes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (dtype, shape) in specs.items()}
        ends = np.cumsum([-(-size // ALIGNED) * ALIGNED for size in sizes.values()]).tolist()
        offsets = dict(zip(sizes, [0, *ends], strict=False))
        self.host = cuda.pin(ends[-1])
        stack.callback(cuda.unpin, self.host)
        self.device = cuda.allocate(ends[-1])
        stack.callback(cuda.free, self.device)
        self.addresses = {name: self.device + offset for name, offset in offsets.items()}
        self._flat = {
            name: self.host[offsets[name] : offsets[name] + sizes[name]].view(specs[name][0]) for name in specs
        }

    def get_array(self, name: str, *shape: int) -> NDArray[Any]:
        """Returns an array on the host in this shape, which is no larger than the one in `specs`."""
        return self._flat[name][: math.prod(shape)].reshape(shape)


class ProfileRunner:
    """Runs a profile: `feed` writes a forward pass's inputs, `run` runs it, `fetch` reads the results.

    context: an execution context of the engine; `TrtEngine` sets its profile and all addresses. Every run computes the
    contract's number of top tokens and of candidates, requested or not, because shapes cannot change once a CUDA graph
    is captured: a step without candidates computes those of dummy tokens.
    """

    def __init__(
        self, cuda: Cuda, stream: Handle, context: Any, widths: Widths, contract: Contract, stack: ExitStack
    ) -> None:
        self._cuda, self._stream, self.context = cuda, stream, context
        self.widths, self.batch = widths, contract.batch
        batch, top_k, candidates = contract.batch, contract.top_k, contract.candidates
        self._dummy = contract.eos_ids[0]  # any token that is not barred
        wide, logits = (batch, widths.most), (batch, widths.rows)
        inputs: dict[str, BufferSpec] = {
            "input_ids": (np.int64, wide),
            "past_length": (np.int64, (batch,)),
            "visible": (np.int64, wide),
            "rows": (np.int64, logits),
        }
        outputs: dict[str, BufferSpec] = {
            "token": (np.int64, logits),
            "confidence": (np.float32, logits),
            "entropy": (np.float32, logits),
        }
        if top_k:
            outputs |= {"top_token": (np.int64, (*logits, top_k)), "top_logprob": (np.float32, (*logits, top_k))}
        if candidates:
            inputs[CANDIDATE_INPUT] = (np.int64, (*logits, candidates))
            outputs[CANDIDATE_OUTPUT] = (np.float32, (*logits, candidates))
        self._candidates = candidates
        self._shapes = {name: shape for name, (_, shape) in outputs.items()}
        self.inputs, self.outputs = PinnedBuffers(cuda, inputs, stack), PinnedBuffers(cuda, outputs, stack)
        self._graph: Handle | None = None

    @property
    def replays(self) -> bool:
        """Returns whether the profile's forward passes replay a CUDA graph."""
        return self._graph is not None

    def feed(self, forward: Forward, width: int, pad_id: int) -> None:
        """Writes the whole batch's inputs, padded to `width` tokens; padding sees one position and is never seen."""
        own, logits = forward.input_ids.shape[1], forward.rows.shape[1]
        if logits > self.widths.rows:
            raise ValueError(f"{logits} rows requested of a profile for {self.widths.rows}")
        for name, given, rest in (("input_ids", forward.input_ids, pad_id), ("visible", forward.visible, 1)):
            array = self.inputs.get_array(name, self.batch, width)
            array[:, :own], array[:, own:] = given, rest
        self.inputs.get_array("past_length", self.batch)[:] = forward.past_length
        rows = self.inputs.get_array("rows", self.batch, self.widths.rows)
        rows[:, :logits], rows[:, logits:] = forward.rows, 0
        if self._candidates:
            tokens = self.inputs.get_array(CANDIDATE_INPUT, self.batch, self.widths.rows, self._candidates)
            tokens[:] = self._dummy
            if forward.candidates is not None:
                tokens[:, :logits, : forward.candidates.shape[2]] = forward.candidates

    def run(self) -> None:
        """Copies the inputs in, computes, copies the outputs out, and waits until all is done."""
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)
        self._cuda.synchronize(self._stream)

    def fetch(self, rows: int, top: bool = False, candidates: int = 0) -> Proposal:
        """Returns what the last run predicted for the first `rows` logits rows. [batch, rows]

        top: whether to return top tokens too; candidates: how many candidates' log-probabilities to return.
        """
        names = (*REDUCED, *(TOP if top else ()))
        out = Proposal(*(self._get_output(name)[:, :rows].copy() for name in names))
        if not candidates:
            return out
        return replace(out, candidate_logprob=self._get_output(CANDIDATE_OUTPUT)[:, :rows, :candidates].copy())

    def _get_output(self, name: str) -> NDArray[Any]:
        return self.outputs.get_array(name, *self._shapes[name])

    def capture(self, stack: ExitStack) -> str | None:
        """Captures the forward pass as a CUDA graph, after it has run once. Returns None, or why that failed."""
        capturable = getattr(self.context, "is_stream_capturable", None)  # only TensorRT for RTX may return False
        try:
            if capturable is not None and not call("is_stream_capturable", capturable, int(self._stream)):
                return "is_stream_capturable is false, as in older builds; build it again: blockstep export trt"
            self._graph = self._cuda.capture(self._stream, self._enqueue)
        except DeviceError as error:
            self._cuda.forget_error()
            return str(error)
        stack.callback(self._cuda.destroy_graph, self._graph)
        return None

    def _enqueue(self) -> None:
        self._cuda.to_device(self.inputs.device, self.inputs.host, self._stream)
        if not call("execute_async_v3", self.context.execute_async_v3, int(self._stream)):
            raise DeviceError("execute_async_v3 failed: TensorRT did not take the forward pass")
        self._cuda.to_host(self.outputs.host, self.outputs.device, self._stream)
