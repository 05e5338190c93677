"""One page about this machine's GPU, to paste back: its tests, the sample student timed. Run by `make gpu-report`.

An engine that cannot be had here, since its library is not installed or does not know this machine, leaves its section
with the line that says so; the rest is done. No GPU was at hand when this was written: only that was run.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu"
BUNDLE = FOLDER / "student.bundle"
CKPT = str(ROOT / "samples" / "student.pt")
GPU_TESTS = "tests/test_engines_gpu.py"
PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "polygraphy",
    "cuda-bindings",
    "numpy",
)
DONE, MISTAKE = 0, 2  # exit codes of the project's commands
QUERY = "name,compute_cap,memory.total,driver_version,clocks.max.memory"


@dataclass(frozen=True, slots=True)
class Part:
    """A section of the page. optional: whether its engine may be missing, which its command refuses as a mistake."""

    title: str
    code: int
    output: str
    optional: bool = False

    @property
    def failed(self) -> bool:
        return self.code != DONE and not (self.optional and self.code == MISTAKE)


def run(*command: str) -> tuple[int, str]:
    """Runs one of the project's commands; returns its exit code and what it printed, without the progress."""
    print(f"$ python -m {' '.join(command)}", file=sys.stderr, flush=True)
    environment, last = {**os.environ, "BLOCKSTEP_GPU_BUNDLE": str(BUNDLE)}, ""
    words = [sys.executable, "-m", *command]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        subprocess.Popen(words, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.PIPE, text=True) as process,
    ):
        for last in process.stderr or ():
            print(last, end="", file=sys.stderr, flush=True)
        code = process.wait()
        out.seek(0)
        return code, "\n".join(text for text in (out.read().strip(), last.strip() if code else "") if text)


def machine() -> list[str]:
    """The GPU as its driver tells it, and the versions of what is installed."""
    lines = [f"{platform.platform()}, Python {platform.python_version()}"]
    if tool := shutil.which("nvidia-smi"):
        done = subprocess.run(
            [tool, f"--query-gpu={QUERY}", "--format=csv"], capture_output=True, text=True, check=False
        )
        lines += done.stdout.strip().splitlines()
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return lines


def sections() -> list[Part]:
    """Makes the engines, tests them, times them."""
    made = ("--ckpt", CKPT, "--out", str(BUNDLE))
    bench = ("runtime.bench", str(BUNDLE), "--repeat", "50", "--engine")
    return [
        Part("ONNX export, fp32", *run("export.onnx", *made)),
        Part("ONNX export, fp16", *run("export.onnx", *made, "--precision", "fp16")),
        Part("TensorRT build", *run("export.trt", *made), optional=True),
        Part("GPU tests", *run("pytest", GPU_TESTS, "-m", "gpu", "-rA", "-s", "-p", "no:cacheprovider")),
        Part("bench, ONNX Runtime on the CPU, fp32", *run(*bench, "ort-fp32")),
        Part("bench, ONNX Runtime on the GPU, fp16", *run(*bench, "ort-fp16", "--device", "cuda"), optional=True),
        Part("bench, TensorRT", *run(*bench, "trt"), optional=True),
    ]


def main() -> int:
    """Writes the page and prints it; returns 1 if a part failed."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    parts = sections()
    page = ["# blockstep GPU report", "", *machine()]
    for part in parts:
        state = f" (exit code {part.code})" if part.failed else " (not to be had here)" if part.code else ""
        page += ["", f"## {part.title}{state}", "", part.output]
    text = "\n".join(page) + "\n"
    (FOLDER / "report.txt").write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(part.failed for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
