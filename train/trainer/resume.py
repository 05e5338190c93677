"""Stores the state from which a stopped training run resumes: in one file, or in one shard per process and a manifest.

A single process writes `<out>.resume` with torch.save; it is read with weights_only. Several processes write a manifest
there, a line of JSON with STEP and N of `<out>.resume.shards/STEP-RANK-of-N.safetensors`; each shard has its process's
rows of every tensor. The manifest is replaced in one rename once all shards are complete; then older shards are
removed. Any number of processes can read either form. Neither has code in it: torch.distributed.checkpoint is not used,
because its metadata is a pickle.
"""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime import files
from runtime.errors import UserError, describe_error
from train import distributed
from train.storage.output_files import replace_file
from train.storage.student_pt import write_state

from .muon import Muon
from .run_fingerprint import list_changed_options

FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW; each process has its own rows of them
BROKEN = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError, SafetensorError)


@dataclass(frozen=True, slots=True)
class Run:
    """The state of training: parameters by name (this process's rows), their averages, and the optimizers.

    muon: None if AdamW updates all parameters, as it does with several processes.
    """

    learned: Mapping[str, nn.Parameter]
    average: Mapping[str, Tensor]
    optimizer: torch.optim.AdamW
    muon: Muon | None = None

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Returns all optimizers."""
        return (self.optimizer,) if self.muon is None else (self.optimizer, self.muon)

    def list_places(self) -> dict[str, int]:
        """Returns each parameter's index in AdamW's state, by name."""
        order = [id(each) for group in self.optimizer.param_groups for each in group["params"]]
        return {name: order.index(id(each)) for name, each in self.learned.items()}


def make_path(out: Path) -> Path:
    """Returns the path of the file from which the run that makes `out` would be resumed."""
    out = files.resolve_name(out)
    return out.with_name(out.name + ".resume")


def forget(out: Path) -> None:
    """Removes the files from which a run would be resumed; call it once `out` is written."""
    path = make_path(out)
    path.unlink(missing_ok=True)
    shutil.rmtree(_make_folder_path(path), ignore_errors=True)
    files.sweep(path)


def save(path: Path, identity: dict[str, Any], step: int, run: Run) -> None:
    """Writes the state of all processes after `step` updates, and then replaces the older one.

    Raises UserError if it cannot be written.
    """
    if distributed.count_processes() > 1:
        return _save_shards(path, identity, step, run)
    state = {
        "identity": identity,
        "step": step,
        "model": {name: parameter.detach() for name, parameter in run.learned.items()},
        "optimizer": run.optimizer.state_dict(),
        "average": dict(run.average),
    }
    if run.muon is not None:
        state["muon"] = run.muon.state_dict()
    write_state(state, path)
    shutil.rmtree(_make_folder_path(path), ignore_errors=True)  # shards that several processes wrote before


def load(path: Path, identity: dict[str, Any], run: Run, sizes: Mapping[str, torch.Size]) -> int:
    """Restores a stopped run; returns the step to resume with, 0 if there is no such run.

    sizes: the shapes of the whole parameters. Raises UserError for a run with another fingerprint, as silently starting
    over would lose what it had learned.
    """
    if not path.exists():
        return 0
    try:
        if _is_manifest(path):
            manifest = _read_manifest(path)
            _check(path, manifest["identity"], identity)
            _take_shards(path, manifest["step"], manifest["processes"], run, sizes)
            return int(manifest["step"])
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=distributed.count_processes() > 1)
        _check(path, state["identity"], identity)
        _take(state, run)
        return int(state["step"])
    except UserError:
        raise
    except BROKEN as error:
        what = f"{path} is not a stopped run to continue ({_explain(error)})"
        raise UserError(f"{what}; delete it to start afresh") from None


def _explain(error: Exception) -> str:
    """Returns why a file cannot be resumed from; of truncated ones, libraries report only internals or nothing."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a seek before the start
        return f"{error.strerror}: {Path(error.filename).name}" if error.filename else str(error.strerror)
    plain = type(error) is ValueError or isinstance(error, FileNotFoundError)
    return describe_error(error, 200) if plain else "it is damaged or cut short"


