"""Reads tensors in safetensors files: the headers at once, the values on access."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.errors import UserError, describe_error

FLOATS = ("F32", "F16", "BF16", "F64")
TensorShape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file, as its header describes it. kind: its dtype under safetensors' name."""

    file: Path
    name: str
    shape: TensorShape
    kind: str

    def read(self) -> Tensor:
        """Returns the values in their stored dtype, as a view of the file, which stays mapped while the view exists."""
        with _open(self.file) as handle:
            return handle.get_tensor(self.name)


def check_stored(stored: StoredTensor, shape: TensorShape) -> None:
    """Raises UserError if the tensor does not have `shape`, the config's, or its values are not plain floats."""
    where = f"{stored.file}: {stored.name}"
    if stored.shape != shape:
        raise UserError(f"{where} is {list(stored.shape)}; by its config it should be {list(shape)}")
    if stored.kind not in FLOATS:
        raise UserError(f"{where} is {stored.kind}, quantized weights are not supported; expected fp32, fp16 or bf16")


def read_header(file: Path) -> list[StoredTensor]:
    """Returns the tensors in a safetensors file. Raises UserError if it is damaged."""
    with _open(file) as handle:
        parts = [(name, handle.get_slice(name)) for name in handle.keys()]  # noqa: SIM118 - it is not a mapping
        return [StoredTensor(file, name, tuple(part.get_shape()), part.get_dtype()) for name, part in parts]


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = describe_error(error, 200)
        raise UserError(f"{file} is truncated or damaged ({reason}); download it again") from None
