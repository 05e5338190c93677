"""The page that an owner of a GPU sends: what cannot be had leaves a row that says why, whatever is wrong is exit 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.engines.trt import cuda
from runtime.errors import UserError
from samples.bench import gpu_report

ROOT = Path(__file__).parent.parent
OK = {"checks": [{"name": "steps", "ok": True, "detail": "max |d log p| 0.01"}], "seconds": 1.5}
OFF = {"checks": [*OK["checks"], {"name": "keys", "ok": False, "detail": "off by 3.0"}]}  # type: ignore[misc]
SPREAD = {"p10": 1, "p90": 2}
STEP = {"forward": "step", "width": 4, "rows": 4}
MEASURED = {
    "conditions": {"backend": "one", "engine": "two"},
    "answers": {"count": 1, "mode": "block", "tokens_per_second": {**SPREAD, "median": 800}},
    "candidates": [],
    "forwards": [{**STEP, "past": past, "ms": {**SPREAD, "median": past / 100}} for past in (0, 24, 48)],
}


class Gpu:
    """A machine with both kinds of TensorRT and a GPU, on which commands answer as scripted: by module and a word."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []
        self.answers: dict[tuple[str, str], tuple[int, dict[str, Any], str]] = {}

    def run_json(self, *command: str) -> tuple[int, dict[str, Any], str]:
        self.ran.append(command)
        for (module, word), answer in self.answers.items():
            if command[0] == module and word in command:
                return answer
        if command[0] == "runtime.bench":
            slow = {"conditions": {"backend": "one, without CUDA graphs"}} if "--no-cuda-graphs" in command else {}
            return 0, MEASURED | slow, ""
        if command[0] != "export.trt":
            return 0, OK, ""
        precision, flavor = (command[command.index(option) + 1] for option in ("--precision", "--flavor"))
        return 0, OK | {"engines": [{"name": f"trt-{precision}-{flavor}"}]}, ""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    machine = Gpu()
    monkeypatch.setattr(gpu_report, "run_json", machine.run_json)
    monkeypatch.setattr(gpu_report, "run", lambda *command: (0, "3 passed in 2.00s", ""))
    monkeypatch.setattr(gpu_report, "FOLDER", tmp_path / "gpu")
    monkeypatch.setattr(cuda.Cuda, "find_gpu", lambda self: cuda.Gpu("Fake 4090", 89))
    monkeypatch.setattr("export.trt_engines.gpu_support.find_library", lambda flavor: None)
    monkeypatch.setattr("runtime.engines.ort.ort_cuda.check_available", lambda: None)
    return machine


