"""Lets several processes of torchrun train as one: shards the model, divides the batch, and sums over processes.

Without torchrun there is one process, whose part is the whole, and torch.distributed is not started.
Models are sharded by FSDP2's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277). Gradients are added up, not averaged:
each process computes its own part of one loss, and the parts may have different numbers of tokens.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runtime.cli import FAILED, MISTAKE
from runtime.cli import run as run_command
from runtime.errors import DeviceError, UserError

from .device import send
from .host_memory import bound_kernel_caches
from .torch_backend import limit_threads
from .transformer.network import Transformer

PATIENCE = 5.0  # seconds that other processes give the first one to report a mistake that all of them found
LONGEST = timedelta(days=1)  # maximum wait for other processes, which may be collecting a whole shard
Rows = TypeVar("Rows", Tensor, Sequence[Any])


def count_processes() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if _is_group() else 1


def get_rank() -> int:
    """Returns the index of this process, from 0."""
    return dist.get_rank() if _is_group() else 0


def run(command: Callable[[], int]) -> int:
    """Runs a command as `runtime.cli.run` does; returns its exit code. Of several processes only the first one prints.

    Another process prints its error after PATIENCE seconds, unless torchrun has ended it by then, because the first
    process ended with the same error.
    """
    limit_threads()
    bound_kernel_caches()
    if _read_torchrun_variable("RANK") == 0:
        return run_command(lambda: _run_with_device_errors(command))
    captured = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(captured):
            code = run_command(lambda: _run_with_device_errors(command))
    except Exception:
        time.sleep(PATIENCE)
        raise
    if code in (FAILED, MISTAKE):
        time.sleep(PATIENCE)
        print(
            f"process {_read_torchrun_variable('RANK')}:",
            *captured.getvalue().splitlines()[-1:],
            file=sys.stderr,
            flush=True,
        )
    return code


@contextmanager
def join_processes(device: str) -> Iterator[None]:
    """Joins torchrun's processes, if there are several, in a group: NCCL with one GPU per process, or gloo on CPUs.

    Raises UserError if there is no GPU for this process.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device is cuda, but PyTorch finds no GPU here; leave it out, or install a CUDA build")
        local, there = _read_torchrun_variable("LOCAL_RANK"), torch.cuda.device_count()
        if local >= there:
            raise UserError(f"there are {there} GPUs for at least {local + 1} processes; give --nproc-per-node {there}")
        torch.cuda.set_device(local)
    if _read_torchrun_variable("WORLD_SIZE", 1) == 1:
        yield
        return
    if device == "cuda":
        dist.init_process_group(
            "nccl", timeout=LONGEST, device_id=torch.device("cuda", _read_torchrun_variable("LOCAL_RANK"))
        )
    else:
        dist.init_process_group("gloo", timeout=LONGEST)
    yield  # no `finally`: after an error here, the barrier would wait for processes that still work
    dist.barrier()  # no process destroys the group while another still uses it
    dist.destroy_process_group()


def check(batch: int, compiled: bool, optimizer: str) -> None:
    """Raises UserError for options that do not work with several processes."""
    if count_processes() > 1 and batch % count_processes():
        raise UserError(f"--batch is {batch} for {count_processes()} processes; expected a multiple of their number")
    if count_processes() > 1 and compiled:
        raise UserError(
            f"--compile was given for {count_processes()} processes; sharded models are not compiled: leave it out"
        )
    if count_processes() > 1 and optimizer == "muon":
        raise UserError(f"--optimizer is muon for {count_processes()} processes; it needs whole matrices: leave it out")


def check_same(values: Mapping[str, Any]) -> None:
    """Raises UserError if the processes' values differ, such as the hashes of files on different machines."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).digest()
    ours = torch.frombuffer(bytearray(digest), dtype=torch.uint8).double()
    if (sum_over_processes(ours) != ours * count_processes()).any().item():
        listed = ", ".join(f"{name} {str(value)[:20]}" for name, value in sorted(values.items()))
        raise UserError(f"the processes differ in their options or files; here they are {listed}: give all the same")


def place(model: Transformer, device: str) -> Transformer:
    """Moves the model to its device in place; several processes shard its parameters by rows, layer by layer.

    Embedding and head stay whole from a forward pass to the next backward pass, because `Transformer.logits` is called
    in between.
    """
    if count_processes() > 1:
        return _shard(model, device)
    if device != "cpu":
        model.to(device)
        model.register_forward_pre_hook(_move_inputs, with_kwargs=True)
    return model


def place_frozen(model: Transformer, device: str) -> Transformer:
    """Does as `place` for a model that is never trained; its embedding and head are whole from now on."""
    placed: Any = place(model, device)
    if count_processes() > 1:
        with torch.no_grad():
            placed(torch.zeros((1, 1), dtype=torch.int64), torch.ones((1, 1), dtype=torch.int64))
    return model


def take_own_rows(rows: Rows) -> Rows:
    """Returns this process's rows of a batch: with n processes every n-th row, so that all get similar lengths."""
    return rows[get_rank() :: count_processes()]


