"""Finds the nodes of an ONNX file that read or write the KV cache, without the package onnx.

The file's protobuf is parsed here, with the field numbers of onnx.proto; weights are skipped.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from ...contract import name_cache_part

MODEL_GRAPH, GRAPH_NODE = 7, 1
INPUT, OUTPUT, NAME, OPERATOR, ATTRIBUTE = 1, 2, 3, 4, 5  # of a node
SUBGRAPHS = (6, 11)  # of an attribute: the bodies of If, Loop and Scan, which see the outer graph's values
KV_CACHE = tuple(name.split(".")[0] + "." for name in name_cache_part(0))  # "past_key_values.", "present."
FIXED = {1: 8, 5: 4}  # bytes, by protobuf's wire type
VARINT, BYTES = 0, 2


def find_cache_nodes(model: Path) -> dict[str, str]:
    """Returns the nodes that read or write the KV cache, in subgraphs too: each operator by its node's name."""
    with model.open("rb") as handle:
        whole = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    graphs = (content for number, content in read_fields(whole) if number == MODEL_GRAPH)
    every = (node for graph in graphs for node in list_nodes(graph))
    return {name: operator for name, operator, values in every if any(v.startswith(KV_CACHE) for v in values)}


def list_nodes(graph: memoryview) -> Iterator[tuple[str, str, list[str]]]:
    """Yields every node's name, operator, and names of inputs and outputs, in subgraphs too."""
    for number, node in read_fields(graph):
        if number != GRAPH_NODE:
            continue
        parts = list(read_fields(node))
        texts = {number: str(content, "utf-8") for number, content in parts if number in (NAME, OPERATOR)}
        values = [str(content, "utf-8") for number, content in parts if number in (INPUT, OUTPUT)]
        yield texts.get(NAME, ""), texts.get(OPERATOR, ""), values
        for number, attribute in parts:
            if number == ATTRIBUTE:
                for kind, subgraph in read_fields(attribute):
                    if kind in SUBGRAPHS:
                        yield from list_nodes(subgraph)


def read_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields number and content of each field of a protobuf message; a varint's content is its undecoded bytes."""
    at = 0
    while at < len(message):
        key, at = read_varint(message, at)
        kind = key & 7
        if kind == BYTES:
            size, at = read_varint(message, at)
        elif kind == VARINT:
            size = read_varint(message, at)[1] - at
        elif kind in FIXED:
            size = FIXED[kind]
        else:
            raise ValueError(f"protobuf's wire type {kind} at byte {at}: not an ONNX file")
        yield key >> 3, message[at : at + size]
        at += size


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Returns the varint at byte `at` (seven bits per byte, lowest first) and the position after it."""
    number, shift = 0, 0
    while message[at] > 127:
        number |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return number | message[at] << shift, at + 1
