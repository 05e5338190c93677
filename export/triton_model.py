"""Serves a bundle through Triton's Python backend. export.triton copies this file into the repository that it writes.

Each block is sent once it is final; an answer's last block carries the final flag. The interface is the one that
triton-inference-server/python_backend documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from blockstep import Block, DecodeOptions, DeviceError, Model, NumericalError, UserError, load
from blockstep.decoding.options import Prompt
from blockstep.model import ModelPool, blocks, yield_while_wanted

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
INPUTS = ("text_input", "input_ids", "max_tokens", "threshold", "stream")
# Triton passes a field that is not an input as a parameter. These parameters would change the answer: `blockstep serve`
# reads them, or other servers use them for max_tokens. Others are not refused: headers may be forwarded as parameters.
REFUSED = (
    "mode", "temperature", "stop", "logprobs", "top_logprobs", "stream_canvas", "tools", "response_format",
    "max_new_tokens", "max_completion_tokens", "max_output_tokens", "n_predict",
)  # fmt: skip


@dataclass(frozen=True)
class TritonRequest:
    """Holds a request, as read from its tensors."""

    prompt: Prompt
    options: DecodeOptions
    stream: bool


class TritonPythonModel:
    """Holds one loaded engine. Its workers are threads, each with its own KV cache, that share the weights."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the bundle next to this file with the parameters of config.pbtxt."""
        configured = json.loads(args["model_config"])["parameters"]
        parameters = {name: value["string_value"] for name, value in configured.items()}
        threads, workers = (int(parameters[name]) if name in parameters else None for name in ("threads", "workers"))
        model = load(
            Path(__file__).parent / "bundle",
            engine=parameters.get("engine"),
            threads=threads,
            verify=parameters["verify"],
            device=parameters["device"],
            trust_engine=parameters["trust_engine"] == "true",
            allow_spinning=parameters["allow_spinning"] == "true",
        )
        self._pool = ModelPool(model, workers)
        self._threads = ThreadPoolExecutor(len(self._pool.models))

    def execute(self, requests: list[Any]) -> None:
        """Hands each request to an idle worker; waits while no worker is idle, so that requests queue in Triton."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                wanted = read_request(request)
            except UserError as error:
                _fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            self._threads.submit(self._answer, self._pool.take(), wanted, sender)

    def finalize(self) -> None:
        """Waits for the answers in progress."""
        self._threads.shutdown()

    def _answer(self, model: Model, request: TritonRequest, sender: Any) -> None:
        try:
            send_answer(model, request, sender)
        except UserError as error:
            _fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)
        except (NumericalError, DeviceError) as error:
            _fail(sender, str(error), pb_utils.TritonError.INTERNAL)
        except Exception as error:  # a request without its final flag would never end for its client
            pb_utils.Logger.log_error(f"an answer failed: {error!r}")
            _fail(sender, "the answer failed inside the server; its log has the reason", pb_utils.TritonError.INTERNAL)
        finally:
            self._pool.give(model)


def send_answer(model: Model, request: TritonRequest, sender: Any) -> None:
    """Decodes one request; sends each block (`stream`) or the whole answer. Raises what `Model.steps` raises."""
    pieces, finish = [], "cancelled"
    for block in _generate_wanted(model, request, sender):
        pieces.append(block.text)
        if block.result is not None:
            finish = block.result.finish
        elif request.stream:
            sender.send(_make_response(pieces.pop(), ""))
    if finish == "cancelled":
        return _fail(sender, "the request was cancelled", pb_utils.TritonError.CANCELLED)
    sender.send(_make_response("".join(pieces), finish), flags=FINAL)


def read_request(request: Any) -> TritonRequest:
    """Reads the request from its tensors. Raises UserError for a tensor of the wrong shape, for a prompt that is not
    text or ids, and for a parameter that would change the answer."""
    check_parameters(json.loads(request.parameters()))
    text, ids = _read_tensor(request, "text_input"), _read_tensor(request, "input_ids")
    if (text is None) == (ids is None):
        raise UserError("expected either text_input or input_ids; send one of the two")
    max_tokens, threshold, stream = (_read_one(request, name) for name in ("max_tokens", "threshold", "stream"))
    return TritonRequest(
        _decode_text(_read_single("text_input", text)) if ids is None else ids.reshape(-1).tolist(),
        DecodeOptions(max_new_tokens=_limit(max_tokens), threshold=None if threshold is None else float(threshold)),
        bool(stream),
    )


def check_parameters(given: Mapping[str, Any]) -> None:
    """Raises UserError for a parameter of `REFUSED`, unless its value changes nothing, such as a temperature of 0."""
    for name in REFUSED:
        if given.get(name):
            raise UserError(f"{name} is not supported here; leave it out (the inputs are {', '.join(INPUTS)})")


def _limit(max_tokens: Any) -> int | None:
    """Returns the maximum of new tokens; None if not given or -1, as over HTTP."""
    if max_tokens is None or max_tokens == -1:
        return None
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}; expected at least 1")
    return int(max_tokens)


def _generate_wanted(model: Model, request: TritonRequest, sender: Any) -> Iterator[Block]:
    """Yields the answer's blocks until the request is cancelled, which is checked after each forward pass."""
    steps = model.steps(request.prompt, request.options)
    try:
        yield from blocks(yield_while_wanted(steps, lambda: not sender.is_cancelled()), model.tokenizer)
    finally:
        steps.close()


def _read_tensor(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _read_one(request: Any, name: str) -> Any:
    values = _read_tensor(request, name)
    return None if values is None else _read_single(name, values)


def _read_single(name: str, values: Any) -> Any:
    if values.size != 1:
        raise UserError(f"{name} has {values.size} elements; expected one")
    return values.reshape(-1)[0]


def _decode_text(content: Any) -> str:
    try:
        return content.decode("utf-8") if isinstance(content, bytes) else str(content)
    except UnicodeDecodeError as error:
        raise UserError(f"text_input is not UTF-8 ({error.reason}); send text, or input_ids") from None


def _make_response(text: str, finish: str) -> Any:
    values = {"text_output": text, "finish_reason": finish}
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.array([value.encode()], np.object_)) for name, value in values.items()]
    )


def _fail(sender: Any, message: str, code: int) -> None:
    error = pb_utils.TritonError(" ".join(message.split()), code)
    sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
