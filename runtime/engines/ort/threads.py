"""How many cores this process may use, and how many of them a forward pass takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
UNIFIED, CPU = "", "cpu"  # the controller whose group counts: of cgroup v2, which names none, and of v1
MOUNTS = {
    "sys/fs/cgroup": UNIFIED,
    "sys/fs/cgroup/unified": UNIFIED,
    "sys/fs/cgroup/cpu": CPU,
    "sys/fs/cgroup/cpu,cpuacct": CPU,
    "sys/fs/cgroup/cpuacct,cpu": CPU,
}
QUOTAS = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))  # files that hold quota and period, of v2 and v1
LITTLE = 16 << 20  # bytes of int8 weights


def usual_threads(precision: str, size: int) -> int:
    """Returns the threads per forward pass of an engine with so many bytes of weights: the physical cores.

    One if the weights are int8 and few: a product of theirs is over before a second thread has woken, and each of
    them waits for it. LOG.md has the size at which both are equal.
    """
    return 1 if precision == "int8" and size < LITTLE else physical_cores()


def physical_cores(root: Path = ROOT) -> int:
    """Counts the cores this process may use: those it may run on, a core's threads counted once, within its CPU quota.

    A quota of 2.5 CPUs gives 2: the threads of a forward pass wait for each other by spinning, so a third would use the
    quota up before its period ends, and then all of them are stopped. At least 1. root: of the file system, for tests.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Returns the CPUs that this process's control groups allow, the least of all levels; None if any number."""
    groups = _groups(root / "proc" / "self" / "cgroup")
    quotas = [_quota(level) for mount, kind in MOUNTS.items() for level in _levels(root / mount, groups.get(kind, "/"))]
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(file: Path) -> dict[str, str]:
    """Returns this process's control group per controller, from lines such as `4:cpu,cpuacct:/docker/1a2b`."""
    try:
        lines = [line.split(":", 2) for line in file.read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    return {name: line[2] for line in lines if len(line) == 3 for name in line[1].split(",")}


def _levels(mount: Path, group: str) -> Iterator[Path]:
    """Yields the folder of a control group and of all above it. In a container only the last may exist: its own is
    mounted there, and its path is the host's, or leads out of the mount."""
    parts = [part for part in group.split("/") if part]
    for depth in range(0 if ".." in parts else len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _quota(folder: Path) -> float | None:
    for files in QUOTAS:
        try:
            quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
        except (OSError, ValueError):  # not there, or "max"
            continue
        if quota > 0 and period > 0:  # -1: any
            return quota / period
    return None


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)
