"""Files of earlier versions are read and answer as they did; those of later ones are refused with what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from trt_bundle import make_fake_plan

from runtime import verify
from runtime.bundle import trust_records
from runtime.bundle.store import read
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.trt.cuda import Cuda
from runtime.engines.trt.trt_backend import open_engines
from runtime.errors import UserError
from runtime.open_bundle import load
from train import open_checkpoint
from train.data.trajectories import NEVER_ACCEPTED, read_shards
from train.torch_backend import TorchBackend, derive_contract

GOLDEN = Path(__file__).parent / "golden"
ANSWERS = json.loads((GOLDEN / "answers.json").read_text(encoding="utf-8"))
PROMPTS = sorted(ANSWERS)


def expected(prompt: str) -> tuple[int, ...]:
    return tuple(ANSWERS[prompt])


@pytest.mark.parametrize("name", ["ort.bundle", "before-build.bundle", "referenced.bundle"])
def test_a_bundle_answers_as_it_did(name: str) -> None:
    model = load(GOLDEN / name, verify="always")
    for prompt in PROMPTS:
        assert model.generate(prompt, raw=True, max_new_tokens=16).result.token_ids == expected(prompt)


def test_a_recorded_reference_is_replayed_as_it_was() -> None:
    assert verify.main([str(GOLDEN / "referenced.bundle")]) == 0
    assert verify.main([str(GOLDEN / "ort.bundle")]) == 2  # format 1 has none


@pytest.mark.parametrize("name", ["student.pt", "student-without-rope-scaling.pt", "directory"])
def test_a_checkpoint_answers_as_it_did(name: str) -> None:
    made = open_checkpoint.load(GOLDEN / name)
    backend, words = TorchBackend(made.build(), derive_contract(made)), made.read_tokenizer()
    for prompt in PROMPTS:
        ids = np.array(words.encode(prompt, add_special_tokens=False).ids)
        assert generate(backend, Request(ids, DecodeOptions(16))).token_ids == expected(prompt)


def test_a_bundle_with_a_tensorrt_engine_is_read_whole() -> None:
    bundle = read(GOLDEN / "trt.bundle")
    engine = bundle.find_engine("trt")
    assert engine.build is not None and bundle.contract.max_prompt == 16 and bundle.contract.gate.threshold == 0.75
    content = (bundle.path / engine.model).read_bytes()
    trust_records.remember_built(engine.files[engine.model])
    cuda, student = FakeCuda(), open_checkpoint.load(GOLDEN / "student.pt")
    plan = make_fake_plan(student.build(), bundle.contract, engine.build, "in_place")
    fake = FakeTensorRT(cuda, {content: plan})
    backend = open_engines(bundle, [engine], cuda=Cuda(cuda), library=lambda _: fake)
    ids = np.array(student.read_tokenizer().encode(PROMPTS[0], add_special_tokens=False).ids)
    reference = TorchBackend(student.build(), derive_contract(student))
    answers = [
        generate(each, Request(ids, DecodeOptions(8)), gate=bundle.contract.gate).token_ids
        for each in (backend, reference)
    ]
    assert answers[0] == answers[1]


def test_trajectories_are_read_as_they_were() -> None:
    first, second = read_shards(GOLDEN / "trajectories")
    assert (first.prompt, second.prompt) == ((5, 6, 7), (8,)) and (first.right, second.right) == (True, False)
    assert first.tokens.tolist() == list(range(3, 15)) and first.order.tolist() == [*range(8), *[NEVER_ACCEPTED] * 4]
    assert torch.equal(second.hidden.float(), torch.arange(12 * 16).reshape(12, 16) / 64)


def newer(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "format": 3, "novelty": {"any": "thing"}}


def test_a_later_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "ort.bundle", tmp_path / "a.bundle")
    shutil.copytree(GOLDEN / "directory", tmp_path / "directory")
    for file in (tmp_path / "a.bundle" / "manifest.json", tmp_path / "directory" / "blockstep.json"):
        file.write_text(json.dumps(newer(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
    torch.save(newer(torch.load(GOLDEN / "student.pt", weights_only=True)), tmp_path / "student.pt")
    for call, latest, command in (
        (lambda: load(tmp_path / "a.bundle"), 2, "blockstep export onnx"),
        (lambda: open_checkpoint.load(tmp_path / "student.pt"), 1, "blockstep train distill"),
        (lambda: open_checkpoint.load(tmp_path / "directory"), 1, "blockstep train distill"),
    ):
        with pytest.raises(UserError, match=f"has format 3; this version reads formats up to {latest}; .*{command}"):
            call()
