"""The cores that a process may use, by affinity, hyperthreads and quotas of cgroup v1, v2 and both; idle threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from export import verify
from export.proof.instrumented import load_instrumented
from runtime import bench, generate, serve
from runtime import verify as runtime_verify
from runtime.bundle import store
from runtime.bundle.store import Bundle, Engine
from runtime.engines.ort import threads
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.ort.threads import count_physical_cores, read_cpu_quota
from runtime.engines.registry import KINDS, OpenOptions
from runtime.errors import UserError
from runtime.open_bundle import load
from train import torch_backend

GOLDEN = Path(__file__).parent / "golden" / "ort.bundle"
SAMPLE = Path(__file__).parent.parent / "samples" / "student.bundle"  # with a reference, which verify needs
HYBRID = "4:memory:/a/b\n3:cpu,cpuacct:/a/b\n1:name=systemd:/a/b\n0::/a/b\n"
V1 = "sys/fs/cgroup/cpu,cpuacct"
V2 = "sys/fs/cgroup"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v1(folder: str, quota: str, period: str = "100000\n") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {f"{V2}/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "max 100000\n", f"{V2}/a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "800000 100000\n", f"{V2}/a/cpu.max": "10000 20000\n"}, 0.5),
        ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {f"{V2}/c/cpu.max": "50000 100000\n"}, None),  # another's
        ("0::/a:b\n", {f"{V2}/a:b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/../../a\n", {f"{V2}/cpu.max": "50000 100000\n"}, 0.5),  # above the container's root
        ("0::/gone (deleted)\n", {f"{V2}/cpu.max": "50000 100000\n"}, 0.5),
        ("2:cpuacct,cpu:/\n", v1("sys/fs/cgroup/cpuacct,cpu", "150000\n"), 1.5),
        ("2:cpu:/a\n", v1("sys/fs/cgroup/cpu/a", "-1\n"), None),
        ("2:cpu:/a\n", v1("sys/fs/cgroup/cpu/a", "-1\n") | v1("sys/fs/cgroup/cpu", "100000\n", "50000\n"), 2),
        ("2:cpu,cpuacct:/docker/1a2b\n", v1(V1, "400000\n"), 4),  # the host's path, with the container's own mounted
        (HYBRID, v1(f"{V1}/a/b", "200000\n") | {"sys/fs/cgroup/unified/a/cpu.max": "max 100000\n"}, 2),
        (HYBRID, v1(f"{V1}/a/b", "200000\n") | {"sys/fs/cgroup/unified/a/cpu.max": "100000 100000\n"}, 1),
        (HYBRID, {}, None),
        ("", {f"{V2}/cpu.max": "50000 100000\n"}, 0.5),
        ("garbage\n::\n\0\n", {f"{V2}/cpu.max": "50000 100000\n"}, 0.5),
        *(
            ("0::/\n", {f"{V2}/cpu.max": text}, None)
            for text in ("", "max", "x y", "0 100000", "1 0", "-5 -1", "1 2 3")
        ),
        ("2:cpu:/\n", v1("sys/fs/cgroup/cpu", "\0"), None),
    ],
)
def test_a_quota_is_the_least_of_all_levels(
    groups: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert read_cpu_quota(tree(tmp_path, {"proc/self/cgroup": groups, **files})) == quota


def test_files_that_cannot_be_read_limit_nothing(tmp_path: Path) -> None:
    assert read_cpu_quota(tmp_path) is None
    for folder in ("proc/self/cgroup", f"{V2}/cpu.max", f"{V1}/cpu.cfs_quota_us"):  # folders, as root reads any file
        (tmp_path / folder).mkdir(parents=True)
    assert read_cpu_quota(tmp_path) is None
    os.rmdir(tmp_path / V2 / "cpu.max")
    (tmp_path / V2 / "cpu.max").write_bytes(b"\xff\xfe")
    assert read_cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("100000", 1), ("250000", 2), ("900000", 4), ("max", 4)])
def test_threads_are_the_least_of_affinity_physical_cores_and_quota(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_read_siblings", lambda cpu: str(cpu // 2))
    root = tree(tmp_path, {f"{V2}/cpu.max": f"{quota} 100000\n"})
    assert count_physical_cores(root) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert count_physical_cores(root) == 1


def test_pytorch_gets_no_more_threads_than_the_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch_backend, "count_physical_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch_backend.limit_threads()
    torch_backend.limit_threads(5)
    torch_backend.limit_threads(parameters=torch_backend.LITTLE - 1)
    torch_backend.limit_threads(parameters=torch_backend.LITTLE)
    assert given == [2, 5, 1, 2]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    torch_backend.limit_threads()
    torch_backend.limit_threads(parameters=1)
    assert given == [2, 5, 1, 2]


def spinning_of(session: ort.InferenceSession) -> str | None:
    """Returns what a session was told of spinning, None for nothing: ONNX Runtime's default, which spins."""
    options = session.get_session_options()
    try:
        return str(options.get_session_config_entry("session.intra_op.allow_spinning"))
    except RuntimeError:  # no such entry
        return None


def test_threads_spin_unless_the_python_api_is_told_that_they_sleep() -> None:
    backends = [load(GOLDEN, verify="never", threads=2).backend]
    backends += [load(GOLDEN, verify="never", threads=2, allow_spinning=told).backend for told in (True, False)]
    assert [isinstance(each, OrtBackend) and spinning_of(each.session) for each in backends] == [None, None, "0"]


def test_threads_sleep_while_pytorch_computes() -> None:
    bundle = store.read(GOLDEN)
    candidate = verify.open_candidate(bundle, bundle.find_engine(), trust=False)
    assert isinstance(candidate, OrtBackend) and spinning_of(candidate.session) == "0"
    twin = load_instrumented(bundle.path / bundle.find_engine().graph, candidate)
    assert twin.session is not candidate.session and spinning_of(twin.session) == "0"


@pytest.mark.parametrize("command", [generate, bench, serve, runtime_verify])
def test_every_command_that_loads_a_bundle_takes_the_option(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[OpenOptions] = []

    def note(bundle: Bundle, engines: Sequence[Engine], options: OpenOptions) -> None:
        opened.append(options)
        raise UserError("noted")

    monkeypatch.setitem(KINDS, "ort", replace(KINDS["ort"], open=note))  # type: ignore[arg-type]
    words = [str(SAMPLE), *([] if command is runtime_verify else ["--verify", "never"])]
    words += ["--token-ids", "5"] if command is generate else []
    for more in ([], ["--allow-spinning"], ["--no-allow-spinning"]):
        assert command.main([*words, *more]) == 2
    assert [each.allow_spinning for each in opened] == [True, True, False]
