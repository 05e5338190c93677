"""The dialect `standard` under ONNX Runtime: PyTorch's tokens, batches equal to solo answers, 8 and 4 bits."""

from __future__ import annotations

import ctypes
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny
from numpy.typing import NDArray
from onnx import TensorProto, helper
from test_export_onnx import student
from tiny import BLOCK

from export import onnx as export_onnx
from export import verify
from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import PRECISIONS_OF, choose_comparison, write_ort_graph
from export.precisions import PRECISIONS
from export.proof.prove import prove
from export.quantization.standard_nbits import BITS, make_arrays
from export.quantization.standard_nbits import BLOCK as WHOLE_OUTPUTS
from export.quantization.trt_formats import TRT_FORMATS
from runtime.backend import PADDED
from runtime.bundle.store import read
from runtime.contract import ALIGNMENTS, FIELD_LIMITS
from runtime.decoding.batch import Batch
from runtime.decoding.gate import Gate
from runtime.decoding.loop import ProgressMaker, decode_answers, generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.decoding.running_batch import RunningBatch
from runtime.engines.ort import ort_backend
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_backend import OrtBackend, read_cache_form
from runtime.engines.ort.ort_cuda import KERNELS, select_engines
from runtime.engines.ort.ort_values import copy_to_host, make_value
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.storage.student_pt import save
from train.torch_backend import TorchBackend

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
TOP_K = 6
LENGTHS = (1, 3 * BLOCK + 2, 2, BLOCK, 5 * BLOCK, BLOCK + 1, 9)
Exported = tuple[int, Checkpoint, Path]


def graph_of(source: Checkpoint, folder: Path, precision: str = "fp32") -> Path:
    return write_ort_graph(source, make_export_contract(source, None, TOP_K), precision, folder, dialect="standard")[0]


