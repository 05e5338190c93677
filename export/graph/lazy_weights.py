"""Loads the step graph's weights lazily: they are fake in the trace, and read one by one when the graph is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from runtime.errors import NumericalError, UserError
from train.transformer.network import ModelConfig, Transformer

PACKED = re.compile(r"(layers\.\d+\.self_attn\.)qkv_proj(\.\w+)")
INNER = re.compile(r"(layers\.\d+\.)((?:gate|up|down)_proj\.weight)")
SLICE = 8192  # rows whose numbers are checked at a time, since a check takes twice their memory
LAYER = re.compile(r"(?:^|/)layers\.(\d+): ")  # in a node's metadata from the exporter


def make_skeleton(config: ModelConfig) -> Transformer:
    """Returns a model whose weights have shape and dtype but no content, so that a trace takes no memory for them."""
    with torch.device("meta"):
        model = Transformer(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = {name: torch.empty(like.shape) for name, like in model.state_dict().items()}
    model.load_state_dict(fake, assign=True)
    return model


def set_aside(model: ir.Model) -> tuple[str, ...]:
    """Removes the fake contents from a freshly traced model; returns the names of their initializers.

    The model can then be optimized, and no optimization can depend on the weights' values.
    """
    fake = []
    for name, value in model.graph.initializers.items():
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            value.const_value = None
            fake.append(name)
    return tuple(fake)


def name_hidden_states(model: ir.Model) -> None:
    """Names the values between layers, for the proofs: `hidden.0` (the embeddings) to `hidden.{layers}`.

    The nodes must still have the exporter's metadata.
    """
    between: dict[int, ir.Value] = {}
    for node in model.graph:
        if scope := LAYER.search(node.metadata_props.get("namespace", "")):
            if not between and node.inputs[0] is not None:
                between[0] = node.inputs[0]  # a layer begins with its norm
            between[int(scope[1]) + 1] = node.outputs[0]  # and ends with the sum
    for place, value in between.items():
        value.name = f"hidden.{place}"


def attach(model: ir.Model, names: Collection[str], weights: Mapping[str, Tensor]) -> None:
    """Gives the named initializers contents that are read from the checkpoint whenever they are needed.

    Raises UserError if the checkpoint lacks a weight or has an extra one.
    """
    parts = {name: list_sources(name, names) for name in names}
    wanted = {source for each in parts.values() for source in each}
    if odd := sorted(wanted ^ set(weights)):
        what = "lacks" if odd[0] in wanted else "has an extra"
        raise UserError(f"the checkpoint's weights do not fit its config: it {what} {odd[0]}")
    for name in names:
        value = model.graph.initializers[name]
        if value.shape is None or value.dtype is None:
            raise AssertionError(f"{name} was traced without its shape")
        content = partial(read, weights, parts[name], name, value.shape.numpy(), to_torch_dtype(value.dtype))
        value.const_value = ir.LazyTensor(content, value.dtype, value.shape, name=name)


def read_now(model: ir.Model, most: float) -> None:
    """Reads into the model the weights that have at most `most` bytes each."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.LazyTensor) and value.const_value.nbytes <= most:
            value.const_value = value.const_value.raw()


def read(
    weights: Mapping[str, Tensor], parts: Sequence[str], name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> TorchTensor:
    """Returns an initializer's content, made from its parts in the checkpoint.

    Raises UserError if its shape is not `shape`, and NumericalError for numbers that the dtype cannot hold.
    """
    found = weights[parts[0]] if len(parts) == 1 else torch.cat([weights[part] for part in parts])
    narrow = found.to(dtype)
    if dtype == torch.float16 and not all(some.isfinite().all() for some in torch.split(narrow, SLICE)):
        most = f"{found.abs().max():g}"
        raise NumericalError(f"{name} has numbers up to {most}, more than fp16 holds; export fp32, int8 or int4")
    if name.endswith("_proj.weight"):
        narrow = narrow.T  # [in, out], see step_graph.Projection
    if tuple(narrow.shape) != shape:
        what = f"{name} is {list(narrow.shape)}, expected {list(shape)}"
        raise UserError(f"the checkpoint's weights do not fit its config: {what}")
    return TorchTensor(narrow.contiguous(), name=name)


def list_sources(name: str, names: Collection[str]) -> tuple[str, ...]:
    """Returns the checkpoint's names of an initializer's parts, in the order of their rows."""
    if packed := PACKED.fullmatch(name):
        return tuple(f"{packed[1]}{part}_proj{packed[2]}" for part in "qkv")
    if inner := INNER.fullmatch(name):
        return (f"{inner[1]}mlp.{inner[2]}",)
    if name == "head" and "embedding" in names:
        return ("lm_head.weight",)
    return ("embed_tokens.weight",) if name in ("head", "embedding") else (name,)  # one table has either name
