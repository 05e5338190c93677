"""A stopped train.teacher or train.distill goes on to the bit, and never on with other options or other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from train import collect, distill, teacher
from train.data.batches import Example, Stream

SHAPE = (
    "--width 16 --layers 1 --heads 2 --kv-heads 1 --head-dim 8 --ffn 16 --vocab 270 --block 4 --canvas 8 --context 48"
)
SHORT = "--steps 5 --save-every 2 --batch 2 --no-bf16 --learning-rate 1e-2"
Command = tuple[Callable[[list[str]], int], str]


def own_data(path: Path, word: str = "yes") -> Path:
    lines = [{"prompt": f"say {n}", "answer": word} for n in range(30)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own data, an untrained teacher and its trajectories, and two other checkpoints of its shape."""
    made = tmp_path_factory.mktemp("resuming")
    data = own_data(made / "own.jsonl")
    own_data(made / "other.jsonl", "no")
    for seed, name in enumerate(("teacher", "small", "third")):
        words = f"--data {data} --out {made}/{name}.pt --seed {seed} --steps 1 --batch 2 --no-bf16 {SHAPE}"
        assert teacher.main(words.split()) == 0
    words = f"--ckpt {made}/teacher.pt --data {data} --count 6 --temperatures 0 --batch 6 --no-bf16 --out"
    assert collect.main([*words.split(), f"{made}/trajectories"]) == 0
    assert collect.main([*words.split(), f"{made}/more", "--seed", "3"]) == 0
    return made


def command(which: str, folder: Path) -> Command:
    """A short training, `--out` apart."""
    data = f"--data {folder}/own.jsonl"
    match which:
        case "causal":
            return teacher.main, f"--objective causal --dropout 0.3 --optimizer muon {data} {SHORT} {SHAPE}"
        case "masked":
            return teacher.main, f"--init {folder}/teacher.pt {data} {SHORT} {SHAPE}"
        case "cd4lm":
            return distill.main, (
                f"--method cd4lm --attention full --temperature 3 --teacher {folder}/teacher.pt "
                f"--student {folder}/small.pt {data} {SHORT}"
            )
        case "tad":
            return distill.main, (
                f"--method tad --near 0.5 --next-token 0.1 --teacher {folder}/teacher.pt --no-only-right "
                f"--trajectories {folder}/trajectories {data} {SHORT}"
            )
    return distill.main, (
        f"--teacher {folder}/teacher.pt --trajectories {folder}/trajectories --no-only-right --next-token 0.1 {data} "
        f"{SHORT}"
    )


