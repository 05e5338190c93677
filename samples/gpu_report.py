"""One page about this machine's GPU, to paste back: its tests, the sample student timed. Run by `make gpu-report`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "gpu"
BUNDLE = FOLDER / "student.bundle"
CKPT = str(ROOT / "samples" / "student.pt")
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
QUERY = "name,compute_cap,memory.total,driver_version,clocks.max.memory"


def run(*command: str) -> tuple[int, str]:
    """Runs one of the project's commands; its exit code, and what it printed without the progress."""
    print(f"$ python -m {' '.join(command)}", file=sys.stderr, flush=True)
    environment = {**os.environ, "BLOCKSTEP_GPU_BUNDLE": str(BUNDLE)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stdout.strip()


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


def sections() -> list[tuple[str, int, str]]:
    """Title, exit code and output of each part; a part whose engine could not be made is left out."""
    made = [
        ("ONNX export", *run("export.onnx", "--ckpt", CKPT, "--out", str(BUNDLE))),
        ("TensorRT build", *run("export.trt", "--ckpt", CKPT, "--out", str(BUNDLE))),
    ]
    parts = [
        *made,
        ("GPU tests", *run("pytest", "tests/test_gpu.py", "-m", "gpu", "-rA", "-s", "-p", "no:cacheprovider")),
    ]
    for title, options, needs in (
        ("bench, ONNX Runtime on the CPU", (), made[0]),
        ("bench, ONNX Runtime on the GPU", ("--device", "cuda"), made[0]),
        ("bench, TensorRT", ("--engine", "trt"), made[1]),
    ):
        if needs[1] == 0:
            parts.append((title, *run("runtime.bench", str(BUNDLE), "--repeat", "50", *options)))
    return parts


def main() -> int:
    """Writes the page, prints it, and is 1 where a part failed."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    parts = sections()
    page = ["# blockstep GPU report", "", *machine()]
    for title, code, output in parts:
        page += ["", f"## {title}" + (f" (exit code {code})" if code else ""), "", output]
    text = "\n".join(page) + "\n"
    (FOLDER / "report.txt").write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(code for _, code, _ in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
