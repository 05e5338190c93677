"""A pretended device: its tensors are in this memory, but mixed with others they are refused as a GPU's would be.

python tests/support/far.py '["train.teacher --out a.pt", ...]'    runs the commands with that device
"""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "far"
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Far(torch.Tensor):
    """A tensor there; `near` is what it holds."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.size(), strides=near.stride(), dtype=near.dtype, device=f"{NAME}:0"
        )
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(operator, args, kwargs or {})


class Here(torch.Generator):
    """A generator of this memory, whatever device is requested."""

    def __new__(cls, device: object = None) -> Here:
        return super().__new__(cls)

    def __init__(self, device: object = None) -> None:
        super().__init__()


class Mode(TorchDispatchMode):
    """Within it tensors are made there, and moved there and back."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(operator, args, kwargs or {})


def dispatch(operator: Any, args: Any, named: dict[str, Any]) -> Any:
    """The operator's outcome on what the tensors hold, on the requested device or that of its inputs."""
    inputs = [each for each in tree.tree_leaves((args, named)) if isinstance(each, Tensor)]
    wanted = named.get("device")
    there = any(isinstance(each, Far) for each in inputs) if wanted is None else torch.device(wanted).type == NAME
    if any(isinstance(each, Far) for each in inputs) and operator not in COPIES:
        # An index may be on another device, and so may a number.
        checked = [args[0], *args[2:3]] if operator in INDEXED else inputs
        if mixed := [tuple(each.shape) for each in checked if not isinstance(each, Far) and each.dim()]:
            raise RuntimeError(f"{operator}: tensors on two devices, not there {mixed}")
    named = named if wanted is None else {**named, "device": torch.device("cpu")}
    held = tree.tree_map(lambda each: each.near if isinstance(each, Far) else each, (args, named))
    out = operator(*held[0], **held[1])
    if operator is aten.copy_.default or operator._schema.name.endswith("_"):
        return args[0] if operator._schema.returns else None
    return tree.tree_map(lambda each: Far(each) if there and type(each) is Tensor else each, out)


def main(lines: list[str]) -> int:
    """Runs train commands with the device; how many could not be run. Without autocast, and with generators of here."""
    _setup_privateuseone_for_python_backend(NAME)  # before the first backward, which counts the devices
    from train import cli_options, collect, distill, teacher

    mains = {"train.teacher": teacher.main, "train.distill": distill.main, "train.collect": collect.main}
    cli_options.DEVICE_OPTION[1]["choices"] = ("cpu", NAME)
    torch.Generator = Here  # type: ignore[misc]
    torch.autocast = lambda *_, **__: nullcontext()  # type: ignore[assignment, misc]
    failed = 0
    with Mode():
        assert (torch.ones(2, 3).to(NAME) * 2)[torch.tensor([True, False])].sum().item() == 6
        try:
            torch.ones(2, 3).to(NAME) + torch.ones(3)
        except RuntimeError as error:
            assert "two devices" in str(error)
        else:
            raise AssertionError("mixed devices pass")
        for name, *words in map(str.split, lines):
            try:
                failed += mains[name]([*words, "--device", NAME]) != 0
            except Exception:
                traceback.print_exc()
                failed += 1
    return failed


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main(json.loads(sys.argv[1])))
