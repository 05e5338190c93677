"""Writes a graph to disk: the .onnx file and, for a large graph, a file of its weights, each named by its hash."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
import onnx_ir as ir
from tqdm import tqdm

from export.staging import check_disk_space
from runtime.bundle.store import hash_file, make_content_name

from .lazy_weights import read_now

EXTERNAL = 64 << 20  # bytes of weights above which they get a file of their own, as protobuf demands from 2 GB on
INLINE = 256  # bytes up to which a tensor stays in the graph even if the weights have a file of their own


def write_graph(model: ir.Model, folder: Path, stem: str, external: int = EXTERNAL) -> list[Path]:
    """Writes the graph into `folder`, its weights one after the other; returns its files, the .onnx file first.

    external: bytes of weights above which they get a .data file of their own. Raises UserError if the disk has no room
    for the weights, and what reading the weights raises.
    """
    plain, data = folder / "model.onnx", folder / "weights.data"
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    size = sum(tensor.nbytes for tensor in tensors)
    check_disk_space(folder, size)
    if size <= external:
        read_now(model, math.inf)
        ir.save(model, plain)
        return [name_by_content(plain, stem)]
    # Tensors that stay in the graph are read first: the serializer would wrap an error that reading raises.
    read_now(model, INLINE)
    with tqdm(total=sum(tensor.nbytes > INLINE for tensor in tensors), unit="tensor", disable=None) as bar:
        ir.save(model, plain, external_data=data.name, size_threshold_bytes=INLINE, callback=lambda *_: bar.update())
    data = name_by_content(data, stem)
    # The .onnx file refers to its data file by name, so the data file is renamed first.
    moved = onnx.load(plain, load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    onnx.save(moved, plain)
    return [name_by_content(plain, stem), data]


def name_by_content(file: Path, stem: str) -> Path:
    """Renames a file by its content's hash, as bundles name files; returns the new path."""
    return file.rename(file.with_name(make_content_name(stem, file.suffix, hash_file(file))))
