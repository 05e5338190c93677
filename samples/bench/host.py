"""Measures the section `host`: what the runtime costs on top of the engine; time, memory, disk of the sample student.

Each figure is taken over several fresh processes. The first start after a reboot, from a cold disk, is not measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from runtime import Answer, Model, load
from runtime.bundle.store import read
from runtime.perf.latency import compute_percentiles

from .goals import Entry, judge
from .ratios import LOOP_US, PARTS

ROOT = Path(__file__).resolve().parents[2]
PROMPT = ROOT / "samples" / "prompt_math.txt"
THREADS, ANSWERS, ROUNDS = 4, 25, 5  # threads of one session, answers per thread, rounds
OVER_ONE = 0.9  # lower bound on the answers per second of all threads, over those of one
# Prints the milliseconds of each stage of a process that answers one prompt, and its peak memory: VmHWM, since
# getrusage's maximum begins with the memory of the parent process.
FRESH = """
import json, sys, time
started = time.perf_counter()
from runtime import load
imported = time.perf_counter()
model = load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter()
answer = model.generate(open(sys.argv[3], encoding="utf-8").read())
answered = time.perf_counter()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({
    "import_ms": 1000 * (imported - started), "load_ms": 1000 * (loaded - imported),
    "first_answer_ms": 1000 * (answered - loaded),
    "peak_mb": int(peak) * 1024 / 1e6,
}))
"""


def measure(bundle: Path, threads: int, starts: int, install: bool) -> dict[str, Any]:
    """Returns spreads over `starts` fresh processes, host milliseconds per forward pass, megabytes (1e6 bytes) on disk.

    install: whether a runtime-only environment is made with pip, and its size measured.
    """
    rows = [run_fresh(bundle, threads) for _ in tqdm(range(starts), unit="start", disable=None)]
    made: dict[str, Any] = {
        name: asdict(compute_percentiles(np.array([row[name] for row in rows]))) for name in rows[0]
    }
    answers = bench(bundle, threads)["answers"]
    made |= {name: answers[name] for name in ("host_ms_per_forward", "open_ms", "tokens_per_second")}
    engine = read(bundle).find_engine()
    made["threads"] = measure_shared_session(bundle, threads)
    made["goals"] = list(make_goals(made))
    made["bundle_mb"] = sum(file.stat().st_size for file in bundle.iterdir()) / 1e6
    made["engine"] = {"name": engine.name, "mb": sum((bundle / name).stat().st_size for name in engine.files) / 1e6}
    return made | ({"install": install_size()} if install else {})


def measure_shared_session(bundle: Path, threads: int) -> dict[str, Any]:
    """Returns answers per second of one thread, and of THREADS over one session, per round; the texts must agree."""
    model, prompt = load(bundle, threads=threads), PROMPT.read_text(encoding="utf-8")
    models = [model, *(model.share() for _ in range(THREADS - 1))]
    with ThreadPoolExecutor(THREADS) as pool:

        def generate_all(count: int) -> list[Answer]:
            def generate_share(mine: Model) -> list[Answer]:
                return [mine.generate(prompt) for _ in range(THREADS * ANSWERS // count)]

            return [answer for found in pool.map(generate_share, models[:count]) for answer in found]

        generate_all(THREADS)  # allocates every KV cache
        rates: dict[int, list[float]] = {1: [], THREADS: []}
        for _ in range(ROUNDS):
            for count, found in rates.items():
                started = time.perf_counter()
                texts = {answer.text for answer in generate_all(count)}
                found.append(THREADS * ANSWERS / (time.perf_counter() - started))
                assert len(texts) == 1
    return {"threads": THREADS, "answers_a_second": {"one": rates[1], "all": rates[THREADS]}}


def make_goals(made: dict[str, Any]) -> Iterator[Entry]:
    """Yields the goals for the host's own time per forward pass, and for threads that share a session."""
    host = made["host_ms_per_forward"]
    yield judge("the host's loop, µs per forward pass", [1000 * host[part] for part in PARTS], most=LOOP_US)
    rates = made["threads"]["answers_a_second"]
    what = f"answers of {THREADS} threads on one session, over one thread's"
    yield judge(what, np.array(rates["all"]) / np.array(rates["one"]), least=OVER_ONE)


def run_fresh(bundle: Path, threads: int) -> dict[str, float]:
    """Runs one process; returns milliseconds from start to end, those of its stages, and its peak memory in MB."""
    started = time.perf_counter()
    told = run_python("-c", FRESH, str(bundle), str(threads), str(PROMPT))
    whole = 1000 * (time.perf_counter() - started)
    stages: dict[str, float] = json.loads(told)
    return {"whole_ms": whole, **stages}


def bench(bundle: Path, threads: int) -> dict[str, Any]:
    """Returns the report of runtime.bench."""
    words = ("--threads", str(threads), "--json", "--prompt", PROMPT.read_text(encoding="utf-8"))
    report: dict[str, Any] = json.loads(run_python("-m", "runtime.bench", str(bundle), *words).splitlines()[-1])
    return report


def run_python(*words: str) -> str:
    """Runs this Python; returns what it prints. Raises SystemExit with its code if it fails, its error on stderr."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def install_size() -> dict[str, Any]:
    """Returns MB of what `pip install '.[cpu]'` adds to a bare Python, by folder and in all; the reason if it fails."""
    with TemporaryDirectory() as folder:
        run_python("-m", "venv", "--without-pip", folder)
        there = Path(folder) / "bin" / "python"
        words = ["--python", str(there), "install", "--quiet", "--no-compile", "-c", "constraints.txt", ".[cpu]"]
        line = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
        done = subprocess.run(line, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            return {"left_out": " ".join(done.stderr.split())[-300:]}
        packages = next((Path(folder) / "lib").glob("python*/site-packages"))
        sizes = {path.name: count_bytes(path) / 1e6 for path in sorted(packages.iterdir())}
        largest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:8])
        return {"mb": sum(sizes.values()), "largest_mb": largest}


def count_bytes(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
