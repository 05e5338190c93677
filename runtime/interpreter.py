"""Runs code in a new Python process of this version, whatever program hosts this one, and reads what it reports.

`sys.executable` is a web server's binary in uWSGI and a desktop program's if it embeds Python: started, it would
serve or open its window once more. Only a file that is called a Python is started, else one of this installation's.
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

MARK = "blockstep-load-check:"  # in each line that is the code's own: a sitecustomize may print as well
GREETING = 60.0  # seconds for a Python to start and import the libraries, on a slow disk or an emulated CPU too
CLOSING = 5.0  # seconds for reading what an ended process has left in its pipes
LINE = 1 << 16  # bytes that are read at once, so that no process fills the memory here
PYTHON = re.compile(r"py(thon|py)", re.IGNORECASE)


class NotReached(Exception):
    """Reports a process that never ran the code, so that nothing is known of what the code would do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Describes how a process ended after its greeting: its exit code, negative for a signal and None if its time ran
    out; what it reported, if anything; the end of what it wrote to stderr, on one line."""

    code: int | None
    report: str | None
    error_text: str


def interpreters() -> list[str]:
    """Returns paths of executables that may run this Python's code, the most probable first."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    names = (version + getattr(sys, "abiflags", ""), version)
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    places = [os.path.join(prefix, "bin", name) for prefix in prefixes for name in names]
    hosts = [each for each in (sys.executable, getattr(sys, "_base_executable", None)) if isinstance(each, str)]
    pythons = [host for host in hosts if PYTHON.search(os.path.basename(host))]
    return list(dict.fromkeys([*pythons, *(place for place in places if os.access(place, os.X_OK))]))


def run_code(executable: str, code: str, given: str, seconds: float) -> Outcome:
    """Runs `code` with `given` as its stdin, for so many seconds after it has greeted.

    The code prints MARK on a line as its greeting, and then MARK and its report on another. Raises NotReached if it
    does not greet.
    """
    try:
        # isolated: nothing in the working directory is imported, and no PYTHONHOME of a host's is heeded
        process = Popen([executable, "-I", "-c", code], stdin=PIPE, stdout=PIPE, stderr=PIPE)
    except (OSError, ValueError) as error:
        raise NotReached(f"{executable} does not start: {error}") from None
    assert process.stdin and process.stdout and process.stderr
    reports: list[str] = []
    errors: deque[bytes] = deque(maxlen=8)
    heard = Event()
    threads = [
        Thread(target=_write, args=(process.stdin, given), daemon=True),
        Thread(target=_listen, args=(process.stdout, reports, heard), daemon=True),
        Thread(target=lambda stream: errors.extend(_lines(stream)), args=(process.stderr,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    in_time = heard.wait(GREETING)
    greeted = bool(reports)
    ended = _wait(process, seconds if greeted else CLOSING if in_time else 0)
    for thread in threads:
        thread.join(CLOSING)  # longer only if a process of the process holds the pipes
    error_text = " ".join(b"".join(errors).decode(errors="replace").split())[-300:]
    if not greeted:
        how = f"ended with {ended}" if ended is not None else f"did not run it within {GREETING:g} s"
        raise NotReached(f"{executable} {how}" + (f": {error_text}" if error_text else ""))
    return Outcome(ended, reports[-1] if len(reports) > 1 else None, error_text)


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
    with suppress(OSError), stream:  # closed early by a program that reads nothing
        stream.write(given.encode())


def _listen(stream: IO[bytes], reports: list[str], heard: Event) -> None:
    """Keeps the lines that carry MARK; `heard` is set at the first, or at the end of all lines."""
    for line in _lines(stream):
        _, mark, text = line.decode(errors="replace").partition(MARK)
        if mark:
            reports.append(text.strip())
            heard.set()
    heard.set()


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while line := stream.readline(LINE):
            yield line
