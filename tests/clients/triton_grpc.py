"""Triton's own client for Python, unmodified, over gRPC: the requests of a JSON list, one after the other.

Usage: triton_grpc.py HOST:PORT REQUESTS. Prints a JSON list with, per request, its responses as [text, finish reason,
whether Triton calls it the final one], and after them the error's text, if there is one. "leave" cancels a request
after its first response.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput

TYPES = {
    "text_input": ("BYTES", np.object_), "input_ids": ("INT64", np.int64), "max_tokens": ("INT32", np.int32),
    "threshold": ("FP64", np.float64), "stream": ("BOOL", np.bool_),
}  # fmt: skip


def tensors(request: dict[str, Any]) -> list[InferInput]:
    made = []
    for name, value in request.items():
        kind, dtype = TYPES[name]
        array = np.array(value if isinstance(value, list) else [value], dtype)
        made.append(InferInput(name, array.shape, kind))
        made[-1].set_data_from_numpy(array)
    return made


def answer(client: InferenceServerClient, request: dict[str, Any]) -> list[Any]:
    received: queue.Queue[Any] = queue.Queue()
    leave, given, found = request.pop("leave", False), request.pop("given", None), list[Any]()
    client.start_stream(lambda result, error: received.put((result, error)))
    client.async_stream_infer("student", tensors(request), parameters=given)
    while not found or not found[-1][2]:
        result, error = received.get(timeout=120)
        if error is not None:
            found.append(error.message())
            break
        final = result.get_response().parameters["triton_final_response"].bool_param
        text, finish = (result.as_numpy(name)[0].decode() for name in ("text_output", "finish_reason"))
        found.append([text, finish, final])
        if leave:
            client.stop_stream(cancel_requests=True)
    client.stop_stream()
    return found


if __name__ == "__main__":
    with InferenceServerClient(sys.argv[1]) as client:
        print(json.dumps([answer(client, request) for request in json.loads(sys.argv[2])]))
