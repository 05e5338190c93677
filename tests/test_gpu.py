"""What only a GPU can show: engines built here against PyTorch, graphs against launches, memory, latency.

`make gpu-report` runs them. BLOCKSTEP_GPU_BUNDLE names a bundle of the sample student with engines that this machine
built; without it they are built here, which takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import load
from runtime.backend import Forward
from runtime.bundle import Bundle, read
from runtime.cuda import load_cuda
from runtime.decode import Request, generate
from runtime.errors import UserError
from runtime.measure import canvas, commit, fused, timed
from runtime.model import Model
from runtime.trt_backend import TrtBackend, open_engines
from train import checkpoint
from train.torch_backend import TorchBackend, contract_of

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent
CKPT = ROOT / "samples" / "student.pt"
STEPS = 10_000
FLOOR = 20.0  # a step may take that many times what reading its weights takes; a model this small waits for launches


def why_skipped() -> str | None:
    """What is missing here: cuda-python, a driver or a GPU."""
    try:
        return None if load_cuda().gpu() else "no NVIDIA driver, or no GPU"
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample student with an fp16 engine of TensorRT's and one for ONNX Runtime."""
    if reason := why_skipped():
        pytest.skip(reason)
    if named := os.environ.get("BLOCKSTEP_GPU_BUNDLE"):
        return read(Path(named))
    from export import onnx, trt  # type: ignore[attr-defined]  # needed where engines are built, and only there

    folder = tmp_path_factory.mktemp("gpu") / "student.bundle"
    assert onnx.main(["--ckpt", str(CKPT), "--out", str(folder)]) == 0
    assert trt.main(["--ckpt", str(CKPT), "--out", str(folder), "--precision", "fp16"]) == 0
    return read(folder)


@pytest.fixture
def backend(made: Bundle) -> Iterator[TrtBackend]:
    opened = open_engines(made, made.matching("trt"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reference() -> TorchBackend:
    saved = checkpoint.load(CKPT)
    return TorchBackend(saved.build(), contract_of(saved))


def prompts(count: int, vocab: int) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, vocab, int(length)) for length in rng.integers(1, 90, count)]


def test_answers_are_those_of_pytorch(backend: TrtBackend, reference: TorchBackend) -> None:
    """fp16 may decide otherwise where PyTorch decides by little; one answer in twenty is allowed to."""
    asked = [Request(prompt, 48) for prompt in prompts(40, backend.contract.vocab)]
    same = [generate(backend, each).token_ids == generate(reference, each).token_ids for each in asked]
    print(f"{sum(same)} of {len(same)} answers are PyTorch's, token for token")
    assert sum(same) >= 0.95 * len(same)


def test_every_forward_is_near_pytorchs(backend: TrtBackend, reference: TorchBackend) -> None:
    worst = 0.0
    for prompt in prompts(10, backend.contract.vocab):
        for engine in (backend, reference):
            engine.open(1, 256)
        for forward in (prefill(prompt), canvas(backend.contract, len(prompt))):
            ours, theirs = backend.forward(forward), reference.forward(forward)
            worst = max(worst, float(np.abs(np.log(ours.confidence) - np.log(theirs.confidence)).max()))
    print(f"largest |difference of log p| {worst:.1e}")
    assert worst < 0.05


def test_a_replayed_graph_is_a_plain_launch(made: Bundle) -> None:
    replayed = open_engines(made, made.matching("trt"))
    plain = open_engines(made, made.matching("trt"), graphs=False)
    assert not replayed.name.endswith("graphs"), "the engine cannot be captured, so nothing here is replayed"
    for engine in (replayed, plain):
        engine.open(1, 256)
    for make in (canvas, commit, fused):
        for past in (0, 16, 100):
            one, other = replayed.forward(make(plain.contract, past)), plain.forward(make(plain.contract, past))
            assert one.token.tolist() == other.token.tolist()
            assert np.array_equal(one.confidence, other.confidence) and np.array_equal(one.entropy, other.entropy)
    replayed.close()
    plain.close()


def test_ten_thousand_steps_take_no_more_memory(backend: TrtBackend) -> None:
    cuda = load_cuda()
    backend.open(1, 256)
    forward = canvas(backend.contract, 64)
    backend.forward(forward)
    before = cuda.free_bytes()
    for _ in range(STEPS):
        backend.forward(forward)
    grown = before - cuda.free_bytes()
    print(f"{grown} bytes more after {STEPS} steps")
    assert grown <= 1 << 20, "other processes may move it a little; a leak of one array a step would be far more"


def test_a_step_is_not_far_above_the_bandwidth_floor(made: Bundle, backend: TrtBackend) -> None:
    """The floor is the engine's file read once, at the bandwidth that copies on the device reach here."""
    backend.open(1, 256)
    forward = canvas(backend.contract, 64)
    step = float(np.median(timed(lambda: backend.forward(forward), 200, 50)))
    weights = (made.path / backend.engines[0].model).stat().st_size
    floor = weights / bandwidth()
    print(f"a step takes {1e6 * step:.0f} us, its weights alone {1e6 * floor:.0f} us ({step / floor:.1f} x)")
    assert step < max(FLOOR * floor, 1e-3), "1 ms: below it, launching and waiting decide and not the weights"


def test_onnxruntime_on_the_gpu_answers_as_on_the_cpu(made: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA")
    here: Model = load(made.path)
    there: Model = load(made.path, device="cuda")
    for prompt in prompts(10, here.contract.vocab):
        assert there.generate(prompt, max_new_tokens=48).token_ids == here.generate(prompt, max_new_tokens=48).token_ids


def bandwidth() -> float:
    """Bytes a second that are read where a block of 256 MB is copied on the device."""
    cuda, size = load_cuda(), 1 << 28
    stream, source, target = cuda.stream(), cuda.allocate(size), cuda.allocate(size)

    def copy() -> None:
        cuda.copy_rows(target, size, source, size, size, 1, stream)
        cuda.synchronise(stream)

    seconds = float(np.median(timed(copy, 20, 5)))
    for address in (source, target):
        cuda.free(address)
    cuda.destroy_stream(stream)
    return 2 * size / seconds


def prefill(prompt: NDArray[np.int64]) -> Forward:
    width = len(prompt)
    return Forward(prompt[None], np.zeros(1, np.int64), np.full((1, width), width), np.array([[width - 1]]))
