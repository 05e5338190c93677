"""Stores the state from which a stopped training run resumes: in one file, or in one shard per process and a manifest.

A single process writes `<out>.resume` with torch.save; it is read with weights_only. Several processes write
`<out>.resume.shards/STEP-RANK-of-N.safetensors`, each with its process's rows of every tensor, and a manifest at
`<out>.resume`, a line of JSON with STEP and N. The manifest is replaced in one rename once all shards are complete;
then older shards are removed. Any number of processes can read either form. Neither contains code, unlike those of
torch.distributed.checkpoint, whose metadata is a pickle.
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
# What reading a damaged file may raise.
DAMAGE = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError, SafetensorError)


@dataclass(frozen=True, slots=True)
class Run:
    """Holds the state of training.

    Attributes:
        parameters: the trained parameters by name, of sharded ones this process's rows.
        average: their moving averages, likewise.
        optimizer: the optimizer of all parameters, or of those that Muon does not update.
        muon: None if AdamW updates all parameters, as it does with several processes.
    """

    parameters: Mapping[str, nn.Parameter]
    average: Mapping[str, Tensor]
    optimizer: torch.optim.AdamW
    muon: Muon | None = None

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Returns all optimizers."""
        return (self.optimizer,) if self.muon is None else (self.optimizer, self.muon)

    def map_state_indices(self) -> dict[str, int]:
        """Returns each parameter's index in AdamW's state, by name."""
        order = [id(each) for group in self.optimizer.param_groups for each in group["params"]]
        return {name: order.index(id(parameter)) for name, parameter in self.parameters.items()}


def make_path(out: Path) -> Path:
    """Returns the path of the file from which a run that writes `out` resumes."""
    out = files.resolve_name(out)
    return out.with_name(out.name + ".resume")


def forget(out: Path) -> None:
    """Removes the files from which a run that writes `out` resumes. Call it once `out` is written."""
    path = make_path(out)
    path.unlink(missing_ok=True)
    shutil.rmtree(_make_folder_path(path), ignore_errors=True)
    files.sweep(path)


def save(path: Path, fingerprint: dict[str, Any], step: int, run: Run) -> None:
    """Writes the state of all processes after `step` updates; the older state is replaced only when it is complete.

    Raises UserError if it cannot be written.
    """
    if distributed.count_processes() > 1:
        return _save_shards(path, fingerprint, step, run)
    state = {
        "identity": fingerprint,
        "step": step,
        "model": {name: parameter.detach() for name, parameter in run.parameters.items()},
        "optimizer": run.optimizer.state_dict(),
        "average": dict(run.average),
    }
    if run.muon is not None:
        state["muon"] = run.muon.state_dict()
    write_state(state, path)
    shutil.rmtree(_make_folder_path(path), ignore_errors=True)  # shards that several processes wrote before


def load(path: Path, fingerprint: dict[str, Any], run: Run, sizes: Mapping[str, torch.Size]) -> int:
    """Restores a stopped run into `run`; returns the number of updates that it had made, 0 if there is no such run.

    sizes: the shapes of the whole parameters. Raises UserError for a run with another fingerprint, since to start over
    silently would lose its training.
    """
    if not path.exists():
        return 0
    try:
        if _is_manifest(path):
            manifest = _read_manifest(path)
            _check_fingerprint(path, manifest["identity"], fingerprint)
            _restore_from_shards(path, manifest["step"], manifest["processes"], run, sizes)
            return int(manifest["step"])
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=distributed.count_processes() > 1)
        _check_fingerprint(path, state["identity"], fingerprint)
        _restore_from_file(state, run)
        return int(state["step"])
    except UserError:
        raise
    except DAMAGE as error:
        what = f"{path} is not a stopped run to continue ({_explain(error)})"
        raise UserError(f"{what}; delete it to start afresh") from None


