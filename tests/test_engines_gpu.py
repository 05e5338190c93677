"""What only a GPU can show: engines built here against PyTorch, graphs against launches, memory, latency.

`make gpu-report` runs them. BLOCKSTEP_GPU_BUNDLE names a bundle of the sample student with engines that this machine
built; without it they are built here, which takes minutes. Tests of an engine that cannot be had here are skipped.
None of this has run yet: no GPU was at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import load
from runtime.backend import Forward
from runtime.bundle.store import Bundle, Engine, read
from runtime.decoding.loop import generate, generate_batch
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_cuda import CUDA
from runtime.engines.ort.ort_session import load_session
from runtime.engines.trt.cuda import load_cuda
from runtime.engines.trt.trt_backend import TrtBackend, open_engines
from runtime.errors import UserError
from runtime.model import Model
from runtime.perf.latency import make_canvas_step, make_commit, make_fused, time_calls
from train import open_checkpoint
from train.torch_backend import TorchBackend, derive_contract

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent
CKPT = ROOT / "samples" / "student.pt"
STEPS = 10_000
FP16 = 0.05  # on |difference of log p| of the top-1 token, between engines of fp16
FLOOR = 20.0  # a step may take that many times what reading its weights takes; a model this small waits for launches


def why_skipped() -> str | None:
    """What is missing here: cuda-python, a driver or a GPU."""
    try:
        return None if load_cuda().find_gpu() else "no NVIDIA driver, or no GPU"
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample student with engines for ONNX Runtime in fp32 and fp16, in both dialects."""
    if reason := why_skipped():
        pytest.skip(reason)
    if named := os.environ.get("BLOCKSTEP_GPU_BUNDLE"):
        return read(Path(named))
    from export import onnx  # needed where engines are built, and only there

    folder = tmp_path_factory.mktemp("gpu") / "student.bundle"
    for dialect in ("ort", "standard"):
        for precision in ("fp32", "fp16"):
            words = ("--precision", precision, "--dialect", dialect)
            assert onnx.main(["--ckpt", str(CKPT), "--out", str(folder), *words]) == 0
    return read(folder)


@pytest.fixture(scope="module")
def made(exported: Bundle) -> Bundle:
    """The same bundle with an fp16 engine of TensorRT's."""
    if "BLOCKSTEP_GPU_BUNDLE" not in os.environ:
        from export import trt  # type: ignore[attr-defined]

        if trt.main(["--ckpt", str(CKPT), "--out", str(exported.path), "--precision", "fp16"]) != 0:
            pytest.skip("no engine of TensorRT can be built here")
    bundle = read(exported.path)
    if not half_engines(bundle):
        pytest.skip("the bundle has no fp16 engine of TensorRT")
    return bundle


def half_engines(bundle: Bundle) -> list[Engine]:
    """The engines of TensorRT that the bounds here are for; `make gpu-report` has those of other precisions too."""
    return [engine for engine in bundle.engines if engine.build is not None and engine.precision == "fp16"]


@pytest.fixture
def backend(made: Bundle) -> Iterator[TrtBackend]:
    opened = open_engines(made, half_engines(made))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference() -> TorchBackend:
    saved = open_checkpoint.load(CKPT)
    return TorchBackend(saved.build(), derive_contract(saved))


def prompts(count: int, vocab: int) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, vocab, int(length)) for length in rng.integers(1, 90, count)]


def test_answers_are_those_of_pytorch(backend: TrtBackend, reference: TorchBackend) -> None:
    """fp16 may decide otherwise where PyTorch decides by little; one answer in twenty is allowed to."""
    asked = [Request(prompt, DecodeOptions(48)) for prompt in prompts(40, backend.contract.vocab)]
    same = [generate(backend, each).token_ids == generate(reference, each).token_ids for each in asked]
    print(f"{sum(same)} of {len(same)} answers are PyTorch's, token for token")
    assert sum(same) >= 0.95 * len(same)


def test_every_forward_is_near_pytorchs(backend: TrtBackend, reference: TorchBackend) -> None:
    worst = 0.0
    for prompt in prompts(10, backend.contract.vocab):
        for engine in (backend, reference):
            engine.open(1, 256)
        for forward in (prefill(prompt), make_canvas_step(backend.contract, len(prompt))):
            ours, theirs = backend.forward(forward), reference.forward(forward)
            worst = max(worst, float(np.abs(np.log(ours.confidence) - np.log(theirs.confidence)).max()))
    print(f"largest |difference of log p| {worst:.1e}")
    assert worst < FP16


def test_a_replayed_graph_is_a_plain_launch(made: Bundle) -> None:
    replayed = open_engines(made, half_engines(made))
    plain = open_engines(made, half_engines(made), cuda_graphs=False)
    assert not replayed.name.endswith("graphs"), "the engine cannot be captured, so nothing here is replayed"
    for engine in (replayed, plain):
        engine.open(1, 256)
    for make in (make_canvas_step, make_commit, make_fused):
        for past in (0, 16, 100):
            one, other = replayed.forward(make(plain.contract, past)), plain.forward(make(plain.contract, past))
            assert one.token.tolist() == other.token.tolist()
            assert np.array_equal(one.confidence, other.confidence) and np.array_equal(one.entropy, other.entropy)
    replayed.close()
    plain.close()


