"""Reads a file of torch.save as plain values; runs no code from it, and refuses values that outgrow the file."""

from __future__ import annotations

import pickle
import pickletools
import warnings
from math import inf
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from runtime.errors import UserError, describe_error

MOST_SHARED = 16  # maximum of reused tuples in a pickle; torch.save writes none
NESTED = "its values are nested without end"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read(path: Path) -> Any:
    """Reads what torch.save wrote. Raises UserError for anything else."""
    try:
        _check(path)
        with warnings.catch_warnings():  # torch warns about foreign files, but the error is to be the only line
            warnings.simplefilter("ignore")
            values = torch.load(path, map_location="cpu", weights_only=True)
        if _count_values(values, {}) > path.stat().st_size:
            raise ValueError(NESTED)
        return values
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is not a plain checkpoint: reading it would run code or it is damaged, so it was not read; "
            "expected a file that blockstep train wrote"
        ) from None
    except Exception as error:  # for a damaged file torch passes on whatever its parts raise
        reason = describe_error(error, 200)
        raise UserError(f"{path} is not a checkpoint ({reason}); expected a file that blockstep train wrote") from None


def _check(path: Path) -> None:
    """Raises ValueError for an archive that torch.save does not write.

    Such are a compressed one, one that claims more bytes than the file has, and one whose values are nested without
    end.
    """
    try:
        with ZipFile(path) as archive:
            parts = archive.infolist()
            size = path.stat().st_size
            if any(part.compress_type != ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
                raise ValueError("its parts are compressed or overlap")
            pickles = [archive.read(part) for part in parts if part.filename.endswith(".pkl")]
    except BadZipFile:
        raise ValueError("not a zip archive; older formats are bare pickles, which can run code") from None
    if any(_count_shared_tuples(content) > MOST_SHARED for content in pickles):
        raise ValueError(NESTED)


def _count_shared_tuples(content: bytes) -> int:
    """Returns how often a pickle uses a tuple that it has built before.

    If each of n tuples has the previous one as both elements, the hash of the last takes time 2**n.
    """
    tuples, before, shared = set(), "", 0
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" in opcode.name and "TUPLE" in before:
            tuples.add(argument)
        shared += "GET" in opcode.name and argument in tuples
        before = opcode.name
    return shared


def _count_values(values: Any, known: dict[int, float]) -> float:
    """Counts values, a shared one once per place that holds it; returns infinity if a value contains itself."""
    if not isinstance(values, dict | list | tuple | set):
        return 1
    if id(values) not in known:
        known[id(values)] = inf
        parts = (*values, *values.values()) if isinstance(values, dict) else values
        known[id(values)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(values)]


def are_plain_tensors(weights: Any, size: int) -> bool:
    """Returns whether `weights` maps names to contiguous float tensors that have at most `size` bytes together.

    A tensor in a file may have strides of 0, be sparse or have no memory: it is tiny in the file, but vast in use.
    """
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        return False
    whole = (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in FLOATS
        and tensor.is_contiguous()
        for tensor in weights.values()
    )
    return all(whole) and sum(tensor.nbytes for tensor in weights.values()) <= size