def _explain(error: Exception) -> str:
    """Returns why a run cannot resume from a file.

    Libraries report nothing useful about truncated files, so those are just called damaged.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a seek before the start
        return f"{error.strerror}: {Path(error.filename).name}" if error.filename else str(error.strerror)
    plain = type(error) is ValueError or isinstance(error, FileNotFoundError)
    return describe_error(error, 200) if plain else "it is damaged or cut short"


def _check_fingerprint(path: Path, stored: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    if differences := list_changed_options(stored, fingerprint):
        raise UserError(
            f"{path} is of a stopped run that differs in {', '.join(differences)}; give the same options to go on with "
            "it, or delete it to start afresh"
        )


def _restore_from_file(state: Mapping[str, Any], run: Run) -> None:
    """Restores this process's rows of every tensor from the state that a single process saved."""
    optimizer = state["optimizer"]
    if distributed.count_processes() > 1:
        optimizer = {**optimizer, "state": {i: _take_own_moments(each) for i, each in optimizer["state"].items()}}
    run.optimizer.load_state_dict(optimizer)
    if run.muon is not None:
        run.muon.load_state_dict(state["muon"])
    with torch.no_grad():
        for name, parameter in run.parameters.items():
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


def _save_shards(path: Path, fingerprint: dict[str, Any], step: int, run: Run) -> None:
    tensors = dict[str, Tensor]()
    for name, parameter in run.parameters.items():
        tensors |= {f"model {name}": parameter.detach(), f"average {name}": run.average[name]}
        state = run.optimizer.state.get(parameter, {})
        tensors |= {f"{kind} {name}": each for kind, each in state.items()}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    processes = distributed.count_processes()
    shard = _make_shard_path(path, step, distributed.get_rank(), processes)
    distributed.run_in_every_process(lambda: replace_file(shard, lambda temporary: save_file(stored, temporary)))
    values = {"format": FORMAT, "step": step, "processes": processes, "identity": fingerprint}

    def switch_manifest() -> None:
        replace_file(path, lambda temporary: temporary.write_text(json.dumps(values) + "\n", encoding="utf-8"))
        current = {_make_shard_path(path, step, rank, processes).name for rank in range(processes)}
        for older in _make_folder_path(path).iterdir():
            if older.name not in current:
                older.unlink() if older.is_file() else shutil.rmtree(older, ignore_errors=True)

    distributed.run_in_first_process(switch_manifest)


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


def _restore_from_shards(path: Path, step: int, processes: int, run: Run, sizes: Mapping[str, torch.Size]) -> None:
    """Restores this process's rows from the shards of any number of processes."""
    with _open_shards([_make_shard_path(path, step, rank, processes) for rank in range(processes)]) as shards:
        known = set(shards[0].keys())

        def read_rows(kind: str, name: str) -> Tensor:
            length = sizes[name][0]
            return _read_rows(shards, f"{kind} {name}", distributed.choose_rows(length), length)

        optimizer, indices = run.optimizer.state_dict(), run.map_state_indices()
        optimizer["state"] = {
            indices[name]: {
                "step": shards[0].get_tensor(f"step {name}"),
                **{kind: read_rows(kind, name) for kind in MOMENTS},
            }
            for name in run.parameters
            if f"step {name}" in known
        }
        run.optimizer.load_state_dict(optimizer)
        with torch.no_grad():
            for name, parameter in run.parameters.items():
                parameter.copy_(read_rows("model", name))
                run.average[name].copy_(read_rows("average", name))


@contextmanager
def _open_shards(paths: list[Path]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(safe_open(path, framework="pt")) for path in paths]


def _read_rows(shards: list[Any], key: str, rows: slice, length: int) -> Tensor:
    """Returns the rows `rows` of a tensor that is divided among the shards.

    Raises ValueError if the shards together do not have `length` rows.
    """
    slices = [shard.get_slice(key) for shard in shards]
    parts, first = [], 0  # first: index in the whole tensor of a shard's first row
    for shard_slice in slices:
        count = shard_slice.get_shape()[0]
        start, stop = max(rows.start - first, 0), min(rows.stop - first, count)
        if start < stop:
            parts.append(shard_slice[start:stop])
        first += count
    if first != length:
        raise ValueError(f"{key} has {first} rows, expected {length}")
    return torch.cat(parts) if parts else torch.empty(0, *slices[0].get_shape()[1:])
