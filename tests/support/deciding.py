"""A tiny random model that reads and writes bytes, as a bundle that can decide, exported by the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tiny
from speaking import VOCAB, make_byte_tokenizer

from export import onnx as export
from train.storage.student_pt import save
from train.transformer.network import ModelConfig

TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }} {% endfor %}a:"
CAPACITY, CANDIDATES = 384, 64


def make_deciding_bundle(folder: Path, *words: str) -> Path:
    """The bundle; words: further options of `export onnx`."""
    config = ModelConfig(VOCAB, 32, 2, 4, 2, 8, 48)
    made = tiny.checkpoint(3, config=config, context=CAPACITY, gate={"threshold": 0.5})
    path, out = folder / "student.pt", folder / "student.bundle"
    save(replace(made, tokenizer=make_byte_tokenizer().to_str(), chat_template=TEMPLATE), path)
    options = ["--capacity", str(CAPACITY), "--candidates", str(CANDIDATES), "--out", str(out), *words]
    assert export.main(["--ckpt", str(path), *options]) == 0
    return out
