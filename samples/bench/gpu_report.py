"""Writes one page about this machine's GPU, to paste back: every engine and precision of the sample student is proved
and timed. Run by `make gpu-report`.

If an engine cannot be measured here, because a library is not installed or does not know this GPU, its row has the
error, and the others are measured. No GPU was at hand when this was written: only such rows were tried.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu"
OWN_PYTHON = ROOT / ".gpu"  # what `make gpu-report` installs into
CKPT = str(ROOT / "samples" / "student.pt")
GPU_TESTS = "tests/test_engines_gpu.py"
NEEDED = ("numpy", "tokenizers", "torch", "safetensors", "tqdm", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
PACKAGES = (
    "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "polygraphy", "cuda-bindings", "numpy",
)  # fmt: skip
FLAVORS = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
DONE, FAILED, MISTAKE = 0, 1, 2  # exit codes of the project's commands
QUERY = "name,compute_cap,memory.total,driver_version,clocks.max.memory"
PROMPTS, CALIBRATION, REPEAT = 50, 64, 50  # prompts per proof, prompts per calibration, timed forward passes
NOT_HERE = "not to be had here: "
MESSAGE = (
    "A step is one forward pass of a masked block, at half of the KV cache; medians. Tokens per second are of whole "
    "answers, with CUDA graphs if the engine has them; ONNX Runtime's engines have none."
)


@dataclass(frozen=True, slots=True)
class Row:
    """Holds a row of the summary. verified: `yes`, the first check that failed, or why there is no engine; wrong:
    whether that is an error; details: the lines below the table."""

    engine: str
    precision: str
    verified: str
    milliseconds: str = ""
    with_graphs: str = ""
    tokens: str = ""
    wrong: bool = False
    details: tuple[str, ...] = field(default=())

    def cells(self) -> tuple[str, ...]:
        return self.engine, self.precision, self.verified, self.milliseconds, self.with_graphs, self.tokens


@dataclass(frozen=True, slots=True)
class Target:
    """Describes an engine to build, prove and time.

    Args:
        export, verify: commands.
        name: of an ONNX Runtime engine; a TensorRT engine is named by its export, which may refuse this GPU.
        graphs: whether it may replay CUDA graphs.
        refusals: whether `verify` may refuse the machine; otherwise it must accept what `export` built on it.
    """

    engine: str
    precision: str
    export: tuple[str, ...]
    verify: tuple[str, ...]
    name: str = ""
    bench: tuple[str, ...] = ()
    graphs: bool = False
    refusals: bool = False


def run(*command: str) -> tuple[int, str, str]:
    """Runs one of the project's commands; returns its exit code, what it printed, and the last line of its progress."""
    print(f"$ python -m {' '.join(command)}", file=sys.stderr, flush=True)
    environment, last = {**os.environ, "BLOCKSTEP_GPU_BUNDLE": str(FOLDER / "student.bundle")}, ""
    words = [sys.executable, "-m", *command]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        subprocess.Popen(words, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.PIPE, text=True) as process,
    ):
        for line in process.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
        code = process.wait()
        out.seek(0)
        return code, out.read().strip(), last.removeprefix("error: ")


def run_json(*command: str) -> tuple[int, dict[str, Any], str]:
    """Runs a command with --json; returns its exit code, its object, {} for none, and the last line of its progress."""
    code, printed, last = run(*command, "--json")
    try:
        return code, json.loads(printed.splitlines()[-1]), last
    except (ValueError, IndexError):
        return code, {}, last


def describe_machine() -> list[str]:
    """Returns the GPU as its driver reports it, and the versions of what is installed."""
    lines = [f"{platform.platform()}, Python {platform.python_version()}"]
    if tool := shutil.which("nvidia-smi"):
        done = subprocess.run(
            [tool, f"--query-gpu={QUERY}", "--format=csv"], capture_output=True, text=True, check=False
        )
        lines += done.stdout.strip().splitlines()
    else:
        lines.append("no nvidia-smi: no NVIDIA driver, or a Jetson")
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return lines


