"""A file of torch.save, read as plain values: nothing in it runs, and nothing takes more memory than its bytes."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from runtime.errors import UserError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read(path: Path) -> Any:
    """What torch.save wrote. Raises UserError, in one line, for anything else."""
    try:
        _check(path)
        with warnings.catch_warnings():  # torch remarks on foreign files, but one line is what a refusal takes
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a plain checkpoint: reading it would run code or it is damaged, so it was not read; "
            "expected a file written by train.*"
        ) from None
    except Exception as error:  # torch lets through whatever its parts raise over damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is not a checkpoint ({reason}); expected a file written by train.*") from None


def _check(path: Path) -> None:
    """Raises ValueError for an archive that is compressed or claims more bytes than the file has: torch writes none."""
    try:
        with ZipFile(path) as archive:
            parts = archive.infolist()
    except BadZipFile:
        raise ValueError("no zip archive; older formats are bare pickles, which can run code") from None
    size = path.stat().st_size
    if any(part.compress_type != ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise ValueError("its parts are compressed or overlap")


def plain_tensors(weights: Any, size: int) -> bool:
    """Whether these are tensors by name, each whole and of floats, that fit together into a file of `size` bytes.

    A tensor read from a file may be a view with strides of 0, sparse, or without memory: tiny there and vast in use.
    """
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        return False
    whole = (
        isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        and tensor.dtype in FLOATS and tensor.is_contiguous()
        for tensor in weights.values()
    )  # fmt: skip
    return all(whole) and sum(tensor.nbytes for tensor in weights.values()) <= size
