"""Counts the cores that this process may use, and chooses the number of threads per forward pass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
UNIFIED, CPU = "", "cpu"  # names in /proc/self/cgroup: cgroup v2 names no controller, v1 has `cpu`
MOUNTS = {
    "sys/fs/cgroup": UNIFIED,
    "sys/fs/cgroup/unified": UNIFIED,
    "sys/fs/cgroup/cpu": CPU,
    "sys/fs/cgroup/cpu,cpuacct": CPU,
    "sys/fs/cgroup/cpuacct,cpu": CPU,
}
QUOTAS = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))  # files with quota and period: of v2, of v1
LITTLE = 16 << 20  # bytes; a smaller int8 engine runs on one thread by default


def choose_threads(precision: str, size: int) -> int:
    """Returns the default number of threads per forward pass: the physical cores, or 1 for a small int8 engine.

    In a small int8 engine a product could end before a second thread has woken, but would wait for it. LOG.md has the
    size at which both are equally fast. size: bytes of the engine's files.
    """
    return 1 if precision == "int8" and size < LITTLE else count_physical_cores()


def count_physical_cores(root: Path = ROOT) -> int:
    """Counts the physical cores that this process may run on, within its CPU quota; at least 1.

    A quota of 2.5 CPUs gives 2: threads of a forward pass spin while they wait for each other, so a third thread would
    use up the quota before its period ends, and the system would then stop all of them. root: the file system's, for
    tests.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = len({_read_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    quota = read_cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def read_cpu_quota(root: Path = ROOT) -> float | None:
    """Returns how many CPUs this process's control groups allow, the least over all levels; None without a quota."""
    groups = _read_groups(root / "proc" / "self" / "cgroup")
    quotas = [
        _read_quota(level)
        for mount, kind in MOUNTS.items()
        for level in _list_levels(root / mount, groups.get(kind, "/"))
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _read_groups(file: Path) -> dict[str, str]:
    """Returns this process's control group per controller, from lines such as `4:cpu,cpuacct:/docker/1a2b`."""
    try:
        lines = [line.split(":", 2) for line in file.read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    return {name: line[2] for line in lines if len(line) == 3 for name in line[1].split(",")}


def _list_levels(mount: Path, group: str) -> Iterator[Path]:
    """Yields the folders of a control group and of all groups above it.

    In a container perhaps only the last exists, the mount: the container's group is mounted there, and `group` is a
    path on the host or leads out of the mount.
    """
    parts = [part for part in group.split("/") if part]
    for depth in range(0 if ".." in parts else len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _read_quota(folder: Path) -> float | None:
    for files in QUOTAS:
        try:
            quota, period = map(int, " ".join((folder / file).read_text() for file in files).split())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:  # -1: no quota
            return quota / period
    return None


def _read_siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)
