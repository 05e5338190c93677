"""Several processes under torchrun, on a CPU with gloo, do what one does: curves, trajectories, weights, resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from train import collect, distill, open_checkpoint, teacher
from train.data.batches import Example, Stream
from train.trainer import resume, training_loop

RANKS = Path(__file__).parent / "support" / "ranks.py"
SHAPE = (
    "--width 16 --layers 2 --heads 2 --kv-heads 1 --head-dim 8 --ffn 20 --vocab 270 --block 4 --canvas 12 --context 64"
)
SHORT = "--batch 6 --no-bf16 --learning-rate 2e-2 --steps 12 --save-every 5"
NEAR = 1e-4
RUNS = {
    "causal": "train.teacher --objective causal {short} {shape}",
    "masked": "train.teacher --init {folder}/teacher.pt {short} {shape}",
    "cdlm": "train.distill --teacher {folder}/teacher.pt {learned} --next-token 0.1 {short}",
    "cd4lm": "train.distill --method cd4lm --attention full --teacher {folder}/teacher.pt --student {folder}/small.pt "
    "{short}",
    "dparallel": "train.distill --method dparallel --teacher {folder}/teacher.pt {learned} {short}",
    "tad": "train.distill --method tad --attention full --teacher {folder}/teacher.pt --student {folder}/small.pt "
    "{learned} {short}",
    "tad-lora": "train.distill --method tad --teacher {folder}/teacher.pt {learned} --lora-rank 3 {short}",
    "cdlm-lora": "train.distill --teacher {folder}/teacher.pt {learned} --lora-rank 3 {short}",
    "cd4lm-lora": "train.distill --method cd4lm --teacher {folder}/teacher.pt --lora-rank 3 {short}",
}


def line(name: str, folder: Path, out: Path) -> str:
    """A whole command that trains to `out`."""
    learned = f"--trajectories {folder}/trajectories --no-only-right"
    short = f"--data {folder}/own.jsonl {SHORT}"
    return RUNS[name].format(folder=folder, learned=learned, short=short, shape=SHAPE) + f" --out {out}"


def collecting(folder: Path, out: Path) -> str:
    words = "--count 18 --temperatures 0,0.7 --shard 4 --batch 3 --no-bf16"
    return f"train.collect --ckpt {folder}/teacher.pt --data {folder}/own.jsonl {words} --out {out} --json"


def alone(command: str) -> None:
    """Runs a command in this process."""
    name, *words = command.split()
    mains = {"train.teacher": teacher.main, "train.distill": distill.main, "train.collect": collect.main}
    assert mains[name](words) == 0


def together(
    *commands: str, processes: int = 2, kill: str | None = None, script: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs commands in several processes, of which one may be killed: RANK:STEP.

    script: by tests/support/ranks.py, which logs every update; otherwise a single command as users start it.
    """
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start += [str(RANKS), json.dumps(commands)] if script else ["-m", *commands[0].split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"KILL": kill} if kill else {})
    begun = subprocess.Popen(
        start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        cwd=RANKS.parents[2],
    )  # fmt: skip
    try:
        out, err = begun.communicate(timeout=120)
    except BaseException:
        os.killpg(begun.pid, signal.SIGKILL)  # torchrun's processes too, which would wait for each other
        raise
    return subprocess.CompletedProcess(begun.args, begun.returncode, out, err)


def curve(out: Path) -> list[dict[str, float]]:
    """Every update's loss, norm and figures."""
    lines = out.with_name(out.name + ".log.jsonl").read_text().splitlines()
    clock = {"seconds", "seconds_left", "tokens_per_second"}
    return [{k: v for k, v in json.loads(each).items() if k not in clock} for each in lines]


def assert_near(one: Path, other: Path) -> None:
    """The same curve, update by update, and the same weights."""
    first, second = curve(one), curve(other)
    assert [each["step"] for each in first] == [each["step"] for each in second] == list(range(1, 13))
    for a, b in zip(first, second, strict=True):
        assert b == pytest.approx(a, abs=NEAR, nan_ok=True), f"update {a['step']}"
    weights, others = open_checkpoint.load(one).weights, open_checkpoint.load(other).weights
    assert weights.keys() == others.keys()
    assert all(torch.allclose(weights[name], others[name], atol=NEAR) for name in weights)


