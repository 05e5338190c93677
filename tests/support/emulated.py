"""Checks the sample's engines on an emulated CPU: emulated.py CPU DIR, started by other_cpus.sh, needs runtime/ alone.

They run forward passes that were recorded in PyTorch (forced_steps.py). Single keys, values and tokens differ wherever
an activation is rounded to another step, so the means of their norms are compared, which stay.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import load, load_check
from runtime.backend import Backend, Forward
from runtime.bundle.store import read
from runtime.engines.ort import saturation
from runtime.engines.ort.ort_backend import OrtBackend

BOUND = 1e-3  # relative, of a layer's mean norm; right products keep within 3e-4, saturating ones are 5e-3 off or more
PATIENCE = 600  # seconds of computing that a load check has; an emulated CPU is tens of times slower than the real one
REPORT = """
from pathlib import Path
from tests.support.emulated import describe_cpu
Path({file!r}).write_text(json.dumps(describe_cpu()), encoding="utf-8")
"""


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU's features by numpy's names, one that it has and one that it lacks, and whether int8 products saturate."""

    has: str
    lacks: str
    saturates: bool


CPUS = {
    "haswell": Cpu("AVX2", "AVX512F", True),
    "nehalem": Cpu("SSE42", "AVX", False),
    "aarch64": Cpu("ASIMDDP", "SSE2", False),
    "a72": Cpu("ASIMD", "ASIMDDP", False),
}


def describe_cpu() -> dict[str, Any]:
    """Returns numpy's name of every CPU feature here, and whether int8 products saturate."""
    found = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    return {"features": sorted(name for name in found if found[name]), "saturates": saturation.u8s8_saturates()}


def compute_mean_norms(
    backend: Backend, read_cache: Callable[[], NDArray[Any]], answers: Sequence[Sequence[Forward]]
) -> NDArray[np.float64]:
    """Runs recorded forward passes and returns the mean norm of the keys and the values that they write, [2 * layers].

    read_cache: returns the backend's KV cache [2 * layers, 1, kv_heads, capacity, head_dim].
    """
    norms = []
    for answer in answers:
        backend.open(1, max(int(each.past_length[0]) + each.input_ids.shape[1] for each in answer))
        for each in answer:
            backend.forward(each)
            past, width = int(each.past_length[0]), each.input_ids.shape[1]
            new = read_cache()[..., past : past + width, :].astype(np.float64)
            norms.append(np.linalg.norm(new, axis=-1).reshape(len(new), -1))
    return np.concatenate(norms, axis=1).mean(axis=1)


def run_checks(cpu: Cpu, folder: Path) -> Iterator[tuple[str, bool, str]]:
    """Yields each check's name, whether it holds, and what was found."""
    recorded = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
    answers = [[Forward(*(np.array(part) for part in each)) for each in answer] for answer in recorded["answers"]]
    here = describe_cpu()
    emulated = cpu.has in here["features"] and cpu.lacks not in here["features"]
    yield "emulated CPU", emulated, f"{cpu.has} and no {cpu.lacks} expected, found {' '.join(here['features'])}"
    yield "probe", here["saturates"] == cpu.saturates, f"int8 products {'' if here['saturates'] else 'do not '}saturate"
    yield "isolated load check's process", describe_by_load_check(folder) == here, "has the same CPU"
    bundle = read(folder / "student.bundle")
    for precision, expected in recorded["norms"].items():
        backend = load(bundle.path, engine=f"ort-{precision}", threads=1, verify="always").backend
        assert isinstance(backend, OrtBackend)
        found = has_option(backend)
        yield f"{precision}, session option", found == cpu.saturates, "is set" if found else "is not set"
        gap = measure_distance(backend, answers, expected)
        yield f"{precision}, norms", gap <= BOUND, f"{gap:.1e} from PyTorch's (bound {BOUND:.0e})"
    if cpu.saturates:
        saturation.u8s8_saturates = lambda: False  # type: ignore[assignment]
        for precision in ("int8", "int4"):
            backend = OrtBackend(bundle.path / bundle.find_engine(f"ort-{precision}").model, bundle.contract, threads=1)
            gap = measure_distance(backend, answers, recorded["norms"][precision])
            wrong = not has_option(backend) and gap > BOUND
            yield f"{precision} without the option is wrong", wrong, f"{gap:.1e} from PyTorch's"


def measure_distance(backend: OrtBackend, answers: Sequence[Sequence[Forward]], expected: Sequence[float]) -> float:
    """Returns the largest relative difference of a mean norm."""
    return float(np.abs(compute_mean_norms(backend, lambda: backend.cache, answers) / np.array(expected) - 1).max())


def has_option(backend: OrtBackend) -> bool:
    try:
        return bool(backend.session.get_session_options().get_session_config_entry(saturation.OPTION) == "1")
    except RuntimeError:  # the entry does not exist
        return False


def describe_by_load_check(folder: Path) -> dict[str, Any]:
    """Returns what the process of the isolated load check reports about its CPU."""
    program = load_check.CHILD
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "cpu.json"
        load_check.CHILD = program + REPORT.format(file=str(file))
        try:
            load_check.attempt(read(folder / "student.bundle"), None)
        finally:
            load_check.CHILD = program
        return dict(json.loads(file.read_text(encoding="utf-8")))


def main(name: str, folder: Path) -> int:
    """Prints every check and returns the exit code."""
    load_check.SECONDS = PATIENCE
    started, failed = time.perf_counter(), 0
    for check, right, detail in run_checks(CPUS[name], folder):
        print(f"{name}: [{'ok' if right else 'x'}] {check}: {detail}", flush=True)
        failed += not right
    print(f"{name}: {failed} checks failed, {time.perf_counter() - started:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
