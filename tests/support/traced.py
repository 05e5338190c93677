"""Traces of step graphs shared by all tests, workers and runs: a trace takes seconds and depends on no weight.

What it depends on is hashed: the source files, the libraries, and what the exporter is given. The numbers that a graph
is traced with (which ids are barred, the angles of positions) are put in anew. A trace is remembered in a folder under
pytest's cache; another worker's file is whole, since it comes by a rename.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from torch._subclasses.fake_tensor import FakeTensor
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.graph import step_graph

ROOT = Path(__file__).parents[2]
NUMBERS = ("barred", "cos", "sin")  # the module's tensors that are no weights
LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript")
Translated = tuple[ir.Model, tuple[str, ...]]


def share_traces(folder: Path) -> None:
    """Lets `export.graph.step_graph` take the traces in `folder` and add its own."""
    own, real = sources(), step_graph.translate
    remember_registries()

    def translate(*given: Any) -> Translated:
        file = folder / f"{key(own, *given)}.onnx"
        if not file.exists():
            with pause_collector():
                keep(real(*given), given[0], file)
        return recall(file, given[0])

    step_graph.translate = translate


def remember_registries() -> None:
    """Builds the exporter's table of operators once per opset, not once per trace, of which that is a sixth."""
    build = functools.cache(ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(build)  # a cache would take the instance for the opset


@contextmanager
def pause_collector() -> Iterator[None]:
    """Pauses the garbage collector, which takes a sixth of a trace and finds next to nothing in it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def sources() -> str:
    """A hash of what a trace is made by."""
    digest = hashlib.sha256()
    for name in LIBRARIES:
        digest.update(importlib.metadata.version(name).encode())
    for folder in ("runtime", "train", "export"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def key(own: str, step: step_graph.StepGraph, *rest: Any) -> str:
    """A hash of what a trace is made of; of tensors it is their names, shapes and types."""
    opset, names, inputs, axes, outputs = rest
    attention, first = step.layers[0].self_attn, step.layers[0].input_layernorm
    functions = [getattr(each, "__qualname__", repr(each)) for each in (step.frame, step.argmax, attention.attend)]
    functions += [inspect.getsource(first.norm)]  # a test may have one of its own
    plain = {name: value for name, value in vars(step).items() if isinstance(value, bool | int)}
    told = [own, opset, list(names), [(str(each.shape), str(each.dtype)) for each in inputs], list(axes), list(outputs)]
    digest = hashlib.sha256(json.dumps([*told, functions, plain, str(attention.config), str(step.dtype)]).encode())
    for name, tensor in step.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        assert isinstance(tensor.data, FakeTensor) != (name in NUMBERS), name
    return digest.hexdigest()


def keep(made: Translated, step: step_graph.StepGraph, file: Path) -> None:
    """Writes a trace; initializers without a content get zeros, and their names into the metadata."""
    model, fake = made
    for name in NUMBERS:  # no optimization has made them into something else
        if (value := model.graph.initializers.get(name)) is not None and value.const_value is not None:
            np.testing.assert_array_equal(value.const_value.numpy(), getattr(step, name).numpy())
    for name in fake:
        value = model.graph.initializers[name]
        assert value.shape is not None and value.dtype is not None
        value.const_value = ir.Tensor(np.zeros(value.shape.numpy(), value.dtype.numpy()), value.dtype, name=name)
    model.metadata_props["fake"] = json.dumps(fake)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, part)
    part.replace(file)


def recall(file: Path, step: step_graph.StepGraph) -> Translated:
    """A trace as `export.graph.step_graph.translate` returned it."""
    model = ir.load(file)
    fake = tuple(json.loads(model.metadata_props.pop("fake")))
    for name in fake:
        model.graph.initializers[name].const_value = None
    for name in NUMBERS:
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = ir.Tensor(getattr(step, name).numpy(), name=name)
    return model, fake
