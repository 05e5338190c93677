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

ALIGNMENT = 256  # bytes; of addresses: cudaMalloc gives it and TensorRT needs it
BUCKET = 64  # tokens; if a profile takes a range of widths, they are padded to multiples of it, so that shapes repeat

BufferSpec = tuple[type[np.generic], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class OptimizationProfile:
    """Describes an optimization profile of an engine, which is a range of shapes.

    A forward pass with it has `min_width` to `max_width` tokens and up to `max_rows` logits rows per sequence.
    """

    index: int
    min_width: int
    max_width: int
    max_rows: int

    @property
    def has_fixed_width(self) -> bool:
        return self.min_width == self.max_width


def choose_profile(
    profiles: Sequence[OptimizationProfile], width: int, room: int, allow_padding: bool
) -> tuple[OptimizationProfile, int]:
    """Returns the profile for `width` tokens, and the padded width to run it with.

    The smallest padded width wins, and among equal ones a profile of fixed width. room: positions left in the KV cache;
    allow_padding: whether padding tokens, which no token sees, may be added. Raises UserError if no profile takes that
    width.
    """
    options = []
    for profile in profiles:
        padded = width
        if allow_padding:
            padded = max(profile.min_width, min(-(-width // BUCKET) * BUCKET, profile.max_width, room))
        if width <= padded <= room and profile.min_width <= padded <= profile.max_width:
            options.append((padded, not profile.has_fixed_width, profile.index, profile))
    if not options:
        raise UserError(f"no profile of this engine takes {width} tokens with room for {room}; build the engine again")
    padded, _, _, profile = min(options, key=lambda option: option[:3])
    return profile, padded


class PinnedBuffers:
    """Holds arrays that one call copies between host and device: pinned memory, and as much memory on the device.

    specs: type and largest shape of each array, by name. addresses: the arrays' device addresses.
    """

    def __init__(self, cuda: Cuda, specs: Mapping[str, BufferSpec], stack: ExitStack) -> None:
        sizes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (dtype, shape) in specs.items()}
        ends = np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values()]).tolist()
        offsets = dict(zip(sizes, [0, *ends], strict=False))
        self.host = cuda.allocate_pinned(ends[-1])
        stack.callback(cuda.free_pinned, self.host)
        self.device = cuda.allocate(ends[-1])
        stack.callback(cuda.free, self.device)
        self.addresses = {name: self.device + offset for name, offset in offsets.items()}
        self._flat_arrays = {
            name: self.host[offsets[name] : offsets[name] + sizes[name]].view(specs[name][0]) for name in specs
        }

    def get_array(self, name: str, *shape: int) -> NDArray[Any]:
        """Returns an array on the host in this shape, which must not be larger than the one in `specs`."""
        return self._flat_arrays[name][: math.prod(shape)].reshape(shape)


class ProfileRunner:
    """Runs a profile: `feed` writes a forward pass's inputs, `run` runs it, `fetch` reads the results.

    context: an execution context of the engine; `TrtEngine` sets its profile and all addresses. Shapes cannot change
    once a CUDA graph is captured, so every run computes as many top tokens and candidates as the contract has, even if
    none are requested: a step without candidates computes those of a dummy token.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Handle,
        context: Any,
        profile: OptimizationProfile,
        contract: Contract,
        stack: ExitStack,
    ) -> None:
        self._cuda, self._stream, self.context = cuda, stream, context
        self.profile, self.batch = profile, contract.batch
        batch, top_k, candidates = contract.batch, contract.top_k, contract.candidates
        self._dummy_token = contract.eos_ids[0]  # any token that is not barred
        per_token, per_row = (batch, profile.max_width), (batch, profile.max_rows)
        inputs: dict[str, BufferSpec] = {
            "input_ids": (np.int64, per_token),
            "past_length": (np.int64, (batch,)),
            "visible": (np.int64, per_token),
            "rows": (np.int64, per_row),
        }
        outputs: dict[str, BufferSpec] = {
            "token": (np.int64, per_row),
            "confidence": (np.float32, per_row),
            "entropy": (np.float32, per_row),
        }
        if top_k:
            outputs |= {"top_token": (np.int64, (*per_row, top_k)), "top_logprob": (np.float32, (*per_row, top_k))}
        if candidates:
            inputs[CANDIDATE_INPUT] = (np.int64, (*per_row, candidates))
            outputs[CANDIDATE_OUTPUT] = (np.float32, (*per_row, candidates))
        self._candidates = candidates
        self._output_shapes = {name: shape for name, (_, shape) in outputs.items()}
        self.inputs, self.outputs = PinnedBuffers(cuda, inputs, stack), PinnedBuffers(cuda, outputs, stack)
        self._graph: Handle | None = None

    @property
    def has_cuda_graph(self) -> bool:
        """Returns whether a CUDA graph is captured, which `run` then launches."""
        return self._graph is not None

    def feed(self, forward: Forward, width: int, pad_id: int) -> None:
        """Writes the whole batch's inputs, padded to `width` tokens; padding sees one position, no token sees it."""
        token_count, row_count = forward.input_ids.shape[1], forward.rows.shape[1]
        if row_count > self.profile.max_rows:
            raise ValueError(f"{row_count} rows requested of a profile for {self.profile.max_rows}")
        for name, values, padding in (("input_ids", forward.input_ids, pad_id), ("visible", forward.visible, 1)):
            array = self.inputs.get_array(name, self.batch, width)
            array[:, :token_count], array[:, token_count:] = values, padding
        self.inputs.get_array("past_length", self.batch)[:] = forward.past_length
        rows = self.inputs.get_array("rows", self.batch, self.profile.max_rows)
        rows[:, :row_count], rows[:, row_count:] = forward.rows, 0
        if self._candidates:
            tokens = self.inputs.get_array(CANDIDATE_INPUT, self.batch, self.profile.max_rows, self._candidates)
            tokens[:] = self._dummy_token
            if forward.candidates is not None:
                tokens[:, :row_count, : forward.candidates.shape[2]] = forward.candidates

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
        return self.outputs.get_array(name, *self._output_shapes[name])

    def capture(self, stack: ExitStack) -> str | None:
        """Captures the forward pass, which has run once before, as a CUDA graph. Returns None, or why this failed."""
        is_capturable = getattr(self.context, "is_stream_capturable", None)  # only TensorRT for RTX may return False
        try:
            if is_capturable is not None and not call("is_stream_capturable", is_capturable, int(self._stream)):
                return "is_stream_capturable is false, as in older builds; build it again: blockstep export trt"
            self._graph = self._cuda.capture(self._stream, self._enqueue)
        except DeviceError as error:
            self._cuda.forget_error()
            return str(error)
        stack.callback(self._cuda.destroy_graph, self._graph)
        return None

    def _enqueue(self) -> None:
        self._cuda.copy_to_device(self.inputs.device, self.inputs.host, self._stream)
        if not call("execute_async_v3", self.context.execute_async_v3, int(self._stream)):
            raise DeviceError("execute_async_v3 failed: TensorRT did not take the forward pass")
        self._cuda.copy_to_host(self.outputs.host, self.outputs.device, self._stream)