@pytest.fixture(scope="module", autouse=True)
def every_update_is_logged() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "LOG_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own data, two untrained models and the first one's trajectories."""
    made = tmp_path_factory.mktemp("torchrun")
    lines = [{"prompt": f"say {n}" + " now" * (n % 5), "answer": "yes" * (1 + n % 3)} for n in range(60)]
    (made / "own.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    for seed, name in enumerate(("teacher", "small")):
        words = f"--data {made}/own.jsonl --out {made}/{name}.pt --seed {seed} --steps 1 --batch 2 --no-bf16 {SHAPE}"
        assert teacher.main(words.split()) == 0
    alone(collecting(made, made / "trajectories"))
    return made


@pytest.mark.long
def test_two_processes_learn_what_one_does_and_refuse_what_they_cannot(folder: Path, tmp_path: Path) -> None:
    good = line("causal", folder, tmp_path / "two.pt")
    full = line("causal", folder, tmp_path / "full-disk" / "two.pt")
    ran = together(good.replace("--batch 6", "--batch 5"), good + " --compile", good + " --optimizer muon", full, good)
    assert ran.returncode == 1, ran.stderr
    assert "error: --batch is 5 for 2 processes; expected a multiple of their number" in ran.stderr
    assert "error: --compile was given for 2 processes; sharded models are not compiled: leave it out" in ran.stderr
    assert "error: --optimizer is muon for 2 processes; it needs whole matrices: leave it out" in ran.stderr
    assert "process 1: error: " in ran.stderr and "cannot be written (No space left on device)" in ran.stderr
    assert "error: another process cannot go on; see its message" in ran.stderr
    assert not resume.make_path(tmp_path / "full-disk" / "two.pt").exists()
    assert ran.stdout.splitlines() == [f"wrote {tmp_path}/two.pt"]
    alone(line("causal", folder, tmp_path / "one.pt"))
    assert_near(tmp_path / "one.pt", tmp_path / "two.pt")


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    """What two processes make of every command."""
    out = folder / "two"
    lines = [line(name, folder, out / f"{name}.pt") for name in RUNS]
    ran = together(*lines, collecting(folder, out / "trajectories"))
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_curve_and_the_weights_of_one(name: str, folder: Path, two: Path) -> None:
    alone(line(name, folder, folder / "one" / f"{name}.pt"))
    assert_near(folder / "one" / f"{name}.pt", two / f"{name}.pt")
    assert not resume.make_path(two / f"{name}.pt").exists() and not list(two.glob("*.shards"))


def assert_same_files(one: Path, other: Path) -> None:
    assert sorted(each.name for each in one.iterdir()) == sorted(each.name for each in other.iterdir())
    assert all((other / each.name).read_bytes() == each.read_bytes() for each in one.iterdir())


@pytest.mark.long
def test_two_processes_collect_the_same_trajectories_to_the_bit(folder: Path, two: Path) -> None:
    assert_same_files(folder / "trajectories", two / "trajectories")


@pytest.mark.long
def test_a_collection_whose_process_was_killed_goes_on_with_what_is_missing(folder: Path, tmp_path: Path) -> None:
    ran = together(collecting(folder, tmp_path / "found"), kill="1:2")
    assert ran.returncode == 1
    there = {each.name for each in (tmp_path / "found").glob("shard-*")}
    assert {"shard-00001.safetensors", "shard-00003.safetensors"} <= there  # the first two of the second process
    assert "shard-00005.safetensors" not in there
    alone(collecting(folder, tmp_path / "found"))
    assert_same_files(folder / "trajectories", tmp_path / "found")


@pytest.mark.long
def test_a_run_whose_process_was_killed_goes_on_in_any_number_of_processes(
    folder: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "two" / "cdlm.pt"
    ran = together(line("cdlm", folder, out), kill="1:11")
    assert ran.returncode == 1 and "error: another process has ended" in ran.stderr, ran.stderr
    assert json.loads(resume.make_path(out).read_text())["step"] == 10
    shards = sorted(each.name for each in out.with_name("cdlm.pt.resume.shards").iterdir())
    assert shards == ["10-0-of-2.safetensors", "10-1-of-2.safetensors"]
    for name in ("one", "three"):
        shutil.copytree(out.parent, tmp_path / name)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "select_examples", stopping_at(11))
        name, *words = line("cdlm", folder, tmp_path / "back" / "cdlm.pt").split()
        assert distill.main(words) == 130
    ran = together(line("cdlm", folder, out), line("cdlm", folder, tmp_path / "back" / "cdlm.pt"))
    assert ran.returncode == 0, ran.stderr
    # To the bit where the number of processes is the same.
    assert out.read_bytes() == (two / "cdlm.pt").read_bytes() and curve(out) == curve(two / "cdlm.pt")
    assert_near(two / "cdlm.pt", tmp_path / "back" / "cdlm.pt")

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "select_examples", stopping_at(9))  # what lies before the saved update is not done again
        alone(line("cdlm", folder, tmp_path / "one" / "cdlm.pt"))
    assert_near(two / "cdlm.pt", tmp_path / "one" / "cdlm.pt")
    ran = together(line("cdlm", folder, tmp_path / "three" / "cdlm.pt"), processes=3)
    assert ran.returncode == 0, ran.stderr
    assert_near(two / "cdlm.pt", tmp_path / "three" / "cdlm.pt")
    for name in ("two", "one", "three", "back"):
        assert sorted(each.name for each in (tmp_path / name).iterdir()) == ["cdlm.pt", "cdlm.pt.log.jsonl"]


@pytest.mark.long
def test_of_several_processes_one_tells_a_mistake(folder: Path, tmp_path: Path) -> None:
    ran = together(line("causal", folder, tmp_path / "a.pt").replace("--batch 6", "--batch 5"), script=False)
    assert ran.returncode == 1 and ran.stderr.count("error: --batch is 5 for 2 processes") == 1, ran.stderr
    assert ran.stdout == "" and not list(tmp_path.iterdir())


def stopping_at(step: int) -> Callable[[Stream, int], list[Example]]:
    """Ctrl-C when the examples of that step are asked for."""
    examples = Stream.select_examples

    def stop(self: Stream, asked: int) -> list[Example]:
        if asked == step:
            raise KeyboardInterrupt
        return examples(self, asked)

    return stop