def test_ten_thousand_steps_take_no_more_memory(backend: TrtBackend) -> None:
    cuda = load_cuda()
    backend.open(1, 256)
    forward = make_canvas_step(backend.contract, 64)
    backend.forward(forward)
    before = cuda.count_free_bytes()
    for _ in range(STEPS):
        backend.forward(forward)
    grown = before - cuda.count_free_bytes()
    print(f"{grown} bytes more after {STEPS} steps")
    assert grown <= 1 << 20, "other processes may move it a little; a leak of one array a step would be far more"


def test_a_step_is_not_far_above_the_bandwidth_floor(made: Bundle, backend: TrtBackend) -> None:
    """The floor is the engine's file read once, at the bandwidth that copies on the device reach here."""
    backend.open(1, 256)
    forward = make_canvas_step(backend.contract, 64)
    step = float(np.median(time_calls(lambda: backend.forward(forward), 200, 50)))
    weights = (made.path / backend.engines[0].model).stat().st_size
    floor = weights / bandwidth()
    print(f"a step takes {1e6 * step:.0f} us, its weights alone {1e6 * floor:.0f} us ({step / floor:.1f} x)")
    assert step < max(FLOOR * floor, 1e-3), "1 ms: below it, launching and waiting decide and not the weights"


def on_cuda(exported: Bundle, engine: str) -> Model:
    """An engine of ONNX Runtime on the GPU; skips where it cannot run there."""
    from runtime.engines.ort.no_telemetry import ort

    if CUDA not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    try:
        return load(exported.path, engine=engine, device="cuda")
    except UserError as error:
        if "cannot run" in str(error):  # no driver or library for it; a graph that is refused is an error
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module", params=["standard-fp32", "standard-fp16", "ort-fp16"])
def halves(request: pytest.FixtureRequest, exported: Bundle) -> tuple[Model, Model]:
    """An engine of ONNX Runtime on the CPU and on the GPU."""
    there = on_cuda(exported, request.param)
    return load(exported.path, engine=request.param), there


def test_onnxruntime_on_the_gpu_predicts_as_on_the_cpu(halves: tuple[Model, Model]) -> None:
    """Teacher-forced: both read the same tokens, over a KV cache that grows by several forward passes of one width."""
    here, there = (model.backend for model in halves)
    worst, same, count = 0.0, 0, 0
    for prompt in prompts(10, here.contract.vocab):
        for engine in (here, there):
            engine.open(1, 4 * len(prompt))
        for i in range(4):  # a KV cache that was copied to the host at the first pass would be stale at the second
            forward = replace(prefill(prompt, i * len(prompt)), rows=np.arange(len(prompt))[None])
            ours, theirs = there.forward(forward), here.forward(forward)
            equal = ours.token == theirs.token
            worst = max(worst, float(np.abs(np.log(ours.confidence) - np.log(theirs.confidence))[equal].max(initial=0)))
            same, count = same + int(equal.sum()), count + equal.size
    print(f"largest |difference of log p| {worst:.1e}; {same} of {count} top-1 tokens are the CPU's")
    assert worst < FP16 and same >= 0.97 * count


def test_most_answers_of_onnxruntime_on_the_gpu_are_the_cpus(halves: tuple[Model, Model]) -> None:
    here, there = halves
    asked = prompts(40, here.contract.vocab)
    same = [
        there.generate(each, max_new_tokens=48).result.token_ids
        == here.generate(each, max_new_tokens=48).result.token_ids
        for each in asked
    ]
    print(f"{sum(same)} of {len(same)} answers are the CPU's, token for token")
    assert sum(same) >= 0.9 * len(same)


def test_batches_of_onnxruntime_on_the_gpu_answer_as_one_request_does(exported: Bundle) -> None:
    model = on_cuda(exported, "standard-fp32")
    asked = [Request(each, DecodeOptions(48)) for each in prompts(24, model.backend.contract.vocab)]
    alone = [generate(model.backend, each).token_ids for each in asked]
    for slots in (3, 8):
        found = [result.token_ids for result in generate_batch(model.backend, asked, slots=slots)]
        same = sum(ours == theirs for ours, theirs in zip(found, alone, strict=True))
        print(f"{slots} at once: {same} of {len(asked)} answers are the solo ones")
        assert same >= len(asked) - 1, "another batch is another order of sums"


def test_the_other_dialects_fp32_is_refused_on_the_gpu(exported: Bundle) -> None:
    """By the manifest, and by where ONNX Runtime puts the nodes if the manifest does not tell."""
    on_cuda(exported, "ort-fp16")  # skips where there is no CUDA
    with pytest.raises(UserError, match="CUDA has no kernels for ort-fp32"):
        load(exported.path, engine="ort-fp32", device="cuda")
    with pytest.raises(UserError, match="GroupQueryAttention, which reads or writes the KV cache"):
        load_session(exported.path / exported.find_engine("ort-fp32").model, device="cuda")


def bandwidth() -> float:
    """Bytes a second that are read where a block of 256 MB is copied on the device."""
    cuda, size = load_cuda(), 1 << 28
    stream, source, target = cuda.create_stream(), cuda.allocate(size), cuda.allocate(size)

    def copy() -> None:
        cuda.copy_rows(target, size, source, size, size, 1, stream)
        cuda.synchronize(stream)

    seconds = float(np.median(time_calls(copy, 20, 5)))
    for address in (source, target):
        cuda.free(address)
    cuda.destroy_stream(stream)
    return 2 * size / seconds


def prefill(prompt: NDArray[np.int64], past: int = 0) -> Forward:
    width = len(prompt)
    return Forward(prompt[None], np.array([past]), np.full((1, width), past + width), np.array([[width - 1]]))
