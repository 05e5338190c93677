"""samples/bench: its contenders compute the same step of the same weights, so that it compares nothing but speed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steppers import llama_scores

from export import contract_from_checkpoint
from export.graph import ort_graph
from runtime.backend import Forward
from runtime.perf.op_counts import ModelShape
from samples.bench.contender import Cell, make_tokens
from samples.bench.onnx_step import OnnxStep
from samples.bench.standin import make_standin
from samples.bench.torch_step import TorchStep
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend

SHAPE = ModelShape(256, 3, 4, 2, 64, 512, 512, qk_norm=True)
PLACES = (Cell(8, 0), Cell(32, 300), Cell(8, 256), Cell(1, 256))  # the third one shortens the cache by a chunk
CHUNK = 256  # tokens with which llama.cpp fills its cache, each chunk seeing itself


def scores(source: Checkpoint, cell: Cell) -> Any:
    """The reference model's logits of a step behind tokens in chunks, without any cache. [width, vocab]"""
    parts = [make_tokens(min(CHUNK, cell.past - start)) for start in range(0, cell.past, CHUNK)]
    ids = np.concatenate([*parts, make_tokens(cell.width)])
    ends = np.repeat(
        np.cumsum([len(part) for part in [*parts, make_tokens(cell.width)]]), [*map(len, parts), cell.width]
    )
    model = source.build()
    with torch.no_grad():
        hidden = model(torch.from_numpy(ids)[None], torch.from_numpy(ends)[None])
        return model.logits(hidden)[0, cell.past :].numpy()


def confidences(logits: Any) -> Any:
    """The top-1 token's probability, the mask token's being none. [width]"""
    return torch.softmax(torch.from_numpy(logits[:, :-1]), dim=-1).amax(dim=-1).numpy()


def apart(found: Any, expected: Any) -> float:
    """The distance of two tensors over the length of the second."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def stepped(stepper: Any, cell: Cell) -> Any:
    stepper.place(cell)
    stepper.step()
    return stepper


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return make_standin(SHAPE)


LONG = [
    pytest.param("fp32", 1e-4, marks=pytest.mark.long),
    pytest.param("fp16", 5e-3, marks=pytest.mark.long),
    pytest.param("int4", 0.3, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("precision", "far"), [("int8", 0.1), *LONG])
def test_the_exported_step_is_the_one_in_pytorch(
    precision: str, far: float, source: Checkpoint, tmp_path: Path
) -> None:
    contract = contract_from_checkpoint.make_export_contract(source, 128)
    model = ort_graph.write_ort_graph(source, contract, precision, tmp_path)[0]
    ours, theirs = OnnxStep(str(model), contract, 1), TorchStep(SHAPE, "fp32", False, 1)
    for cell in (Cell(8, 0), Cell(8, 40), Cell(1, 40), Cell(8, 0, 128)):
        proposal = stepped(ours, cell).proposal
        expected = stepped(theirs, cell)
        print(precision, cell, apart(proposal.confidence[0], expected.confidence[0].numpy()))
        assert apart(proposal.confidence[0], expected.confidence[0].numpy()) < far
        if precision == "fp32":
            assert ours.predict_top1().tolist() == expected.predict_top1().tolist()


@pytest.mark.parametrize(("precision", "far"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_the_step_in_pytorch_is_that_of_the_reference_backend(precision: str, far: float, source: Checkpoint) -> None:
    backend = TorchBackend(source.build(), contract_from_checkpoint.make_export_contract(source, 128))
    for past in (0, 40):
        backend.open(1, past + 8)
        seen = np.full((1, 8), past + 8)
        expected = backend.forward(Forward(make_tokens(8)[None], np.array([past]), seen, np.arange(8)[None]))
        token, confidence = expected.token[0].tolist(), expected.confidence[0]
        assert len(set(token)) > 2 and token != make_tokens(8).tolist()
        stepper = stepped(TorchStep(SHAPE, precision, False, 1), Cell(8, past))
        print(precision, past, apart(stepper.confidence[0].numpy(), confidence))
        assert apart(stepper.confidence[0].numpy(), confidence) < far
        if precision == "fp32":
            assert stepper.predict_top1().tolist() == token
        if not past:  # where no cache holds anything, without any it is the same
            assert confidence == pytest.approx(confidences(scores(source, Cell(8, 0))), rel=1e-4)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # which torch's own compiler raises
def test_the_compiled_step_is_the_eager_one() -> None:
    eager, compiled = (TorchStep(SHAPE, "bf16", each, 1) for each in (False, True))
    for cell in (Cell(8, 0), Cell(4, 40)):  # the second is compiled anew
        expected = stepped(eager, cell).confidence.numpy()
        assert apart(stepped(compiled, cell).confidence.numpy(), expected) < 0.05


def test_the_file_for_llama_cpp_holds_every_weight_under_its_name(source: Checkpoint, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (the extra bench)")
    from samples.bench import gguf_file

    for kind, bits in (("F32", 32), ("Q8_0", 8.5), ("Q4_0", 4.5)):
        gguf_file.write(source, kind, tmp_path / kind)
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / kind).tensors}
        assert found.keys() == {gguf_file.name_tensor(name) for name in source.weights}
        for name, weight in source.weights.items():
            tensor = found[gguf_file.name_tensor(name)]
            assert tuple(reversed(tensor.shape.tolist())) == tuple(weight.shape)
            if weight.ndim == 2:
                assert tensor.n_bytes == weight.numel() * bits / 8
                difference = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape) - weight.numpy()
                least = {"F32": 0, "Q8_0": 0.01, "Q4_0": 0.13}[kind] * weight.abs().max().item()
                assert np.abs(difference).max() <= least


def in_llama(model: Path, cells: Sequence[Cell]) -> list[tuple[Any, Any]]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(llama_scores, str(model), SHAPE.vocab, cells).result()


@pytest.mark.parametrize(("kind", "far"), [("F32", 5e-3), ("Q8_0", 0.03), ("Q4_0", 0.03)])
def test_llama_cpp_computes_the_logits_of_its_files_weights(
    kind: str, far: float, source: Checkpoint, tmp_path: Path
) -> None:
    """Its cache is fp16, and it rounds what it multiplies with quantised weights to 8 bits."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the extra bench)")
    gguf = pytest.importorskip("gguf")
    from samples.bench import gguf_file

    gguf_file.write(source, kind, tmp_path / "model.gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = {}
    for name, weight in source.weights.items():
        tensor = stored[gguf_file.name_tensor(name)]
        weights[name] = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape).copy())
    same = replace(source, weights=weights)
    for cell, (found, best) in zip(PLACES * 3, in_llama(tmp_path / "model.gguf", PLACES), strict=True):
        expected = scores(same, cell)
        print(kind, cell, apart(found, expected))
        assert found.shape == (cell.width, SHAPE.vocab) and apart(found, expected) < far
        assert best.tolist() == found.argmax(axis=-1).tolist()
        if kind == "F32":
            assert best.tolist() == expected.argmax(axis=-1).tolist()
