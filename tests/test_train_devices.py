"""Training and collecting move what they need to the model's device, and give there what they give here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from train import cli_options, collect, device, distill, distributed, open_checkpoint, teacher
from train.data.trajectories import read_shards
from train.storage import student_pt

NEAR = 1e-5  # products are summed in another order where an operator is made of others
FAR = Path(__file__).parent / "support" / "far.py"

SHAPE = (
    "--width 16 --layers 1 --heads 2 --kv-heads 1 --head-dim 8 --ffn 16 --vocab 270 --block 4 --canvas 8 --context 48"
)
SHORT = "--steps 3 --save-every 2 --batch 2 --no-bf16 --learning-rate 1e-2"
LINES = {
    "causal": "train.teacher --objective causal {short} {shape}",
    "masked": "train.teacher {short} {shape}",
    "cdlm": "train.distill --teacher {folder}/teacher.pt {learned} --next-token 0.1 {short}",
    "cd4lm": "train.distill --method cd4lm --attention full --teacher {folder}/teacher.pt {short}",
    "dparallel": "train.distill --method dparallel --teacher {folder}/teacher.pt {learned} {short}",
    "dparallel-full": "train.distill --method dparallel --attention full --teacher {folder}/teacher.pt {learned} "
    "{short}",
    "tad": "train.distill --method tad --teacher {folder}/teacher.pt {learned} {short}",
    "cdlm-lora": "train.distill --teacher {folder}/teacher.pt {learned} --lora-rank 2 {short}",
    "cd4lm-lora": "train.distill --method cd4lm --teacher {folder}/teacher.pt --lora-rank 2 {short}",
    "collect": "train.collect --ckpt {folder}/teacher.pt {collected}",
    "collect-cached": "train.collect --ckpt {folder}/cached.pt {collected}",
}


def line(name: str, folder: Path, place: str) -> str:
    learned = f"--trajectories {folder}/here/collect.pt --no-only-right"
    collected = "--count 6 --temperatures 0,0.7 --batch 6 --no-bf16"
    words = LINES[name].format(folder=folder, learned=learned, short=SHORT, shape=SHAPE, collected=collected)
    return f"{words} --data {folder}/own.jsonl --out {folder}/{place}/{name}.pt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands make of an untrained teacher, here and there."""
    made = tmp_path_factory.mktemp("devices")
    lines = [{"prompt": f"say {n}", "answer": "yes" * (1 + n % 2)} for n in range(30)]
    (made / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = f"--data {made}/own.jsonl --steps 1 --batch 2 --no-bf16 {SHAPE}"
    assert teacher.main([*words.split(), "--out", f"{made}/teacher.pt"]) == 0
    saved = open_checkpoint.load(made / "teacher.pt")
    decoding = replace(saved.decoding, attention="block_causal", shift=False)
    student_pt.save(replace(saved, decoding=decoding), made / "cached.pt")
    for name in sorted(LINES, key=lambda name: name != "collect"):  # of which others learn
        which, *words = line(name, made, "here").split()
        mains = {"train.teacher": teacher.main, "train.distill": distill.main, "train.collect": collect.main}
        assert mains[which](words) == 0
    command = [sys.executable, str(FAR), json.dumps([line(name, made, "there") for name in LINES])]
    ran = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return made


@pytest.mark.long
@pytest.mark.parametrize("name", LINES)
def test_a_run_on_a_device_gives_what_it_gives_here(name: str, folder: Path) -> None:
    here, there = (folder / place / f"{name}.pt" for place in ("here", "there"))
    if not name.startswith("collect"):
        ours, theirs = open_checkpoint.load(here).weights, open_checkpoint.load(there).weights
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[each], theirs[each], atol=NEAR) for each in ours)
        return
    for one, other in zip(read_shards(here), read_shards(there), strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.order, other.order)
        assert torch.allclose(one.hidden.float(), other.hidden.float(), atol=1e-2)  # fp16


def test_a_gpu_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert teacher.main(["--device", "cuda", "--out", str(tmp_path / "a.pt")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --device is cuda, but PyTorch finds no GPU here") and err.count("\n") == 1


def test_what_goes_to_a_gpu_is_pinned_first_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    class Host:
        """A host's tensor, as far as it is asked."""

        device = torch.device("cpu")

        def pin_memory(self) -> Host:
            told.append("pin")
            return self

        def to(self, device: torch.device, non_blocking: bool) -> str:
            told.append((device.type, non_blocking))
            return "there"

    there: object = device.send(Host(), torch.device("cuda"))  # type: ignore[arg-type]
    assert there == "there" and told == ["pin", ("cuda", True)]
    device.send(Host(), torch.device("cpu"))  # type: ignore[arg-type]
    assert told[2:] == [("cpu", False)]
    same = torch.ones(2)
    assert device.send(same, torch.device("cpu")) is same


def test_rows_that_a_mask_selects_are_those_of_indexing_and_so_is_their_gradient() -> None:
    generator = torch.Generator().manual_seed(tiny.choose_seed())
    mask = torch.rand((3, 5), generator=generator) < 0.5
    grads = []
    for select in (device.select, lambda rows, mask: rows[mask]):
        rows = torch.arange(30.0).view(3, 5, 2).requires_grad_()
        found = select(rows, mask)
        assert torch.equal(found, rows[mask])
        (found.square().sum()).backward()
        grads.append(rows.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("there", [True, False])
def test_bf16_is_the_default_on_a_gpu_that_multiplies_it(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there and not including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not there})
    for words, expected in (([], there), (["--bf16"], True), (["--no-bf16"], False)):
        args = teacher.make_parser().parse_args(["--device", "cuda", "--out", "a.pt", *words])
        cli_options.choose_bf16(args)
        assert args.bf16 == expected


def test_a_gpu_whose_memory_is_full_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")

    assert distributed.run(full) == 1
    said = "error: the GPU's memory is full (CUDA out of memory); lower --batch, or give the run more GPUs\n"
    assert capsys.readouterr().err == said
