"""Runs code in a new Python process of this version, whatever program hosts this one, and reads what it reports.

In uWSGI, or in a desktop program that embeds Python, `sys.executable` is the program's own binary; starting it would
open another server or window. So it is started only if its name has "python" or "pypy" in it; otherwise an executable
of this Python's installation is started.
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from subprocess import PIPE, Popen, TimeoutExpired
from threading import Event, Thread
from typing import IO

MARK = "blockstep-load-check:"  # is in each line that the code prints; a sitecustomize may print others
GREETING = 60.0  # seconds for a Python to start and import the libraries, on a slow disk or an emulated CPU too
CLOSING = 5.0  # seconds for reading what an ended process has left in its pipes
LINE = 1 << 16  # bytes read at once, so that a process's endless line does not fill the memory here
PYTHON = re.compile(r"py(thon|py)", re.IGNORECASE)


class NotReached(Exception):
    """Reports a process that never ran the code, so that it shows nothing about the code."""


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """Describes how a process ended after its greeting. code: its exit code, negative for a signal, None if its time
    ran out; report: what it reported, if anything; error_text: the end of its stderr, on one line."""

    code: int | None
    report: str | None
    error_text: str


def list_interpreters() -> list[str]:
    """Returns paths of executables that may be this Python, the most probable first."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    names = (version + getattr(sys, "abiflags", ""), version)
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    places = [os.path.join(prefix, "bin", name) for prefix in prefixes for name in names]
    hosts = [each for each in (sys.executable, getattr(sys, "_base_executable", None)) if isinstance(each, str)]
    pythons = [host for host in hosts if PYTHON.search(os.path.basename(host))]
    return list(dict.fromkeys([*pythons, *(place for place in places if os.access(place, os.X_OK))]))


def run_code(executable: str, code: str, given: str, seconds: float) -> ProcessEnd:
    """Runs `code` with `given` as its stdin, and kills it `seconds` after its greeting.

    The code prints a line with MARK as its greeting, and later a line with MARK and its report. Raises NotReached if
    the greeting does not come.
    """
    try:
        # -I: nothing is imported from the working directory, and a host's PYTHONHOME is ignored
        process = Popen([executable, "-I", "-c", code], stdin=PIPE, stdout=PIPE, stderr=PIPE)
    except (OSError, ValueError) as error:
        raise NotReached(f"{executable} does not start: {error}") from None
    assert process.stdin and process.stdout and process.stderr
    reports: list[str] = []
    errors: deque[bytes] = deque(maxlen=8)
    first_mark = Event()
    threads = [
        Thread(target=_write, args=(process.stdin, given), daemon=True),
        Thread(target=_listen, args=(process.stdout, reports, first_mark), daemon=True),
        Thread(target=lambda stream: errors.extend(_read_lines(stream)), args=(process.stderr,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        in_time = first_mark.wait(GREETING)
    except BaseException:  # Ctrl-C
        process.kill()
        raise
    greeted = bool(reports)
    ended = _wait(process, seconds if greeted else CLOSING if in_time else 0)
    for thread in threads:
        thread.join(CLOSING)  # they run longer only if a child of the process holds the pipes
    error_text = " ".join(b"".join(errors).decode(errors="replace").split())[-300:]
    if not greeted:
        how = f"ended with {ended}" if ended is not None else f"did not run it within {GREETING:g} s"
        raise NotReached(f"{executable} {how}" + (f": {error_text}" if error_text else ""))
    return ProcessEnd(ended, reports[-1] if len(reports) > 1 else None, error_text)


def _wait(process: Popen[bytes], seconds: float) -> int | None:
    """Returns the exit code, or None for a process that had to be killed."""
    try:
        return process.wait(seconds)
    except TimeoutExpired:
        return None
    finally:
        process.kill()
        process.wait()


def _write(stream: IO[bytes], given: str) -> None:
    with suppress(OSError), stream:  # a program that reads nothing may close it early
        stream.write(given.encode())


def _listen(stream: IO[bytes], reports: list[str], first_mark: Event) -> None:
    """Appends what follows MARK in each line that has it to `reports`; sets `first_mark` at the first, or the end."""
    for line in _read_lines(stream):
        _, mark, text = line.decode(errors="replace").partition(MARK)
        if mark:
            reports.append(text.strip())
            first_mark.set()
    first_mark.set()


def _read_lines(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while line := stream.readline(LINE):
            yield line
