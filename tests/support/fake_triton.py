"""A stand-in for `triton_python_backend_utils`, after the README of triton-inference-server/python_backend: what
`export/triton_model.py` calls of it, with what that page forbids refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert array.dtype.type is not np.str_, "use np.object_ for strings"
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def error(self) -> TritonError | None:
        return self._error


class Sender:
    """Keeps what a client would receive. cancelled: called at each look-up with the number of earlier ones."""

    def __init__(self, cancelled: Callable[[int], bool]) -> None:
        self._cancelled, self.looks = cancelled, 0
        self.texts: list[str] = []
        self.finish: list[str] = []
        self.failure: TritonError | None = None
        self.ended = threading.Event()

    def is_cancelled(self) -> bool:
        self.looks += 1
        return self._cancelled(self.looks - 1)

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.ended.is_set(), "nothing may follow the final response"
        if response is not None and response.error() is not None:
            self.failure = response.error()
        elif response is not None:
            sent = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            assert all(array.shape == (1,) and array.dtype == np.object_ for array in sent.values())
            self.texts.append(sent["text_output"][0].decode())
            self.finish.append(sent["finish_reason"][0].decode())
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.ended.set()


class Request:
    """A client's request: the tensors and parameters it sends, and what comes back."""

    def __init__(
        self, cancelled: Callable[[int], bool] = lambda looks: False, given: Mapping[str, Any] | None = None,
        **tensors: Any,
    ) -> None:  # fmt: skip
        self._parameters = json.dumps(dict(given or {}))
        self._inputs: Mapping[str, Tensor] = {name: Tensor(name, np.asarray(v)) for name, v in tensors.items()}
        self.sender = Sender(cancelled)

    def inputs(self) -> Mapping[str, Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return self._parameters

    def get_response_sender(self) -> Sender:
        return self.sender


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return request.inputs().get(name)


class Logger:
    lines: list[str] = []  # noqa: RUF012

    @classmethod
    def log_error(cls, line: str) -> None:
        cls.lines.append(line)
