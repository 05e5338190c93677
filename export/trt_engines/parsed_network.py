"""Inspects what TensorRT's parser made of a step graph, and removes the multiplications by 1 that it added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runtime.contract import name_cache_part

NETWORK_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}  # by their names in TensorRT


@dataclass(frozen=True, slots=True)
class Network:
    """Holds what TensorRT's parser made of a graph.

    masked: attentions with a mask; updates: layers that write a KV cache; capacity, dtype: of the KV cache, None and
    float32 without one.
    """

    strongly_typed: bool
    attentions: int
    masked: int
    updates: int
    batch: int
    capacity: int | None
    dtype: str


def inspect(trt: Any, network: Any) -> Network:
    """Returns what `check_network` checks, and the graph's sizes."""
    attentions = [layer for layer in list_layers(network) if get_kind(layer) == "ATTENTION_INPUT"]
    tensors = {tensor.name: tensor for tensor in (network.get_input(i) for i in range(network.num_inputs))}
    cache = tensors.get(name_cache_part(0)[0])
    return Network(
        network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        len(attentions),
        sum(layer.num_inputs > 3 and layer.get_input(3) is not None for layer in attentions),
        sum(get_kind(layer) == "KV_CACHE_UPDATE" for layer in list_layers(network)),
        tensors["input_ids"].shape[0],
        None if cache is None else cache.shape[2],
        "float32" if cache is None else NETWORK_DTYPES[cache.dtype.name],
    )


def remove_unit_scales(trt: Any, network: Any) -> None:
    """Connects queries and keys directly to attention if the parser multiplies them by the operator's `scale` of 1.

    For keys, that multiplies the whole KV cache at every step.
    """
    makers = {layer.get_output(i).name: layer for layer in list_layers(network) for i in range(layer.num_outputs)}
    for attention in list_layers(network):
        if get_kind(attention) == "ATTENTION_INPUT":
            for place in (0, 1):
                plain = _undo_scale(trt, makers, attention.get_input(place))
                if plain is not None:
                    attention.set_input(place, plain)


def _undo_scale(trt: Any, makers: dict[str, Any], tensor: Any) -> Any | None:
    """Returns the other factor of a product with ones, None if `tensor` is not such a product."""
    product = makers.get(tensor.name)
    if product is None or get_kind(product) != "ELEMENTWISE":
        return None
    product.__class__ = trt.IElementWiseLayer
    constant = makers.get(product.get_input(1).name)
    while constant is not None and get_kind(constant) in ("CAST", "SHUFFLE"):  # added by the parser to match the keys
        constant = makers.get(constant.get_input(0).name)
    if product.op != trt.ElementWiseOperation.PROD or constant is None or get_kind(constant) != "CONSTANT":
        return None
    constant.__class__ = trt.IConstantLayer
    return product.get_input(0) if (constant.weights == 1).all() else None


def list_layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def get_kind(layer: Any) -> str:
    """Returns the name of a layer's type, to compare by: older versions of TensorRT lack the newer types."""
    return str(layer.type.name)
