"""What several processes wrote to go on from is read by any number of them, and refused where it is damaged.

Processes are played here one after the other; tests/test_train_torchrun.py has real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.errors import UserError
from train import distributed
from train.trainer import resume
from train.trainer.resume import Run

SIZES = {"matrix": torch.Size((7, 3)), "few": torch.Size((2,)), "one": torch.Size((1, 4))}
IDENTITY = {"seed": 1, "learning_rate": 2e-3, "task": "math", "trajectories": ["ab", "cd"], "data": None}


def run_of(fill: float) -> Run:
    """This process's rows of three parameters, none of some where there are more processes than rows."""
    shapes = {
        name: (len(range(*distributed.choose_rows(size[0]).indices(size[0]))), *size[1:])
        for name, size in SIZES.items()
    }
    learned = {name: torch.nn.Parameter(torch.full(shape, fill)) for name, shape in shapes.items()}
    groups = [{"params": [learned["matrix"], learned["one"]], "weight_decay": 0.1}, {"params": [learned["few"]]}]
    average = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return Run(learned, average, torch.optim.AdamW(groups, lr=0.1, fused=True))


def stepped() -> Run:
    """A run of a single process after three updates."""
    run, generator = run_of(1.0), torch.Generator().manual_seed(0)
    for _ in range(3):
        for name, parameter in run.parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            run.average[name].copy_(torch.randn(parameter.shape, generator=generator))
        run.optimizer.step()
    return run


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """All that is to be restored, by name."""
    found = {f"model {name}": parameter.detach() for name, parameter in run.parameters.items()}
    found |= {f"average {name}": each for name, each in run.average.items()}
    for name, parameter in run.parameters.items():
        found |= {f"{kind} {name}": each for kind, each in run.optimizer.state[parameter].items()}
    return found


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes this process one of several."""

    def play(rank: int, size: int) -> None:
        monkeypatch.setattr(distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(distributed, "count_processes", lambda: size)
        monkeypatch.setattr(distributed, "run_in_every_process", lambda act: act())
        monkeypatch.setattr(distributed, "run_in_first_process", lambda act: act() if rank == 0 else None)

    return play


def written(path: Path, size: int, play: Callable[[int, int], None]) -> dict[str, torch.Tensor]:
    """A run of that many processes, each of which began from a single one's; what it was."""
    play(0, 1)
    whole = stepped()
    resume.save(path, IDENTITY, 3, whole)
    parts = []
    for rank in range(size):
        play(rank, size)
        parts.append(run_of(0.0))
        assert resume.load(path, IDENTITY, parts[-1], SIZES) == 3
    for rank in reversed(range(size)):  # the first writes the manifest when all have written
        play(rank, size)
        resume.save(path, IDENTITY, 3, parts[rank])
    return tensors(whole)


@pytest.mark.parametrize("before", [2, 3])
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_any_number_of_processes_goes_on_with_the_same_numbers(
    before: int, after: int, tmp_path: Path, played: Callable[[int, int], None]
) -> None:
    path = tmp_path / "a.pt.resume"
    expected = written(path, before, played)
    assert len(list((tmp_path / "a.pt.resume.shards").iterdir())) == before
    parts = []
    for rank in range(after):
        played(rank, after)
        run = run_of(0.0)
        assert resume.load(path, IDENTITY, run, SIZES) == 3
        parts.append(tensors(run))
    for name, whole in expected.items():
        got = parts[0][name] if name.startswith("step") else torch.cat([part[name] for part in parts])
        assert torch.equal(got, whole), name


def test_what_is_older_goes_when_the_newer_is_whole(tmp_path: Path, played: Callable[[int, int], None]) -> None:
    path = tmp_path / "a.pt.resume"
    written(path, 3, played)
    (tmp_path / "a.pt.resume.shards" / "5-0-of-3.safetensors").write_bytes(b"half")  # of a run that was killed then
    written(path, 2, played)
    shards = sorted(each.name for each in (tmp_path / "a.pt.resume.shards").iterdir())
    assert shards == ["3-0-of-2.safetensors", "3-1-of-2.safetensors"]
    played(0, 1)
    resume.save(path, IDENTITY, 3, stepped())
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt.resume"]
    written(path, 2, played)
    resume.forget(tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def changed(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text("{"), "is not a stopped run to continue"),
        (lambda path: path.write_text("{}"), "is not a stopped run to continue"),
        (changed(format=2), "format 2, expected 1"),
        (changed(processes=0), "step and processes are not numbers"),
        (changed(processes=1), "is not a stopped run to continue"),
        (changed(step="../3"), "step and processes are not numbers"),
        (changed(identity=3), "is not a stopped run to continue"),
        (changed(identity={**IDENTITY, "seed": 2}), "differs in seed (2 there, 1 here)"),
        (lambda path: next(path.with_name(path.name + ".shards").iterdir()).unlink(), "No such file"),
        (
            lambda path: next(path.with_name(path.name + ".shards").iterdir()).write_bytes(b"x" * 90),
            "is not a stopped run",
        ),
    ],
)
def test_what_is_damaged_is_told_in_one_line(
    damage: Callable[[Path], None], said: str, tmp_path: Path, played: Callable[[int, int], None]
) -> None:
    path = tmp_path / "a.pt.resume"
    written(path, 2, played)
    damage(path)
    played(0, 1)
    with pytest.raises(UserError) as raised:
        resume.load(path, IDENTITY, run_of(0.0), SIZES)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_shards_of_other_sizes_are_refused(tmp_path: Path, played: Callable[[int, int], None]) -> None:
    path = tmp_path / "a.pt.resume"
    written(path, 2, played)
    played(0, 1)
    with pytest.raises(UserError, match="matrix has 7 rows, expected 8"):
        resume.load(path, IDENTITY, run_of(0.0), {**SIZES, "matrix": torch.Size((8, 3))})
