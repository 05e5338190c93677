"""Attempts made in child processes, so that one that crashes, hangs or swells is an outcome and not the end.

`outcomes` starts a fresh interpreter, which loads a module of this folder and forks: each child makes attempts until
one ends it, and the next goes on behind that. python tests/reliability/cells.py MODULE FIRST LAST prints JSON lines.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATHS = (HERE.parents[1], HERE.parent / "support", HERE)  # where modules are imported from
SECONDS = 10  # of computing, an attempt
SWOLLEN = 1 << 30  # bytes of memory that an attempt may not add
LONGEST = 1600  # characters of a message
PARSERS = "BLOCKSTEP_COVERAGE"  # names a file for what the attempts have run of the parsers
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt came to.

    ending: a word of the attempt's own; `refused` or `failed`, told in one line; `wrong`, `traceback`, `ran code`; or
    how its process ended: `hung`, `swelled`, `crashed SIGSEGV`. detail: what was said.
    """

    number: int
    kind: str
    ending: str
    detail: str


CONTAINED = ("hung", "swelled", "crashed")  # by a process of their own, which is what `runtime.load_check` is for
WRONG = ("wrong", "traceback", "ran code")


def outcomes(module: str, first: int, last: int) -> Iterator[Outcome]:
    """Attempts `first` to `last - 1` of a module, in order."""
    path = os.pathsep.join(map(str, PATHS))
    line = [sys.executable, str(HERE / "cells.py"), module, str(first), str(last)]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        for text in server.stdout:
            yield Outcome(**json.loads(text))
    if server.returncode:
        raise RuntimeError(f"{module} ended with {server.returncode}")


def serve(name: str, first: int, last: int) -> None:
    """In the fresh interpreter: makes the attempts and prints their outcomes."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        coverage = _coverage()
        module = importlib.import_module(name)
        while first < last:
            for outcome in _child(module, first, last, Path(folder) / "work", coverage):
                print(json.dumps(asdict(outcome)), flush=True)
                first = outcome.number + 1


def _child(module: Any, first: int, last: int, folder: Path, coverage: Any) -> Iterator[Outcome]:
    """The outcomes of one child, the last of them perhaps its own end."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.close(reading)
        _attempt_all(module, first, last, folder, writing, coverage)
    os.close(writing)
    number = None
    with os.fdopen(reading) as lines:
        for line in lines:
            values = json.loads(line)
            if isinstance(values, int):
                number = values
            else:
                number = None
                yield Outcome(**values)
    ending = -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number is not None:
        word = (
            "hung" if ending == signal.SIGPROF else f"crashed {signal.Signals(ending).name}" if ending > 0 else "wrong"
        )
        yield Outcome(number, module.kind(number), word, f"ended with {ending}")


def _attempt_all(module: Any, first: int, last: int, folder: Path, writing: int, coverage: Any) -> None:
    """In the child: never returns."""
    seen: list[str] = []
    most = getattr(module, "SWOLLEN", SWOLLEN)
    watched = set(WATCHED) - set(getattr(module, "ALLOWED", ()))
    sys.addaudithook(lambda event, _: seen.append(event) if event in watched else None)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries remark on what they are given
        os.dup2(silence, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + 3 * SWOLLEN,) * 2)  # the machine has other work
    for number in range(first, last):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        seen.clear()
        os.write(writing, b"%d\n" % number)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        ending, detail = ended(module, number, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        if seen:
            ending, detail = "ran code", ", ".join(sorted(set(seen)))
        elif grown > most or "MemoryError" in detail:
            ending, detail = "swelled", f"{grown >> 20} MB; {detail}"
        os.write(writing, json.dumps(asdict(Outcome(number, module.kind(number), ending, detail))).encode() + b"\n")
        if ending == "swelled":
            break
    if coverage is not None:
        coverage.stop()
        coverage.save()
    os._exit(0)


def ended(module: Any, number: int, folder: Path) -> tuple[str, str]:
    """Makes one attempt in this process: its ending and what was said."""
    from runtime.errors import DeviceError, NumericalError, UserError

    try:
        return str(module.attempt(number, folder)), ""
    except (UserError, NumericalError, DeviceError) as error:
        told = str(error)
        if "\n" in told or not told.isprintable() or not 0 < len(told) <= LONGEST:
            return "wrong", f"told as {told[:200]!r}"
        if isinstance(error.__context__, MemoryError):
            return "refused", f"MemoryError: {told}"
        return ("refused" if isinstance(error, UserError) else "failed"), told
    except AssertionError as error:
        return "wrong", f"{error} {traceback.format_exc(limit=-2)[-400:]}"
    except MemoryError as error:
        return "swelled", f"MemoryError {error}"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error} {traceback.format_exc(limit=-3)[-600:]}"


def _coverage() -> Any:
    """A started coverage of the parsers, where it is asked for."""
    if PARSERS not in os.environ:
        return None
    import coverage

    root = HERE.parent.parent
    made = coverage.Coverage(
        data_file=os.environ[PARSERS], data_suffix=True, branch=True, config_file=False,
        include=[f"{root}/runtime/*.py", f"{root}/train/*.py"],
    )  # fmt: skip
    made.start()
    return made


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
