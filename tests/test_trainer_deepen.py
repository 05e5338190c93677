"""A deeper model computes what it was made from, learns, and is decoded as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from pupils import LINES, make_teacher

from train import open_checkpoint, teacher
from train.storage import student_pt
from train.trainer import deepen


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_a_deeper_model_computes_the_same(layers: int) -> None:
    start = tiny.checkpoint(5)
    deeper = deepen.deepen(start, layers)
    ids = torch.arange(3, 13)[None]  # [1, width]
    visible = torch.full_like(ids, 10)
    with torch.no_grad():
        told = [model(ids, visible) for model in (start.build(), deeper.build())]
    assert torch.equal(*told) and deeper.model.layers == layers and deeper.decoding == start.decoding


def test_every_layer_that_was_added_learns() -> None:
    model = deepen.deepen(tiny.checkpoint(5), 5).build()
    before = {name: weight.clone() for name, weight in model.state_dict().items() if name.endswith("down_proj.weight")}
    ids = torch.arange(3, 13)[None]
    model(ids, torch.full_like(ids, 10)).square().sum().backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if name in before}
    assert len(grads) == 5 and all(grad is not None and grad.abs().max() > 0 for grad in grads.values())


def test_a_teacher_of_more_layers_starts_from_a_smaller_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    student_pt.save(make_teacher(16, 0), tmp_path / "small.pt")
    words = ["--init", str(tmp_path / "small.pt"), "--data", str(tmp_path / "own.jsonl"), "--block", "4"]
    words += ["--canvas", "12", "--context", "64", "--steps", "1", "--batch", "2", "--out", str(tmp_path / "large.pt")]
    assert teacher.main([*words, "--layers", "3"]) == 0
    large = open_checkpoint.load(tmp_path / "large.pt")
    assert large.model.layers == 3 and large.build().layers[2].mlp.down_proj.weight.abs().max() > 0
    assert teacher.main(["--init", str(tmp_path / "large.pt"), *words[2:], "--layers", "2"]) == 2
    assert "2 layers were requested of a model that has 3; give --layers 3 or more" in capsys.readouterr().err