def _check(path: Path, there: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if other := list_changed_options(there, identity):
        raise UserError(
            f"{path} is of a stopped run that differs in {', '.join(other)}; give the same options to go on with it, "
            "or delete it to start afresh"
        )


def _take(state: Mapping[str, Any], run: Run) -> None:
    """Restores this process's rows of every tensor from a single process's file."""
    optimizer = state["optimizer"]
    if distributed.count_processes() > 1:
        optimizer = {**optimizer, "state": {i: _take_own_moments(each) for i, each in optimizer["state"].items()}}
    run.optimizer.load_state_dict(optimizer)
    if run.muon is not None:
        run.muon.load_state_dict(state["muon"])
    with torch.no_grad():
        for name, parameter in run.learned.items():
            parameter.copy_(_take_own_rows(state["model"][name]))
            run.average[name].copy_(_take_own_rows(state["average"][name]))


def _take_own_rows(tensor: Tensor) -> Tensor:
    return tensor[distributed.choose_rows(len(tensor))] if distributed.count_processes() > 1 else tensor


def _take_own_moments(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {kind: _take_own_rows(each) if kind in MOMENTS else each for kind, each in state.items()}


def _make_folder_path(path: Path) -> Path:
    return path.with_name(path.name + ".shards")


def _make_shard_path(path: Path, step: int, rank: int, processes: int) -> Path:
    return _make_folder_path(path) / f"{step}-{rank}-of-{processes}.safetensors"


def _save_shards(path: Path, identity: dict[str, Any], step: int, run: Run) -> None:
    tensors = dict[str, Tensor]()
    for name, parameter in run.learned.items():
        tensors |= {f"model {name}": parameter.detach(), f"average {name}": run.average[name]}
        state = run.optimizer.state.get(parameter, {})
        tensors |= {f"{kind} {name}": each for kind, each in state.items()}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    processes = distributed.count_processes()
    shard = _make_shard_path(path, step, distributed.get_rank(), processes)
    distributed.run_in_every_process(lambda: replace_file(shard, lambda temporary: save_file(stored, temporary)))
    values = {"format": FORMAT, "step": step, "processes": processes, "identity": identity}

    def switch() -> None:
        replace_file(path, lambda temporary: temporary.write_text(json.dumps(values) + "\n", encoding="utf-8"))
        named = {_make_shard_path(path, step, rank, processes).name for rank in range(processes)}
        for older in _make_folder_path(path).iterdir():
            if older.name not in named:
                older.unlink() if older.is_file() else shutil.rmtree(older, ignore_errors=True)

    distributed.run_in_first_process(switch)


def _is_manifest(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == b"{"


def _read_manifest(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if values["format"] != FORMAT or not isinstance(values["identity"], dict):
        raise ValueError(f"format {values['format']!r}, expected {FORMAT}")
    if not all(type(values[name]) is int and values[name] > 0 for name in ("step", "processes")):
        raise ValueError("step and processes are not numbers")
    return values


def _take_shards(path: Path, step: int, processes: int, run: Run, sizes: Mapping[str, torch.Size]) -> None:
    """Restores this process's rows from the shards of any number of processes."""
    with _open_shards([_make_shard_path(path, step, rank, processes) for rank in range(processes)]) as shards:
        known = set(shards[0].keys())

        def own(kind: str, name: str) -> Tensor:
            length = sizes[name][0]
            return _read_rows(shards, f"{kind} {name}", distributed.choose_rows(length), length)

        optimizer, places = run.optimizer.state_dict(), run.list_places()
        optimizer["state"] = {
            places[name]: {"step": shards[0].get_tensor(f"step {name}"), **{kind: own(kind, name) for kind in MOMENTS}}
            for name in run.learned
            if f"step {name}" in known
        }
        run.optimizer.load_state_dict(optimizer)
        with torch.no_grad():
            for name, parameter in run.learned.items():
                parameter.copy_(own("model", name))
                run.average[name].copy_(own("average", name))


@contextmanager
def _open_shards(paths: list[Path]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(safe_open(path, framework="pt")) for path in paths]


def _read_rows(shards: list[Any], key: str, wanted: slice, length: int) -> Tensor:
    """Returns the `wanted` rows of a tensor from all shards. Raises ValueError if they do not have `length` rows."""
    stored = [shard.get_slice(key) for shard in shards]
    found, first = [], 0
    for part in stored:
        there = part.get_shape()[0]
        start, stop = max(wanted.start - first, 0), min(wanted.stop - first, there)
        if start < stop:
            found.append(part[start:stop])
        first += there
    if first != length:
        raise ValueError(f"{key} has {first} rows, expected {length}")
    return torch.cat(found) if found else torch.empty(0, *stored[0].get_shape()[1:])
