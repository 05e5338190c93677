"""Tries a bundle's files in a child process before they are loaded here: the isolated load check.

The files are parsed by native code (ONNX Runtime in C++, tokenizers in Rust), in which a damaged or hostile file can
crash, hang or take all memory, and a chat template is a program. The child reads all files, runs one forward pass and
renders the template for one message. It also proves an engine that has a recorded reference
(`runtime.proof.first_load`). A file that misbehaves only later is not found, and nothing is tried on a GPU.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engines.registry import KINDS, OpenOptions
from .errors import DeviceError, NumericalError, UserError

if TYPE_CHECKING:
    from .bundle.manifest import Bundle, Engine
    from .interpreter import ProcessEnd

MEMORY = 1 << 30  # bytes that the child may take beyond its interpreter and libraries, in addition to
COPIES = 4  # times the files' size: as they are, converted, packed for the kernels, and some room
STACK = 16 << 20  # bytes per thread, or more if the system's limit is higher
SECONDS = 60  # CPU time that the child may take, in addition to one second per
RATE = 10 << 20  # bytes of the files
PATIENCE = 10  # the child's limit on the clock is this times its CPU time, as the machine may be busy
MESSAGE = "How many apples are left?"
ADVICE = "in the isolated load check, so it is not loaded; it is damaged or malicious: copy or export the bundle again"
OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # signals that a file cannot cause
# The child loads the package from its folder, whatever the folder's name and the program that hosts this interpreter.
CHILD = """
import importlib.util, json, sys
settings = json.load(sys.stdin)
sys.path[:] = settings["path"]
start, package = settings["start"], settings["package"]
spec = importlib.util.spec_from_file_location("blockstep", start, submodule_search_locations=package)
sys.modules["blockstep"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from blockstep.load_check import report
report(settings)
"""


def attempt(bundle: Bundle, engine: Engine | None, threads: int | None = None, prove: bool = False) -> bool:
    """Tries a bundle's texts and an engine in a child process; returns whether they were tried.

    engine: None for the texts alone. prove: whether the child also proves the engine, which runs on
    the CPU there, whatever device it is loaded for: what CUDA's own kernels do with a file is not tried.

    Raises UserError if the child refuses the files, crashes, or takes more time or memory than files of their size
    need. If the child fails before it opens a file, the next interpreter is tried; if there is none left, a warning is
    given. Nothing is tried, without a warning, in a frozen program, nor in an interpreter that leaves signals alone, as
    the C library's does: the imports below would take SIGINT from the host.
    """
    if getattr(sys, "frozen", False) or "_signal" not in sys.modules:
        return False
    from . import interpreter

    names = [*bundle.texts, *(engine.hashed_files if engine else ())]
    size = sum((bundle.path / name).stat().st_size for name in names)
    what = f"engine {engine.name} of {bundle.path}" if engine else f"the text of {bundle.path}"
    seconds, memory = (
        SECONDS + size // RATE,
        MEMORY + COPIES * size + get_stack_size() * (threads or os.cpu_count() or 1),
    )
    settings = {**find_child_paths(), "bundle": str(bundle.path.absolute()), "engine": engine.name if engine else None}
    settings |= {"kind": engine.kind.name if engine else None, "threads": threads, "seconds": seconds, "bytes": memory}
    settings["prove"] = prove
    reason = f"{sys.prefix} has no python executable"
    for executable in interpreter.list_interpreters():
        try:
            outcome = interpreter.run_code(executable, CHILD, json.dumps(settings), seconds * PATIENCE)
        except interpreter.NotReached as error:
            reason = str(error)
            continue
        judge(what, outcome, seconds)
        return True
    warnings.warn(
        (
            f"{what} is loaded without an isolated load check ({' '.join(reason.split())}); load it once with this "
            "environment's python, or open bundles of people you trust alone"
        ),
        stacklevel=2,
    )
    return False


def find_child_paths() -> dict[str, Any]:
    """Returns the paths from which a child loads this package and imports other modules."""
    package = sys.modules[__package__]
    found = [entry for entry in sys.path if isinstance(entry, str)]  # imports ignore entries of other types
    return {"path": found, "start": package.__file__, "package": list(package.__path__)}


def judge(what: str, outcome: ProcessEnd, seconds: int) -> None:
    """Raises UserError unless the child came to its end and refused nothing."""
    if outcome.code is None:
        raise UserError(f"{what} did not end within {seconds * PATIENCE} s {ADVICE}")
    if outcome.code < 0:
        name = name_signal(-outcome.code)
        if name in OUTSIDE:
            raise UserError(
                f"{what} is not loaded, since its isolated load check was ended from outside ({name}), as the system "
                "does if memory runs out; free some, or allow this program more, and load it again"
            )
        ending = f"computed for more than {seconds} s" if name == "SIGXCPU" else f"crashed ({name})"
        raise UserError(f"{what} {ending} {ADVICE}")
    try:
        refused = json.loads(outcome.report or "")["refused"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{what} failed ({outcome.error_text}) {ADVICE}") from None
    if refused is not None:
        raise UserError(refused)


def name_signal(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def get_stack_size() -> int:
    """Returns the bytes of a thread's stack, which all count as the process's data, used or not."""
    try:
        import resource
    except ImportError:  # not on every system
        return STACK
    soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return STACK if soft == resource.RLIM_INFINITY else max(STACK, soft)


def report(request: dict[str, Any]) -> None:
    """Runs in the child: greets, tries the files, and prints the error line, or null if they pass.

    What does not depend on the bundle comes before the greeting: importing the libraries, setting the limits.
    """
    import numpy  # noqa: F401

    from .interpreter import MARK
    from .text import tokenizer as text  # noqa: F401

    if request["engine"] is not None:
        KINDS[request["kind"]].import_library("cpu")
    limit(request["bytes"], request["seconds"])
    print(MARK, flush=True)
    print(MARK + json.dumps({"refused": try_files(request)}), flush=True)


def try_files(request: dict[str, Any]) -> str | None:
    """Tries the files; returns the error line, or None if they pass."""
    from .bundle.store import read
    from .proof import first_load
    from .text.tokenizer import Tokenizer

    try:
        bundle = read(Path(request["bundle"]))
        _speak(Tokenizer(bundle.tokenizer, bundle.chat_template))
        if request["engine"] is not None:
            engine = bundle.find_engine(request["engine"])
            options = OpenOptions(threads=request["threads"])
            backend = engine.kind.open(bundle, [engine], options)[1]
            _run(backend)
            if request["prove"]:
                return first_load.find_refusal(bundle, engine, backend, options)
    except (UserError, DeviceError) as error:
        return str(error)
    except MemoryError:
        return f"{request['bundle']} takes more than {request['bytes'] >> 20} MB of memory {ADVICE}"
    return None


def limit(size: int, seconds: int) -> None:
    """Limits this process to `seconds` of CPU time, and to `size` bytes of memory more than it has now."""
    try:
        import resource
    except ImportError:  # missing on some systems; the parent's limit on the clock remains
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, which is reported, before SIGKILL
    with suppress(OSError, ValueError):  # not Linux, or a lower limit is set already
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + size, held + size))


def _speak(tokenizer: Any) -> None:
    """Encodes a text and a message. A refusal is ignored, unless memory ran out: other messages may be accepted.

    Without jinja2 the template is refused too; whoever records what was tried leaves it out then (`open_bundle`).
    """
    try:
        tokenizer.encode(MESSAGE)
        tokenizer.encode_chat(MESSAGE)
    except UserError as error:
        if isinstance(error.__context__, MemoryError):
            raise error.__context__ from None


def _run(backend: Any) -> None:
    """Runs one forward pass over one token."""
    import numpy as np

    from .decoding.block_layout import count_room_for_answer
    from .decoding.loop import decode_steps
    from .decoding.options import DecodeOptions, Request

    contract = backend.contract
    special = {contract.mask_id, contract.pad_id, *contract.eos_ids}
    token = next((token for token in range(contract.vocab) if token not in special), 0)
    if not count_room_for_answer(contract, 1):
        return
    try:
        next(decode_steps(backend, [Request(np.array([token]), DecodeOptions(1))]))
    except NumericalError:  # left to the first answer, which reports it
        return