@pytest.fixture(scope="module", params=tiny.ATTENTIONS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    seed = tiny.choose_seed()
    print(f"BLOCKSTEP_SEED={seed}")
    source = tiny.checkpoint(seed, attention=request.param)
    return seed, source, graph_of(source, tmp_path_factory.mktemp("standard"))


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> OrtBackend:
    source = tiny.checkpoint(4)
    contract = make_export_contract(source, None, TOP_K)
    return OrtBackend(graph_of(source, tmp_path_factory.mktemp("cached")), contract, threads=1)


def requests(rng: random.Random, most: int = 3 * BLOCK) -> list[Request]:
    """Prompts of many lengths, each with options of its own; half of them are sampled."""
    made = []
    for number, length in enumerate(LENGTHS):
        own = {"threshold": rng.choice((0.2, 0.4, 0.8)), "fused": rng.random() < 0.5}
        drawn = {"temperature": 0.8, "seed": number} if number % 2 else {}
        options = DecodeOptions(rng.randrange(1, most + 1), **own, **drawn)  # type: ignore[arg-type]
        made.append(Request(tiny.prompt(rng, length), options))
    return made


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_answers_are_those_of_pytorch_alone_and_in_batches(exported: Exported, alignment: str, shift: bool) -> None:
    seed, source, file = exported
    rng = random.Random(seed + shift)
    source = replace(source, decoding=replace(source.decoding, alignment=alignment, shift=shift))
    contract = make_export_contract(source, None, TOP_K)
    reference, engine = TorchBackend(source.build(), contract), OrtBackend(file, contract, threads=1)
    asked = requests(rng)
    expected = [generate(engine, each).token_ids for each in asked]
    greedy = [row for row, each in enumerate(asked) if not each.options.temperature]
    best = [generate(reference, asked[row]).token_ids for row in greedy]
    assert [expected[row] for row in greedy] == best, f"BLOCKSTEP_SEED={seed}"
    for slots in (2, 3, 7) if contract.has_cache else ():
        streamed = [result.token_ids for result in decode_answers(engine, iter(asked), slots)]
        assert streamed == expected, f"BLOCKSTEP_SEED={seed}"
        batched = generate_batch(engine, asked, slots=slots)
        assert [result.token_ids for result in batched] == expected, f"BLOCKSTEP_SEED={seed}"


def test_whoever_leaves_a_batch_changes_no_other_answer(cached: OrtBackend) -> None:
    rng = random.Random(11)
    asked = requests(rng) * 4
    rng.shuffle(asked)
    begin = ProgressMaker(cached.contract, None, {})
    expected = [generate(cached, each).token_ids for each in asked]
    for slots in (3, 8):
        batch = Batch(cached, Gate(cached.contract.gate, cached.contract.eos_ids), slots, cached.contract.capacity)
        queue, running, gone = list(range(len(asked))), dict[int, Any](), set[int]()
        while queue or batch.busy:
            while queue and batch.takes(made := begin(queue[0], asked[queue[0]])):
                batch.add(made)
                running[queue.pop(0)] = made
            for row, made in running.items():
                if made.result is None and rng.random() < 0.1:
                    batch.drop(made)
                    gone.add(row)
            if batch.busy:
                batch.step()
        assert len(gone) > 3
        left = [row for row in running if row not in gone]
        assert [running[row].result.token_ids for row in left] == [expected[row] for row in left]


def test_a_batch_that_shrinks_goes_on_with_the_sequences_that_stay(cached: OrtBackend) -> None:
    """The cache of those that stay lies in memory anew, in their order."""
    contract, rng = cached.contract, np.random.default_rng(2)
    cached.open(3, 16)
    cached.cache[...] = rng.standard_normal(cached.cache.shape)
    before = cached.cache.copy()
    cached.keep(np.array([2, 0]))
    assert cached.cache.flags.c_contiguous and np.array_equal(cached.read_cache(), before[:, [2, 0]])
    assert all(part.data_ptr() == own.ctypes.data for part, own in zip(cached._parts, cached.cache, strict=True))
    cached.keep(np.array([1, 0, 1]))
    assert np.array_equal(cached.read_cache(), before[:, [0, 2, 0]])
    cached.keep(np.array([0, 1]))
    for rows in ([], [2], [0, -1]):
        with pytest.raises(ValueError, match="of a batch of 2"):
            cached.keep(np.array(rows, np.int64))
    assert contract.batch == FIELD_LIMITS["batch"]


def test_a_kv_cache_for_which_a_device_has_no_memory_leaves_the_one_before_it(
    cached: OrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = cached.contract
    engine = OrtBackend(cached.session, contract)
    request = Request(np.array([5, 6, 7]), DecodeOptions(2 * BLOCK, threshold=0.8))
    expected = generate(engine, request).token_ids
    engine.open(2, 16)
    before = engine.read_cache().shape
    make = ort_backend.make_value

    def make_none(array: np.ndarray, dtype: str, device: str) -> Any:
        if array.shape[0] > 2 or array.shape[2] > before[3]:
            raise RuntimeError("CUDA failure 2: out of memory")
        return make(array, dtype, device)

    monkeypatch.setattr(ort_backend, "make_value", make_none)
    for change in (
        lambda: engine.open(3, 16), lambda: engine.keep(np.array([0, 1, 0])), lambda: engine.grow(contract.capacity),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"does not fit into memory; shorten the request \(CUDA failure 2"):
            change()
        assert engine.read_cache().shape == before and len(engine._parts) == before[0]
    for _ in range(2):
        with pytest.raises(UserError, match="does not fit"):
            engine.open(3, 16)  # again and again, and not the KV cache of before
    assert generate(engine, request).token_ids == expected


def test_a_batch_whose_cache_grows_answers_as_one_that_was_long_from_the_start(tmp_path: Path) -> None:
    rng, source = np.random.default_rng(3), tiny.checkpoint(4, context=256)
    cached = OrtBackend(graph_of(source, tmp_path), make_export_contract(source, None, TOP_K), threads=1)
    lengths, asked = [*LENGTHS, 70, 3, 150], list[Request]()
    for length in lengths:
        ids = rng.integers(3, tiny.VOCAB, length)
        asked.append(Request(ids, DecodeOptions(2 * BLOCK, threshold=0.8)))
    expected = [generate(cached, each).token_ids for each in asked]
    batch, found, sizes = RunningBatch(cached, None, 4), dict[int, tuple[int, ...]](), list[int]()
    for request in asked:
        batch.add(request)
        outcome = batch.step()
        sizes.append(cached.capacity)
        found |= {step.row: step.result.token_ids for step in outcome.steps if step.result}
    while batch.busy:
        found |= {step.row: step.result.token_ids for step in batch.step().steps if step.result}
    assert [found[n] for n in range(len(asked))] == expected
    assert sizes[0] == 64 and sizes == sorted(sizes) and cached.capacity > 150


def test_a_short_request_pays_for_no_longer_one_before_it(cached: OrtBackend) -> None:
    sizes = []
    for batch, capacity in ((1, 64), (1, 8), (2, 8), (2, 64), (1, 8)):
        cached.open(batch, capacity)
        sizes.append(cached.cache.shape[1:4:2])
    padded = 64 + PADDED * BLOCK
    assert sizes == [(1, 64), (1, 64), (2, 64), (2, padded), (1, 64)]


def test_the_other_dialect_takes_one_sequence_and_says_so(tmp_path: Path) -> None:
    source = tiny.checkpoint(4)
    contract = make_export_contract(source, None, TOP_K)
    engine = OrtBackend(write_ort_graph(source, contract, "fp32", tmp_path)[0], contract, threads=1)
    assert engine.contract.batch == 1
    with pytest.raises(UserError, match="2 sequences were given at once; this engine runs 1"):
        engine.open(2, 16)


@pytest.mark.parametrize("inputs", [32, 48, 96, 128])
@pytest.mark.parametrize("name", BITS)
def test_a_product_of_few_bits_is_that_of_the_numbers_which_tensorrt_has(name: str, inputs: int) -> None:
    rng, chosen = np.random.default_rng(inputs), TRT_FORMATS[name]
    weight = (rng.standard_normal((inputs, 24)) * np.logspace(-2, 1, 24)).astype(np.float16).astype(np.float32)
    if (stored_block := chosen.choose_block(inputs)) is None:
        assert (name, inputs) == ("int4", 48)
        return
    stored, block = chosen.quantize(weight, stored_block), stored_block or WHOLE_OUTPUTS
    parts = make_arrays(stored, BITS[name], block)
    x = rng.standard_normal((5, inputs)).astype(np.float16)
    sizes = {"K": inputs, "N": 24, "bits": BITS[name], "block_size": block}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **sizes)  # type: ignore[arg-type]
    half, bits = TensorProto.FLOAT16, TensorProto.UINT8
    given = {"x": (half, x), "w": (bits, parts[name]), "s": (half, parts["scale"])}
    inputs_of = [helper.make_tensor_value_info(key, kind, value.shape) for key, (kind, value) in given.items()]
    graph = helper.make_graph([node], "one", inputs_of, [helper.make_tensor_value_info("y", half, [5, 24])])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    session = ort.InferenceSession(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    made = session.run(None, {key: value for key, (_, value) in given.items()})[0]
    exact = x.astype(np.float64) @ stored.dequantize().astype(np.float64)
    assert np.abs(made - exact).max() <= 2e-3 * np.abs(exact).max()


@pytest.mark.parametrize("precision", ["fp16", *BITS])
def test_every_precision_is_proved_by_the_numbers_that_it_stores(precision: str, tmp_path: Path) -> None:
    source = tiny.checkpoint(6)
    contract, file = make_export_contract(source, None, TOP_K), graph_of(source, tmp_path, precision)
    other = choose_comparison(source, "standard", precision)
    computed, judged = other.source, other.precision
    assert judged == "fp16" and (computed is source) == (precision == "fp16") == (other.note == "")
    assert all(check.ok for check in prove(computed, contract, file, judged))
    operators = {node.op_type for node in onnx.load(file).graph.node}
    assert ("MatMulNBits" in operators) == (precision in BITS) and "DynamicQuantizeMatMul" not in operators
    if precision == "int4":  # and not by those that it was made of, which int8 is nearer to than fp16 has to be
        assert not all(check.ok for check in prove(source, contract, file, judged))


def test_an_export_and_verify_compare_the_same_and_say_so_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(student(), ckpt := tmp_path / "student.pt")
    words = ["--ckpt", str(ckpt), "--task", "math"]
    assert export_onnx.main([*words, "--dialect", "standard", "--precision", "int4"]) == 0
    exported = capsys.readouterr().out
    assert verify.main([str(ckpt.with_suffix(".bundle")), *words, "--engine", "standard", "--prompts", "2"]) == 0
    verified = capsys.readouterr().out
    note = "next to the int4 numbers that it stores, by the bounds of fp16: "
    for told in (exported, verified):
        assert f"[ok] steps: {note}max |d log p| of the top-1 token " in told and f"[ok] answers: {note}" in told
        assert float(told.split("top-1 token ")[1].split()[0]) < 0.02 and "(bound 1e-01)" in told
    lost = float(verified.split("those numbers are up to ")[1].split()[0])
    assert lost > 0.02, "4 bits cost more than the engine is off by"


def test_bf16_is_checked_as_onnx_alone_and_kept_for_cuda(tmp_path: Path) -> None:
    source = tiny.checkpoint(6)
    contract, file = make_export_contract(source, None, TOP_K), graph_of(source, tmp_path, "bf16")
    [graph, steps] = prove(source, contract, file, "bf16")
    assert graph.ok and steps.detail == "not run: ONNX Runtime's CPU has no bf16"
    kinds = {value.name: value.dtype for value in ir.load(file).graph.inputs}
    assert kinds["past_key_values.0.key"] == ir.DataType.BFLOAT16
    entry = SimpleNamespace(name="past_key_values.0.key", type="tensor(bfloat16)", shape=["batch", 2, "capacity", 8])
    out = SimpleNamespace(name="present.0.key", shape=["batch", 2, "capacity", 8])
    session: Any = SimpleNamespace(get_inputs=lambda: [entry], get_outputs=lambda: [out])
    assert read_cache_form(session, "cuda").dtype == "bfloat16" and read_cache_form(session, "cuda").batch
    with pytest.raises(UserError, match="which ONNX Runtime's CPU does not compute; use --device cuda"):
        read_cache_form(session)


def test_a_bf16_cache_is_kept_as_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4)
    value = make_value(bits, "bfloat16", "cpu")
    assert value.data_type() == "tensor(bfloat16)"

    def copy_tensors(sources: list[Any], targets: list[Any]) -> None:  # ONNX Runtime has none within the CPU
        for source, target in zip(sources, targets, strict=True):
            ctypes.memmove(target.data_ptr(), source.data_ptr(), bits.nbytes)

    monkeypatch.setattr(ort, "copy_tensors", copy_tensors)
    found: NDArray[Any] = copy_to_host(value, "bfloat16")
    assert np.array_equal(found, bits)


def test_each_device_gets_the_dialect_that_suits_it() -> None:
    bundle = read(SAMPLES / "student.bundle")
    engines = [
        replace(bundle.engines[0], name=f"{dialect}-{precision}", dialect=dialect, precision=precision)
        for dialect, precisions in PRECISIONS_OF.items()
        for precision in precisions
    ]
    whole = replace(bundle, engines=tuple(engines))
    for name in (None, "ort"):
        assert whole.find_engines(name) == tuple(engines)
    assert [each.dialect for each in whole.find_engines("standard")] == ["standard"] * len(PRECISIONS_OF["standard"])
    on_gpu, on_cpu = (select_engines(whole, engines, device) for device in ("cuda", "cpu"))
    assert [each.name for each in on_gpu] == [f"standard-{p}" for p in PRECISIONS_OF["standard"]] + ["ort-fp16"]
    assert on_cpu[0].name == "ort-fp32" and {each.name for each in on_cpu} == {e.name for e in engines} - {
        "standard-bf16"
    }
    with pytest.raises(UserError, match=r"CPU has no kernels for standard-bf16 .*; use --device cuda"):
        select_engines(whole, [each for each in engines if each.precision == "bf16"], "cpu")
    with pytest.raises(UserError, match=r"CUDA has no kernels for ort-int8 .*export one"):
        select_engines(whole, [each for each in engines if each.name == "ort-int8"], "cuda")
    assert {name for names in PRECISIONS_OF.values() for name in names} <= set(PRECISIONS)
    assert all(set(KERNELS["cuda"][dialect]) <= set(PRECISIONS_OF[dialect]) for dialect in PRECISIONS_OF)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--precision", "bf16"), "--precision is bf16; the dialect ort has fp32, fp16, int8, int4"),
        (
            ("--device", "cuda", "--dialect", "ort", "--precision", "int8"),
            "CUDA has kernels for fp16 in the dialect ort",
        ),
    ],
)
def test_a_precision_that_a_dialect_or_cuda_lacks_is_refused_by_name(
    words: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.bundle"
    assert export_onnx.main(["--ckpt", str(SAMPLES / "student.pt"), "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and not out.exists()


def test_cuda_is_exported_for_in_the_dialect_standard() -> None:
    given = ["--ckpt", "student.pt"]
    assert export_onnx.parse_options([*given, "--device", "cuda"]).dialect == "standard"
    assert export_onnx.parse_options(given).dialect == "ort"
    assert export_onnx.parse_options([*given, "--dialect", "standard"]).device == "cpu"


def test_verify_against_pytorch_takes_the_engine_that_runs_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made.bundle"
    shutil.copytree(SAMPLES / "student.bundle", made)
    values = json.loads((made / "manifest.json").read_text())
    del values["engines"][1:]
    values["engines"][0] |= {"name": "standard-bf16", "dialect": "standard", "precision": "bf16"}
    (made / "manifest.json").write_text(json.dumps(values))
    assert verify.main([str(made), "--ckpt", str(SAMPLES / "student.pt"), "--prompts", "1"]) == 2
    assert "CPU has no kernels for standard-bf16" in capsys.readouterr().err
