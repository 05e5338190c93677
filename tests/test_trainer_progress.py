"""A training run tells its pace, its log and curves go on where it does, and its tokens are counted once."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import tiny
import torch
from torch import Tensor

from train import distributed, teacher
from train.data.batches import Example, Stream, count_tokens
from train.data.trajectories import NEVER_ACCEPTED, Trajectory
from train.distill import add_next_token_loss
from train.trainer import progress, run_fingerprint, training_loop
from train.trainer.progress import Log, Pace
from train.trainer.training_loop import Recipe, train_model
from train.transformer.network import Transformer, initialize

RECIPE = Recipe(steps=12, warmup=3, bf16=False, save_every=5)
SHAPE = "--width 16 --layers 1 --heads 2 --kv-heads 1 --head-dim 8 --ffn 16 --vocab 270 --block 4 --canvas 8"


class Stopped(Exception):
    """What stops a run in the middle."""


def run(out: Path, tensorboard: Path | None, stop: int | None = None) -> training_loop.TrainingResult:
    """Trains a tiny model on 12 tokens per update; stopped in the loss of step `stop`."""
    model = initialize(Transformer(tiny.shape(0)), 0)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop:
            raise Stopped
        ids = torch.randint(0, tiny.VOCAB, (2, 6), generator=torch.Generator().manual_seed(step))
        return model.logits(model(ids, torch.full((2, 6), 6))).square().mean(), {"half": 0.5, "tokens": 12}

    return train_model(model, loss_of, RECIPE, out, {}, tensorboard)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_the_pace_is_that_of_the_last_updates_and_the_mean_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace()
    assert pace.report(7) == {"tokens_per_second": 0.0, "seconds_left": 0.0} and pace.compute_mean() == 0.0
    clock.now += 40  # the first update compiles
    pace.count(80)
    assert pace.report(5) == {"tokens_per_second": 2.0, "seconds_left": 200.0}
    for _ in range(progress.WINDOW):
        clock.now += 2
        pace.count(100)
    assert pace.report(30) == {"tokens_per_second": 50.0, "seconds_left": 60.0}  # the first is no longer in it
    assert pace.compute_mean() == pytest.approx((80 + 100 * progress.WINDOW) / (40 + 2 * progress.WINDOW), abs=0.05)
    assert progress.format_postfix({"loss": 0.12345}, pace) == {"loss": "0.123", "tokens/s": "50"}


def test_log_and_json_have_the_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "LOG_EVERY", 4)
    fitted = run(tmp_path / "run.pt", None)
    lines = [json.loads(line) for line in (tmp_path / "run.pt.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12] and lines[-1]["seconds_left"] == 0
    assert all(line["tokens_per_second"] > 0 and "tokens" not in line for line in lines)
    report = fitted.report(tmp_path / "run.pt")
    assert report["tokens_per_second"] > 0 and report["half"] == 0.5 and "tokens" not in report


class Board:
    """TensorBoard's writer, as far as it is used: what was written stays in `found`."""

    found: ClassVar[list[Any]] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.found.append((folder, purge_step))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.found.append((tag, value, step))

    def flush(self) -> None:
        self.found.append("flush")

    def close(self) -> None:
        self.found.append("close")


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a writer that stands in for TensorBoard's is told."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Board))
    monkeypatch.setattr(Board, "found", [])
    return Board.found


def test_tensorboard_gets_each_figure_at_its_update_and_no_clock(board: list[Any], tmp_path: Path) -> None:
    log = Log(tmp_path / "log", tmp_path / "curves", 20)
    log.add({"step": 50, "norm": 2.0, "rate": 0.1, "loss": 3.0, "tokens_per_second": 9.0, "seconds_left": 4.0})
    assert board.pop(0) == (str(tmp_path / "curves"), 21) and board.pop() == "flush"
    tags = {"gradient_norm": 2.0, "learning_rate": 0.1, "loss": 3.0, "tokens_per_second": 9.0}
    assert board == [(tag, value, 50) for tag, value in tags.items()]
    log.close()
    assert board[-1] == "close"


def test_a_share_of_nothing_is_null_in_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", None, 0)
    log.add({"step": 1, "loss": 3.0, "masked": math.nan})

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    values = json.loads((tmp_path / "log").read_text(), parse_constant=refuse)
    assert values["masked"] is None and values["loss"] == 3.0