def take_part(mean: Tensor, weight: Tensor | int) -> Tensor:
    """Returns this process's part of a weighted mean over all processes, from its own mean and sum of weights."""
    if count_processes() == 1:
        return mean
    here = torch.as_tensor(weight, dtype=torch.float32, device=mean.device)
    return mean * (here / sum_over_processes(here).clamp_min(1e-6))


def take_mean_part(flags: Tensor) -> float:
    """Returns this process's part of the share of flags that are set, among all processes' flags; NaN without any."""
    if count_processes() == 1:
        return flags.float().mean().item()
    return (flags.sum() / sum_over_processes(torch.tensor(float(flags.numel())))).item()


def sum_over_processes(value: Tensor) -> Tensor:
    """Returns the sum over all processes, without gradients."""
    if count_processes() == 1:
        return value.detach()
    added = value.detach().to(_choose_device(), copy=True)
    dist.all_reduce(added)
    return added.to(value.device)


def add_up(parts: Mapping[str, float]) -> dict[str, float]:
    """Returns each figure summed over all processes."""
    added = sum_over_processes(torch.tensor(list(parts.values()), dtype=torch.float64))
    return dict(zip(parts, added.tolist(), strict=True))


def take_own_part(parameter: nn.Parameter) -> nn.Parameter:
    """Returns this process's part of a parameter: itself or, if sharded, a plain parameter over the shard's memory."""
    return nn.Parameter(_take_local(parameter)) if count_processes() > 1 else parameter


def take_gradients(learned: Mapping[str, nn.Parameter], owned: Mapping[str, nn.Parameter]) -> None:
    """Moves sharded parameters' gradients, already summed over the processes, to what `take_own_part` made of them."""
    if count_processes() == 1:
        return
    for name, parameter in learned.items():
        # FSDP may have moved a shard to pad it, at the first forward pass.
        owned[name].data = _take_local(parameter)
        owned[name].grad = None if parameter.grad is None else _take_local(parameter.grad)
        parameter.grad = None


def clip(owned: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scales the gradients so that the whole model's norm is at most `most`; returns the norm before that."""
    if count_processes() == 1:
        return nn.utils.clip_grad_norm_(owned, most)
    norm = nn.utils.get_total_norm([each.grad for each in owned if each.grad is not None])
    norm = sum_over_processes(norm.square()).sqrt()
    nn.utils.clip_grads_with_norm_(owned, most, norm)
    return norm


def gather_whole(learned: Mapping[str, nn.Parameter], owned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathers tensors sharded like `learned`; returns whole ones on the CPU of the first process, {} in the others."""
    if count_processes() == 1:
        return {name: tensor.cpu() for name, tensor in owned.items()}
    from torch.distributed.tensor import DTensor

    found = {}
    for name, parameter in learned.items():
        sharded: Any = parameter
        part = DTensor.from_local(
            owned[name], sharded.device_mesh, sharded.placements, shape=parameter.shape, stride=parameter.stride()
        )
        tensor = part.full_tensor()
        if get_rank() == 0:
            found[name] = tensor.cpu()
    return found


def choose_rows(length: int) -> slice:
    """Returns this process's rows of a sharded parameter, as torch.chunk divides them."""
    each = -(-length // count_processes())
    return slice(min(get_rank() * each, length), min((get_rank() + 1) * each, length))


def run_in_first_process(act: Callable[[], object]) -> None:
    """Calls `act` in the first process while the others wait; if it raises UserError, all of them do."""
    run_in_every_process(act if get_rank() == 0 else lambda: None)


def run_in_every_process(act: Callable[[], object]) -> None:
    """Calls `act` in every process; if it raises UserError in one of them, all of them do."""
    error = None
    try:
        act()
    except UserError as raised:
        error = raised
    failed = sum_over_processes(torch.tensor(float(error is not None))) if count_processes() > 1 else None
    if error is not None:
        raise error
    if failed is not None and failed.item():
        raise UserError("another process cannot go on; see its message")


def _shard(model: Transformer, device: str) -> Transformer:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device, (count_processes(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    return model


def _move_inputs(
    model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a forward pass's inputs, moved to the device of the model's weights."""
    device = next(model.parameters()).device

    def move(value: Any) -> Any:
        return send(value, device) if isinstance(value, Tensor) else value

    return tuple(map(move, args)), {name: move(value) for name, value in named.items()}


def _take_local(tensor: Any) -> Tensor:
    return tensor.to_local().detach()


def _choose_device() -> str:
    """Returns the device on which the group sums."""
    return "cuda" if _is_group() and dist.get_backend() == "nccl" else "cpu"


def _is_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _read_torchrun_variable(name: str, otherwise: int = 0) -> int:
    """Returns a variable that torchrun set for this process, or `otherwise` without torchrun."""
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    return int(os.environ.get(name, otherwise)) if started else otherwise


def _run_with_device_errors(command: Callable[[], int]) -> int:
    """Returns the command's exit code; raises DeviceError if GPU memory is full or another process left the group."""
    try:
        return command()
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise DeviceError(f"the GPU's memory is full ({reason}); lower --batch, or give the run more GPUs") from None
    except RuntimeError as error:
        if _is_group() and ("gloo" in str(error) or isinstance(error, dist.DistError)):
            reason = str(error).splitlines()[0]
            raise DeviceError(f"another process has ended ({reason}); run the command again to go on") from None
        raise
