"""How ONNX Runtime is given a graph's files: by their path, or as memory if a bundle's files are links.

ONNX Runtime reads external weights only from the folder that the graph's own link leads to, which in a
content-addressed store is often another one than that of the weights.
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
        files: what the manifest names next to the model, its external weights among them; needed if some are links.
        more: further arguments of `InferenceSession`.
    """
    if not any((model.parent / name).is_symlink() for name in (model.name, *files)):
        return ort.InferenceSession(str(model), options, **more)
    weights = map_weights(options, model.parent, [name for name in files if name != model.name])
    session = ort.InferenceSession(model.read_bytes(), options, **more)
    del weights  # which had to live until here
    return session


def map_weights(options: ort.SessionOptions, folder: Path, names: Collection[str]) -> list[NDArray[np.uint8]]:
    """Gives a session the files of external weights as memory, and with them no other file.

    Returns:
        The files' bytes, which the caller has to hold until the session is created: ONNX Runtime copies what it needs
        then, from pointers that keep nothing alive.
    """
    content = [_mapped(folder / name) for name in names]
    if content:
        options.add_external_initializers_from_files_in_memory(list(names), content, [len(part) for part in content])
    # Without such a table, weights are looked for here alone, and links that leave the folder are refused.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return content


def _mapped(file: Path) -> NDArray[np.uint8]:
    """Returns the bytes of a file [size], mapped if its file system can."""
    with open(file, "rb") as handle:
        try:
            return np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except (OSError, ValueError):  # some network file systems cannot; an empty file cannot be mapped either
            return np.frombuffer(handle.read(), np.uint8)