def list_ort_targets() -> Iterator[Target | Row]:
    """Yields ONNX Runtime's engines: on the CPU, for comparison, and those that CUDA has kernels for."""
    from runtime.engines.ort.ort_cuda import KERNELS
    from runtime.engines.registry import KINDS
    from runtime.errors import UserError

    bundle = str(FOLDER / "student.bundle")

    def target(dialect: str, precision: str, device: str) -> Target:
        name, words = f"{dialect}-{precision}", ("--device", device)
        export = ("export.onnx", "--ckpt", CKPT, "--out", bundle, "--precision", precision, "--dialect", dialect)
        verify = ("runtime.verify", bundle, "--engine", name, *words)
        label = f"ONNX Runtime, {device.upper()}, {dialect}"
        return Target(label, precision, export, verify, name, words, refusals=device != "cpu")

    for dialect in KERNELS["cpu"]:
        yield target(dialect, "fp32", "cpu")
    try:
        KINDS["ort"].import_library("cuda")
    except UserError as error:
        yield make_missing_row("ONNX Runtime, CUDA", ", ".join(KERNELS["cuda"]["standard"]), str(error))
        return
    for dialect, precisions in KERNELS["cuda"].items():
        yield from (target(dialect, precision, "cuda") for precision in precisions)


def list_trt_targets() -> Iterator[Target | Row]:
    """Yields an engine per precision and installed TensorRT, or the reason why there are none."""
    from export.precisions import PRECISIONS
    from export.trt_engines.gpu_support import find_library
    from runtime.engines.trt.cuda import load_cuda
    from runtime.errors import UserError

    bundle = str(FOLDER / "student.bundle")
    for flavor, engine in FLAVORS.items():
        try:
            find_library(flavor)
            if (gpu := load_cuda().find_gpu()) is None:
                raise UserError("no NVIDIA driver, or no GPU, was found")
        except UserError as error:
            yield make_missing_row(engine, f"all {len(PRECISIONS)}", str(error))
            continue
        for row in PRECISIONS.values():
            export = ("export.trt", "--ckpt", CKPT, "--out", bundle, "--flavor", flavor, "--precision", row.name)
            export += ("--compute-capability", str(gpu.capability)) if flavor == "rtx" else ()
            export += ("--data", str(write_calibration())) if row.calibrated else ()
            verify = ("export.verify", bundle, "--ckpt", CKPT, "--prompts", str(PROMPTS), "--engine")
            yield Target(engine, row.name, export, verify, graphs=True)