def test_of_several_processes_the_first_alone_draws(
    board: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    log = Log(tmp_path / "log", tmp_path / "curves", 0)
    log.add({"step": 1, "loss": 3.0})
    log.close()
    assert board == [] and not list(tmp_path.iterdir())


def test_curves_of_a_resumed_run_have_every_update_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(training_loop, "LOG_EVERY", 2)
    curves = tmp_path / "curves"
    with pytest.raises(Stopped):
        run(tmp_path / "run.pt", curves, stop=9)  # logged up to 8, saved at 5
    run(tmp_path / "run.pt", curves)
    found = EventAccumulator(str(curves)).Reload()
    assert {"loss", "half", "learning_rate", "gradient_norm", "tokens_per_second"} == set(found.Tags()["scalars"])
    assert [each.step for each in found.Scalars("loss")] == [2, 4, 6, 8, 10, 12]
    lines = [json.loads(line) for line in (tmp_path / "run.pt.log.jsonl").read_text().splitlines()]
    assert [each.value for each in found.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_a_tensorboard_that_is_not_installed_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    words = ["--out", str(tmp_path / "a.pt"), "--tensorboard", str(tmp_path / "curves")]
    assert teacher.main(words) == 2
    err = capsys.readouterr().err
    assert (
        err == "error: --tensorboard needs the package tensorboard, which is not installed; pip install tensorboard\n"
    )
    assert not list(tmp_path.iterdir())


def test_where_curves_go_makes_no_difference_to_a_stopped_run() -> None:
    parse = teacher.make_parser().parse_args
    plain, drawn = (parse(["--out", "a.pt", *more]) for more in ([], ["--tensorboard", "curves"]))
    assert run_fingerprint.collect_options(vars(plain)) == run_fingerprint.collect_options(vars(drawn))


def test_a_teachers_tokens_are_those_of_prompts_and_answers_once(tmp_path: Path) -> None:
    lines = [{"prompt": f"say {n}", "answer": "yes" * (1 + n % 2)} for n in range(30)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for objective in ("causal", "masked"):
        words = f"--objective {objective} --data {tmp_path}/own.jsonl --out {tmp_path}/a.pt --batch 4 {SHAPE}"
        args = teacher.make_parser().parse_args(words.split())
        chosen = teacher.tasks.choose_tasks(args.task, args.data)
        start = teacher.make_start(args, chosen)
        model = start.build().train()
        stream = Stream(chosen, start.read_tokenizer(), start.decoding.eos_ids[0], 4, 0, 100, 8)
        loss_of = teacher.make_loss(args, start, model, model, stream)
        for step in (0, 1):  # the second learns the next token, and all blocks of the same answers
            examples = stream.select_examples(step)
            expected = sum(len(example.prompt) + len(example.answer) for example in examples)
            assert loss_of(step)[1]["tokens"] == expected == count_tokens(examples)


@pytest.mark.parametrize(("same", "expected"), [(True, 5), (False, 12)])
def test_examples_that_two_losses_share_count_once(same: bool, expected: int) -> None:
    both = add_next_token_loss(
        lambda step: (torch.tensor(1.0), {"dlm": 0.1, "tokens": 5}),
        lambda step: (torch.tensor(2.0), {"next": 0.2, "tokens": 7}),
        0.5,
        same,
    )
    total, figures = both(0)
    assert total == 2 and figures == {"dlm": 0.1, "next": 0.2, "tokens": expected}


def test_a_trajectory_is_as_long_as_what_was_accepted() -> None:
    order = torch.tensor([0, 2, 1, NEVER_ACCEPTED])
    assert Trajectory((7, 8), torch.arange(4), order, torch.zeros(4, 2), True).count_tokens() == 5
    assert count_tokens([Example((7, 8), (1, 2, 3))]) == 5


def test_lists_that_differ_late_are_shown_where_they_differ() -> None:
    before, now = {"trajectories": ["a" * 64, "b" * 64]}, {"trajectories": ["a" * 64, "c" * 64]}
    shown = f"trajectories ({'b' * 20} there, {'c' * 20} here)"
    assert run_fingerprint.list_changed_options(before, now) == [shown]
    assert run_fingerprint.list_changed_options(before, {"trajectories": ["a" * 64]}) == [
        f"trajectories ({'b' * 20} there, nothing here)"
    ]
    assert run_fingerprint.list_changed_options({"seed": 1}, {}) == ["seed (1 there, not set here)"]