def table(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], list[str]]:
    """The rows of the page's summary, by engine and precision."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.replace("\\|", "¦").strip("| ").split(" | ")] for line in lines]
    return {(row[0], row[1]): row[2:] for row in cells[2:]}


def test_every_engine_and_precision_is_proved_and_timed_with_and_without_cuda_graphs(
    gpu: Gpu, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_report.main(["--no-install"]) == 0
    rows = table(capsys)
    precisions = ["fp32", "fp16", "bf16", "int8", "int8-static", "fp8", "int4", "nvfp4"]
    expected = [(f"ONNX Runtime, CPU, {dialect}", "fp32") for dialect in ("ort", "standard")]
    expected += [("ONNX Runtime, CUDA, standard", each) for each in ("fp32", "fp16", "bf16", "int8", "int4")]
    expected.append(("ONNX Runtime, CUDA, ort", "fp16"))
    assert list(rows) == expected + [(e, p) for e in ("TensorRT", "TensorRT for RTX") for p in precisions]
    assert all(row[0] == "yes" for row in rows.values())
    assert rows["TensorRT", "int8"] == ["yes", "0.240", "0.240", "800"]
    assert "GPU tests: 3 passed" in (gpu_report.FOLDER / "report.md").read_text()
    calls = [" ".join(each) for each in gpu.ran]
    on_gpu = [each for each in calls if each.startswith("runtime.verify") and each.endswith("--device cuda")]
    of_ort = [each for each in on_gpu if "--engine ort-" in each]
    assert len(on_gpu) == 6 and [each.split()[-3] for each in of_ort] == ["ort-fp16"], "the others are refused on CUDA"
    for name in (f"trt-{precision}-{flavor}" for precision in precisions for flavor in ("tensorrt", "rtx")):
        [proof] = [each for each in calls if each.startswith("export.verify") and each.endswith(f"--engine {name}")]
        times = [each for each in calls if each.startswith("runtime.bench") and f"--engine {name}" in each]
        assert len(times) == 2 and "--no-cuda-graphs" in times[0] and "--no-cuda-graphs" not in times[1], proof
    builds = [each for each in gpu.ran if each[0] == "export.trt"]
    assert all(("--compute-capability" in each) == ("rtx" in each) for each in builds)
    assert all(("--data" in each) == ("int8-static" in each) for each in builds)
    assert (gpu_report.FOLDER / "calibration.jsonl").read_text().count("\n") == gpu_report.CALIBRATION


def test_what_cannot_be_had_leaves_its_row_with_the_reason_and_fails_nothing(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_library(flavor: str) -> None:
        if flavor == "tensorrt":
            raise UserError("no TensorRT is installed here")

    monkeypatch.setattr("export.trt_engines.gpu_support.find_library", no_library)
    gpu.answers["export.trt", "nvfp4"] = (2, {}, "nvfp4 needs a GPU of compute capability 100 or newer")
    gpu.answers["runtime.verify", "cuda"] = (2, {}, "it needs NVIDIA's driver 580 or newer")
    gpu.answers["runtime.bench", "trt-fp8-rtx"] = (
        0,
        MEASURED | {"conditions": {"backend": "x, without CUDA graphs"}},
        "",
    )
    assert gpu_report.main(["--no-install"]) == 0
    rows = table(capsys)
    assert rows["TensorRT", "all 8"][0] == "not to be had here: no TensorRT is installed here"
    assert rows["TensorRT for RTX", "nvfp4"][0].endswith("nvfp4 needs a GPU of compute capability 100 or newer")
    assert rows["ONNX Runtime, CUDA, ort", "fp16"][0].startswith("not to be had here: it needs NVIDIA's driver 580")
    assert rows["TensorRT for RTX", "fp8"][2] == "none could be captured"
    assert not any(each[0] == "runtime.bench" and "cuda" in each for each in gpu.ran), "an engine that is not there"


@pytest.mark.parametrize(
    ("module", "word", "answer", "seen"),
    [
        ("export.verify", "trt-fp16-rtx", (1, OFF, ""), "keys: off by 3.0"),
        ("export.verify", "trt-fp16-rtx", (2, {}, "the engine is not that of its manifest"), "exit code 2: the engine"),
        ("export.trt", "fp16", (1, {}, "cudaMalloc failed"), "exit code 1: cudaMalloc failed"),
        ("runtime.verify", "cuda", (1, OFF, ""), "keys: off by 3.0"),
        ("export.onnx", "fp32", (2, {}, "no space left"), "exit code 2: no space left"),
        ("runtime.bench", "trt-fp16-rtx", (1, {}, "cudaGraphLaunch failed"), "bench: exit code 1: cudaGraphLau"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_in_its_row_and_exit_1(
    module: str, word: str, answer: tuple[int, dict[str, Any], str], seen: str, gpu: Gpu,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    gpu.answers[module, word] = answer
    assert gpu_report.main(["--no-install"]) == 1
    assert any(cell.startswith(seen) for row in table(capsys).values() for cell in row)


def test_gpu_tests_that_fail_are_exit_1(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report, "run", lambda *command: (1, "1 failed in 2.00s", ""))
    assert gpu_report.main(["--no-install"]) == 1
    assert "GPU tests: 1 failed in 2.00s (exit code 1)" in capsys.readouterr().out


def test_a_python_that_cannot_make_it_is_one_line(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_report.main([]) == 2, "not the environment that make installs"
    assert "is not what make gpu-report installs into" in capsys.readouterr().err
    monkeypatch.setattr(gpu_report, "NEEDED", ("numpy", "no_such_package"))
    assert gpu_report.main(["--no-install"]) == 2
    err = capsys.readouterr().err
    assert "lacks no_such_package; name a Python" in err and err.count("\n") == 1 and not gpu.ran
    rule = (ROOT / "Makefile").read_text().partition("ifdef NO_INSTALL\ngpu-report:\n")[2].partition("else")[0]
    assert rule.strip() == "@$(PYTHON) -m samples.bench.gpu_report --no-install"


def test_a_refusal_is_part_of_what_a_command_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, values, last = gpu_report.run_json("runtime.bench", "no-such.bundle")
    assert code == 2 and not values and last.startswith("no bundle at no-such.bundle")
    assert f"error: {last}" in capsys.readouterr().err