def write_calibration() -> Path:
    """Writes prompts of the sample tasks, from the split that students are trained on; returns the file's path."""
    from train.tasks import choose_tasks

    file = FOLDER / "calibration.jsonl"
    if not file.exists():
        chosen = choose_tasks("math,code", None)
        problems = [p for task in chosen for p in task.problems("train", CALIBRATION // len(chosen), 0)]
        file.write_text("".join(json.dumps({"prompt": p.prompt, "answer": p.answer}) + "\n" for p in problems))
    return file


def make_missing_row(engine: str, precision: str, reason: str) -> Row:
    return Row(engine, precision, NOT_HERE + " ".join(reason.split()))


def report(target: Target) -> Row:
    """Builds, proves and times an engine, until a command fails; returns the engine's row."""
    row = Row(target.engine, target.precision, "")
    code, made, last = run_json(*target.export)
    row = add_details(row, "export", code, made, last)
    if code:
        return explain_failure(row, code, made, last, may_refuse=not target.name)
    name = target.name or made["engines"][-1]["name"]
    verify = target.verify if target.name else (*target.verify, name)
    code, found, last = run_json(*verify)
    row = add_details(row, "verify", code, found, last)
    if code:
        return explain_failure(row, code, found, last, target.refusals)
    row = replace(row, verified="yes")
    bench = ("runtime.bench", str(FOLDER / "student.bundle"), "--repeat", str(REPEAT), "--engine", name, *target.bench)
    return add_times(row, bench, target.graphs)


def explain_failure(row: Row, code: int, found: dict[str, Any], last: str, may_refuse: bool) -> Row:
    """Returns the row of an engine that is missing or wrong, with the first check that failed, or the error line."""
    if code == MISTAKE and may_refuse:
        return replace(row, verified=NOT_HERE + last)
    failed = [f"{check['name']}: {check['detail']}" for check in found.get("checks", ()) if not check["ok"]]
    return replace(row, verified=failed[0] if failed else f"exit code {code}: {last}", wrong=True)


def add_details(row: Row, title: str, code: int, found: dict[str, Any], last: str) -> Row:
    """Returns the row with a command's findings added to its details."""
    checks = [f"[{'ok' if each['ok'] else 'x'}] {each['name']}: {each['detail']}" for each in found.get("checks", ())]
    seconds = f", {found['seconds']} s" if "seconds" in found else ""
    said = [f"exit code {code}: {last}"] if code and not checks else []
    return replace(row, details=(*row.details, f"{title}{seconds}", *checks, *said))


def add_times(row: Row, bench: Sequence[str], graphs: bool) -> Row:
    """Returns the row with its times, without CUDA graphs and with them."""
    from runtime.bench import report as bench_lines

    for option in ("--no-cuda-graphs", "") if graphs else ("",):
        code, found, last = run_json(*bench, *([option] if option else []))
        if code:
            row = add_details(row, f"bench {option}", code, found, last)
            return replace(row, milliseconds=f"bench: exit code {code}: {last}", wrong=True)
        captured = not found["conditions"]["backend"].endswith("without CUDA graphs")
        time = f"{step_time(found):.3f}"
        if option or not graphs:
            row = replace(row, milliseconds=time)
        else:
            row = replace(row, with_graphs=time if captured else "none could be captured")
        row = replace(row, tokens=f"{found['answers']['tokens_per_second']['median']:.0f}")
        row = replace(row, details=(*row.details, "", f"bench {option}".strip(), *bench_lines(found)))
    return row


def step_time(found: dict[str, Any]) -> float:
    """Returns the median milliseconds of a step over a half-full KV cache."""
    steps = [each for each in found["forwards"] if each["forward"] == "step"]
    return float(steps[len(steps) // 2]["ms"]["median"])


def format_page(rows: Sequence[Row], tests: tuple[int, str], note: str) -> str:
    """Returns the page: the summary, the machine, the tests, then the details of each row."""
    head = ("engine", "precision", "verified", "ms per step", "with CUDA graphs", "tokens per second")
    lines = ["# blockstep GPU report", ""]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in (head, ["---"] * 6)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells()) + " |" for row in rows]
    code, printed = tests
    last = (printed.splitlines() or [""])[-1].strip("= ")
    lines += [
        "",
        MESSAGE,
        "",
        f"GPU tests: {last}" + (f" (exit code {code})" if code else ""),
        "",
        *describe_machine(),
        note,
    ]
    for row in rows:
        if row.details:
            state = " (wrong)" if row.wrong else ""
            lines += ["", f"## {row.engine}, {row.precision}{state}", "", "```text", *row.details, "```"]
    return "\n".join([*lines, "", f"## {GPU_TESTS}", "", "```text", printed, "```", ""])


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m samples.bench.gpu_report",
        description=(
            "Verifies and times each engine on this GPU, writes build/gpu/report.md and prints it. Exit 1 if "
            "something is wrong, 2 if nothing can be run."
        ),
    )
    parser.add_argument(
        "--no-install",
        action="store_true",
        help=(
            "use the packages of this Python, for a machine without a network (default: those that `make "
            "gpu-report` installs)"
        ),
    )
    return parser.parse_args(argv)


def explain_obstacle(no_install: bool) -> str:
    """Returns why this Python cannot make the report, "" if it can."""
    if not no_install and Path(sys.prefix) != OWN_PYTHON:
        return f"{sys.executable} is not what make gpu-report installs into; run that, or give --no-install"
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        return (
            f"{sys.executable} lacks {', '.join(lacking)}; name a Python that has them: make gpu-report NO_INSTALL=1 "
            "PYTHON=path"
        )
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and prints it; returns 1 if something is wrong, 2 if nothing can be run."""
    args = parse_options(argv)
    if reason := explain_obstacle(args.no_install):
        print(f"error: {reason}", file=sys.stderr)
        return MISTAKE
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    targets = [*list_ort_targets(), *list_trt_targets()]
    rows = [target if isinstance(target, Row) else report(target) for target in targets]
    tests = (DONE, "not run: pytest is not installed")
    if find_spec("pytest") is not None:
        code, printed, last = run("pytest", GPU_TESTS, "-m", "gpu", "-rA", "-s", "-p", "no:cacheprovider")
        tests = code, printed or last
    used = "nothing was installed for it" if args.no_install else "installed by make gpu-report"
    text = format_page(rows, tests, f"Python packages: {used}")
    (FOLDER / "report.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"{FOLDER / 'report.md'}: docs/parity.md says where to send it", file=sys.stderr)
    return FAILED if any(row.wrong for row in rows) or tests[0] else DONE


if __name__ == "__main__":
    sys.exit(main())
