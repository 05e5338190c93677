"""The page that an owner of a GPU sends: an engine that cannot be had leaves its section, whatever fails is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from samples.bench import gpu_report

REFUSED = "error: onnxruntime 1.31.1 runs on the CPU alone"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """The commands that are run; what is called `trt` or on the GPU cannot be had here."""
    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> tuple[int, str]:
        ran.append(command)
        missing = "cuda" in command or "trt" in command or command[0] == "export.trt"
        return (2, REFUSED) if missing else (0, "done")

    monkeypatch.setattr(gpu_report, "run", run)
    monkeypatch.setattr(gpu_report, "FOLDER", tmp_path / "gpu")
    return ran


def test_engines_that_cannot_be_had_fail_nothing_and_are_told(
    commands: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_report.main() == 0
    page = capsys.readouterr().out
    assert page.count("(not to be had here)") == page.count(REFUSED) == 3
    assert "## bench, ONNX Runtime on the CPU, fp32\n\ndone" in page
    (on_gpu,) = (each for each in commands if "cuda" in each)
    assert on_gpu[on_gpu.index("--engine") + 1] == "ort-fp16", "fp32 is refused on CUDA"
    assert ("--precision", "fp16") in [each[-2:] for each in commands if each[0] == "export.onnx"]


@pytest.mark.parametrize(("name", "code"), [("pytest", 1), ("export.onnx", 2), ("export.trt", 1)])
def test_what_fails_is_told_by_the_exit_code(
    name: str, code: int, commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    well = gpu_report.run
    monkeypatch.setattr(gpu_report, "run", lambda *each: (code, "bad") if each[0] == name else well(*each))
    assert gpu_report.main() == 1
    assert f"(exit code {code})\n\nbad" in capsys.readouterr().out


def test_a_refusal_is_part_of_what_a_command_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = gpu_report.run("runtime.bench", "no-such.bundle")
    assert code == 2 and output.startswith("error: no bundle at no-such.bundle") and "\n" not in output
    assert output in capsys.readouterr().err
