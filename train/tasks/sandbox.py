"""Runs candidate programs against assertions in a separate process with limits on time and memory.

This is a guard against accidents (endless loops, large allocations, early exits). It is not a security boundary
against hostile code: for that, run the whole grader in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys

TYPES = False  # these imports are for the type checker alone: without them a worker starts faster
if TYPES:
    from collections.abc import Sequence
    from subprocess import Popen
    from typing import Any

GRACE = 5.0  # seconds that a worker may take longer than the program's limit
BLOCKED_EVENTS = frozenset(
    (
        "os.fork",
        "os.forkpty",
        "os.system",
        "os.posix_spawn",
        "os.exec",
        "subprocess.Popen",
        "os.kill",
        "os.killpg",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.chown",
        "os.truncate",
        "os.putenv",
        "shutil.rmtree",
        "signal.pthread_kill",
        "resource.prlimit",
        "resource.setrlimit",
        "socket.__new__",
        "ctypes.dlopen",
    )
)


def run(programs: Sequence[tuple[str, tuple[str, ...]]], *, seconds: float = 2.0, memory_mb: int = 256) -> list[bool]:
    """Returns for each (program, assertions) whether the program and then all its assertions run without an error.

    `seconds` limits the elapsed time and `memory_mb` the address space of each program. A program that fails
    in any way gives False and raises nothing; OSError is raised only if no worker process can be started.
    """
    import tempfile

    results: list[bool] = []
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        worker = None
        try:
            for program, tests in programs:
                worker = worker or _start(folder)
                answer = _run_job(
                    worker,
                    {"program": program, "tests": list(tests), "seconds": seconds, "memory": memory_mb << 20},
                    seconds + GRACE,
                )
                results.append(answer == b"1")
                if answer not in (b"0", b"1"):
                    _stop(worker)
                    worker = None
        finally:
            if worker:
                _stop(worker)
    return results


def _start(folder: str) -> Popen[bytes]:
    from subprocess import DEVNULL, PIPE, Popen

    return Popen(
        [sys.executable, "-I", os.path.abspath(__file__), "--worker"],
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=folder,
        env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
        bufsize=0,
        start_new_session=True,
    )


def _run_job(worker: Popen[bytes], job: dict[str, object], seconds: float) -> bytes:
    """Returns the worker's one-byte answer, or nothing if it died or did not answer in time."""
    assert worker.stdin is not None and worker.stdout is not None
    data = memoryview(json.dumps(job).encode() + b"\n")
    try:
        while data:
            data = data[worker.stdin.write(data) :]
        ready, _, _ = select.select([worker.stdout], [], [], seconds)
        return os.read(worker.stdout.fileno(), 1) if ready else b""
    except OSError:
        return b""


def _stop(worker: Popen[bytes]) -> None:
    _kill_group(worker.pid)
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        pipe.close()


def _kill_group(group: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)


def _serve() -> None:
    """Answers every job on standard input with one byte on standard output."""
    for line in sys.stdin.buffer:
        os.write(1, b"1" if _passes(json.loads(line)) else b"0")


def _passes(job: dict[str, Any]) -> bool:
    token = os.urandom(16)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_child(job, token, writer)
    os.close(writer)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    ready, _, _ = select.select([reader], [], [], job["seconds"])
    passed = bool(ready) and os.read(reader, len(token) + 1) == token
    os.close(reader)
    _kill_group(child)
    with contextlib.suppress(OSError):
        os.kill(child, signal.SIGKILL)  # a child that left its process group is not killed with the group
    os.waitpid(child, 0)
    return passed


def _run_child(job: dict[str, Any], token: bytes, writer: int) -> None:
    """Runs one job and exits the process; the token is written only after the last assertion held."""
    leave = os._exit
    write = os.write
    try:
        _confine(job, writer)
        space = {"__name__": "candidate"}
        exec(compile(job["program"], "<program>", "exec"), space)
        for test in job["tests"]:
            exec(compile(test, "<test>", "exec"), space)
        write(writer, token)
    finally:
        leave(0)


def _confine(job: dict[str, Any], writer: int) -> None:
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    limits = (
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_CPU, int(job["seconds"]) + 1),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, writer + 9),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    )
    for kind, limit in limits:
        resource.setrlimit(kind, (limit, limit))
    signal.setitimer(signal.ITIMER_REAL, job["seconds"])
    # The kernel does not limit root's processes, so starting any is refused here too.
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    if event in BLOCKED_EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & changes):
        raise PermissionError(event)


if __name__ == "__main__" and sys.argv[1:] == ["--worker"]:
    _serve()
