"""Gives a graph's files to ONNX Runtime: by path, or as memory if a bundle's files are links.

ONNX Runtime reads external weights only from the folder that the graph's own link points to; in a content-addressed
store the weights are often in another folder.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .no_telemetry import ort


def create_session(model: Path, files: Collection[str], options: ort.SessionOptions, **more: Any) -> Any:
    """Creates a session of a graph; raises what ONNX Runtime raises.

    Args:
        files: the engine's files in the manifest, with its external weights; needed if some are links.
        more: further arguments of `InferenceSession`.
    """
    if not any((model.parent / name).is_symlink() for name in (model.name, *files)):
        return ort.InferenceSession(str(model), options, **more)
    weights = map_weights(options, model.parent, [name for name in files if name != model.name])
    session = ort.InferenceSession(model.read_bytes(), options, **more)
    del weights  # needed until the session was created
    return session


def map_weights(options: ort.SessionOptions, folder: Path, names: Collection[str]) -> list[NDArray[np.uint8]]:
    """Gives a session the files of external weights as memory, so that it reads no other file for them.

    Returns:
        The files' bytes. The caller has to hold them until the session is created: only then does ONNX Runtime copy
        from them, through pointers that do not keep them alive.
    """
    content = [_map_file(folder / name) for name in names]
    if content:
        options.add_external_initializers_from_files_in_memory(list(names), content, [len(part) for part in content])
    # Weights not given as memory are looked for only in this folder, and links that leave the folder are refused.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return content


def _map_file(file: Path) -> NDArray[np.uint8]:
    """Returns a file's bytes [size], memory-mapped if the file system supports it."""
    with open(file, "rb") as handle:
        try:
            return np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except (OSError, ValueError):  # some network file systems cannot; an empty file cannot be mapped either
            return np.frombuffer(handle.read(), np.uint8)