def interrupted(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the examples of that step are asked for."""
    examples = Stream.select_examples

    def stop(self: Stream, asked: int) -> list[Example]:
        if asked == step:
            raise KeyboardInterrupt
        return examples(self, asked)

    monkeypatch.setattr(Stream, "select_examples", stop)


@pytest.mark.parametrize("which", ["causal", "masked", "distill", "cd4lm", "tad"])
def test_a_command_that_was_stopped_goes_on_to_the_bit(
    which: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, words = command(which, folder)
    assert main([*words.split(), "--out", f"{tmp_path}/whole.pt"]) == 0
    parts = [*words.split(), "--out", f"{tmp_path}/parts.pt"]
    with monkeypatch.context() as patch:
        interrupted(3, patch)
        assert main(parts) == 130
    assert (tmp_path / "parts.pt.resume").exists() and not (tmp_path / "parts.pt").exists()
    with monkeypatch.context() as patch:
        interrupted(1, patch)  # what lies before the saved update is not done again
        assert main(parts) == 0
    assert (tmp_path / "parts.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


@pytest.mark.parametrize(
    ("which", "old", "new", "said"),
    [
        ("masked", "--init", "--objective masked --shift --causal-every 0 --init", "causal_every (2 there, 0 here)"),
        ("masked", "--block 4", "--block 8", "block (4 there, 8 here)"),
        ("masked", "--canvas 8", "--canvas 12", "canvas (8 there, 12 here)"),
        ("masked", "--context 48", "--context 40", "context (48 there, 40 here)"),
        ("masked", "--init", "--no-shift --init", "shift (True there, False here)"),
        ("masked", "--init", "--objective causal --init", "objective (masked there, causal here)"),
        ("masked", "own.jsonl", "other.jsonl", "data ("),
        ("masked", "--steps 5", "--steps 6", "steps (5 there, 6 here)"),
        ("distill", "own.jsonl", "other.jsonl", "data ("),
        ("distill", "/trajectories", "/more", "trajectories ("),
        ("distill", "--no-only-right", "--no-only-right --target completed", "target (partial there, completed here)"),
        ("distill", "--next-token 0.1", "--next-token 0.2", "next_token (0.1 there, 0.2 here)"),
        ("causal", "--optimizer muon", "", "optimizer (muon there, adamw here)"),
        ("causal", "--dropout 0.3", "--dropout 0.2", "dropout (0.3 there, 0.2 here)"),
        ("cd4lm", "--temperature 3", "", "temperature (3.0 there, 2.0 here)"),
        ("tad", "--near 0.5", "", "near (0.5 there, 0.25 here)"),
        ("cd4lm", "--attention full", "", "attention (full there, block_causal here)"),
        ("cd4lm", "small.pt", "third.pt", "student ("),
    ],
)
def test_a_stopped_run_is_not_gone_on_with_by_other_options(
    which: str, old: str, new: str, said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (main, words), out = command(which, folder), ["--out", f"{tmp_path}/run.pt"]
    interrupted(3, monkeypatch)
    assert main([*words.split(), *out]) == 130 and old in words
    before = (tmp_path / "run.pt.resume").read_bytes()
    capsys.readouterr()
    assert main([*words.replace(old, new).split(), *out]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and err.count("\n") == 1
    assert (tmp_path / "run.pt.resume").read_bytes() == before


@pytest.mark.parametrize("which", ["teacher", "distill", "collect"])
def test_a_stopped_run_is_not_gone_on_with_by_a_version_that_generates_other_problems(
    which: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, words = {
        "teacher": (teacher.main, f"--task code --init {folder}/teacher.pt {SHORT} {SHAPE} --context 512 --canvas 256"),
        "distill": (
            distill.main, f"--task code --method cd4lm --attention full --teacher {folder}/long.pt {SHORT}",
        ),
        "collect": (
            collect.main, f"--ckpt {folder}/long.pt --task code --count 4 --temperatures 0 --batch 2 --no-bf16",
        ),
    }[which]  # fmt: skip
    long = f"--task code --out {folder}/long.pt --steps 1 --batch 2 --no-bf16 {SHAPE} --context 512 --canvas 256"
    assert teacher.main(long.split()) == 0
    out = [*words.split(), "--out", f"{tmp_path}/run.pt"]
    with monkeypatch.context() as patch:
        interrupted(3, patch)
        assert main(out) == (0 if which == "collect" else 130)
    monkeypatch.setattr("train.tasks.functions.INVENTED_ARGUMENT_SHARE", 0.4)
    capsys.readouterr()
    assert main(out) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and ("problems (" in error or "other settings" in error)


def test_the_same_files_elsewhere_are_the_same_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, words = command("masked", folder)
    out = ["--out", f"{tmp_path}/run.pt"]
    with monkeypatch.context() as patch:
        interrupted(3, patch)
        assert main([*words.split(), *out]) == 130
    for name in ("own.jsonl", "teacher.pt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    interrupted(1, monkeypatch)
    assert main([*words.replace(str(folder), str(tmp_path)).split(), *out, "--save-every", "1"]) == 0


def test_a_default_given_by_name_is_the_same_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, words = command("cd4lm", folder)
    out = ["--out", f"{tmp_path}/run.pt"]
    with monkeypatch.context() as patch:
        interrupted(3, patch)
        assert main([*words.split(), *out]) == 130
    interrupted(1, monkeypatch)
    assert main([*words.split(), *out, "--shares", "0.9,0.5"]) == 0
