"""`generate` and `bench` on a TensorRT engine, with stand-ins for NVIDIA's libraries in the interpreter's table."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from trt_bundle import BUILD, add_engine, make_content, make_fake_plan

from runtime import bench, generate, load
from runtime.bundle.store import set_decision_temperature
from runtime.contract import Contract
from runtime.decoding.loop import generate as decode
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import UserError
from train.torch_backend import TorchBackend
from train.transformer.network import Transformer, initialize

CONTRACT = tiny.contract(vocab=300)  # that of `tiny.checkpoint`'s tokenizer
MODEL = initialize(Transformer(replace(tiny.shape(30), vocab=300)), 30).eval()


def on_a_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, contract: Contract) -> tuple[str, FakeCuda]:
    """A bundle whose engine was built elsewhere, on a machine with a GPU, cuda-python and TensorRT."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    cuda, text = FakeCuda(), tiny.checkpoint().tokenizer
    plan = make_fake_plan(MODEL, contract, BUILD, "in_place")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(cuda, {make_content(BUILD): plan}))  # type: ignore[arg-type]
    return str(add_engine(folder / "a.bundle", contract, trusted=False, tokenizer=text).path), cuda


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, FakeCuda]:
    return on_a_machine(tmp_path, monkeypatch, CONTRACT)


@pytest.fixture
def deciding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same with candidates, which decisions are made of."""
    return on_a_machine(tmp_path, monkeypatch, replace(CONTRACT, candidates=8))[0]


def test_generate_answers_as_pytorch_does(machine: tuple[str, FakeCuda], capsys: pytest.CaptureFixture[str]) -> None:
    bundle, _ = machine
    words = [bundle, "--token-ids", "5,6,7,8,9", "--max-new-tokens", "11", "--engine", "trt", "--json"]
    assert generate.main(words) == 2
    assert "was not built on this machine" in capsys.readouterr().err
    assert generate.main([*words, "--trust-engine"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = decode(TorchBackend(MODEL, CONTRACT), Request(np.arange(5, 10), DecodeOptions(11)))
    assert tuple(told["token_ids"]) == expected.token_ids and told["forwards"] == expected.forwards
    assert told["engine"] == "trt-fp32-sm89-64"


def test_spinning_of_threads_that_tensorrt_lacks_is_refused_in_one_line(
    machine: tuple[str, FakeCuda], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [machine[0], "--token-ids", "5,6", "--engine", "trt", "--trust-engine", "--no-allow-spinning"]
    assert generate.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: trt-fp32-sm89-64")
    assert "no threads of ONNX Runtime" in captured.err and "leave --no-allow-spinning" in captured.err
    with pytest.raises(UserError, match="allow_spinning=False"):
        load(machine[0], engine="trt", trust_engine=True, allow_spinning=False)


def test_bench_says_what_it_ran_on(machine: tuple[str, FakeCuda], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--engine", "trt", "--trust-engine", "--repeat", "1", "--warmup", "0", "--json"]
    assert bench.main([machine[0], "--prompt", "ab", "--max-new-tokens", "4", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["conditions"]["backend"] == "TensorRT 10.16.1.11 on Fake 4090 (sm89)"
    assert {row["forward"] for row in told["forwards"]} == {
        "step",
        "step, half open",
        "commit",
        "fused step",
        "prefill",
    }


def test_a_gpu_that_fails_is_one_line_and_exit_1(
    machine: tuple[str, FakeCuda], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, cuda = machine
    cuda.fail["cudaGraphLaunch"] = (719, 4)
    assert generate.main([bundle, "--token-ids", "5,6", "--engine", "trt", "--trust-engine"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: cudaGraphLaunch failed: scripted fault (CUDA error 719)")


def test_the_python_api_takes_the_same_options(machine: tuple[str, FakeCuda]) -> None:
    model = load(machine[0], engine="trt", trust_engine=True)
    assert (model.engine, model.precision, model.contract.dtype) == ("trt-fp32-sm89-64", "fp32", "float32")
    assert model.generate([5, 6, 7], max_new_tokens=8).result.token_ids


def test_a_model_decides_with_the_temperature_of_its_engine(deciding: str) -> None:
    plain = load(deciding, engine="trt", trust_engine=True)
    set_decision_temperature(Path(deciding), plain.engine, 2.0)
    fitted = load(deciding, engine="trt", trust_engine=True)
    assert fitted.decision_temperature == 2
    before, after = (model.decide("ab", ["x", "y", "z"]).fields[0].distribution for model in (plain, fitted))
    halved = np.sqrt([probability for _, probability in before])  # logarithms divided by two
    np.testing.assert_allclose([probability for _, probability in after], halved / halved.sum(), rtol=1e-6)
    assert len({round(probability, 3) for _, probability in before}) == 3  # so that equal ones cannot pass


def test_bench_without_cuda_graphs_launches_each_kernel_and_says_so(
    machine: tuple[str, FakeCuda], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, cuda = machine
    options = ["--prompt", "ab", "--max-new-tokens", "4", "--repeat", "1", "--warmup", "0", "--json"]
    trt = [bundle, *options, "--engine", "trt", "--trust-engine"]
    assert bench.main(trt) == 0 and launches(cuda) > 0
    before = launches(cuda)
    assert bench.main([*trt, "--no-cuda-graphs"]) == 0 and launches(cuda) == before
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["conditions"]["backend"].endswith(", without CUDA graphs")


def launches(cuda: FakeCuda) -> int:
    return cuda.called().count("cudaGraphLaunch")
