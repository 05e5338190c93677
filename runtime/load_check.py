"""The first load of a bundle's files, tried in a process of its own: what crashes, hangs or swells there does not here.

The parsers behind it are native code (ONNX Runtime in C++, tokenizers in Rust), in which a damaged or hostile file can
end the process, and a chat template is a program. Tried are: reading all of them, one forward pass, and the template on
one message. An engine with a recorded reference proves itself there too (`runtime.proof.first_load`). A file that
behaves there and misbehaves later is not found, and nothing is tried on a GPU.
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
    from .interpreter import Outcome

MEMORY = 1 << 30  # bytes beyond what the interpreter and its libraries hold, and
COPIES = 4  # times the files: as they are, converted, packed for the kernels, with room to move
STACK = 16 << 20  # bytes per thread
SECONDS = 60  # of computing, and one more for each
RATE = 10 << 20  # bytes of the files
PATIENCE = 10  # times that on the clock, for a machine that is busy
MESSAGE = "How many apples are left?"
ADVICE = "in the isolated load check, so it is not loaded; it is damaged or malicious: copy or export the bundle again"
OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # signals that no file raises
# The package is found by its folder, whatever it is called and whoever hosts this interpreter.
CHILD = """
import importlib.util, json, sys
asked = json.load(sys.stdin)
sys.path[:] = asked["path"]
spec = importlib.util.spec_from_file_location("blockstep", asked["start"], submodule_search_locations=asked["package"])
sys.modules["blockstep"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from blockstep.load_check import report
report(asked)
"""


def attempt(bundle: Bundle, engine: Engine | None, threads: int | None = None, prove: bool = False) -> bool:
    """Reads a bundle's texts and runs an engine, None for the texts alone, in a child process; prove: and proves it.

    It runs on the CPU, whatever device the engine is loaded for: what CUDA's own kernels do with a file is not tried.

    Returns whether they were tried. Raises UserError if the child refuses them, crashes, or takes more time or memory
    than files of their size need. A child that does not come as far as opening a file proves nothing about it: another
    interpreter is tried, and if there is none a warning is given. Nothing is tried, without a warning, in a program
    that an interpreter is frozen into, nor if Python leaves signals alone, as in the C library: the imports below would
    take SIGINT from the host.
    """
    if getattr(sys, "frozen", False) or "_signal" not in sys.modules:
        return False
    from . import interpreter

    names = [*bundle.texts, *(engine.hashed_files if engine else ())]
    size = sum((bundle.path / name).stat().st_size for name in names)
    what = f"engine {engine.name} of {bundle.path}" if engine else f"the text of {bundle.path}"
    seconds, memory = SECONDS + size // RATE, MEMORY + COPIES * size + stack() * (threads or os.cpu_count() or 1)
    asked = {**child_paths(), "bundle": str(bundle.path.absolute()), "engine": engine.name if engine else None}
    asked |= {"kind": engine.kind.name if engine else None, "threads": threads, "seconds": seconds, "bytes": memory}
    asked["prove"] = prove
    reason = f"{sys.prefix} has no python executable"
    for executable in interpreter.interpreters():
        try:
            outcome = interpreter.run_code(executable, CHILD, json.dumps(asked), seconds * PATIENCE)
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


def child_paths() -> dict[str, Any]:
    """Returns where a child finds this package, and what it imports."""
    package = sys.modules[__package__]
    found = [entry for entry in sys.path if isinstance(entry, str)]  # imports heed no others
    return {"path": found, "start": package.__file__, "package": list(package.__path__)}


def judge(what: str, outcome: Outcome, seconds: int) -> None:
    """Raises UserError for everything but a child that came to its end and refused nothing."""
    if outcome.code is None:
        raise UserError(f"{what} did not end within {seconds * PATIENCE} s {ADVICE}")
    if outcome.code < 0:
        name = signal_name(-outcome.code)
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


def signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def stack() -> int:
    """Bytes of a thread's stack, all of which count as its process's data, used or not."""
    try:
        import resource
    except ImportError:  # not on every system
        return STACK
    soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return STACK if soft == resource.RLIM_INFINITY else max(STACK, soft)


def report(asked: dict[str, Any]) -> None:
    """In the child: greets, tries what was requested, and prints the line that it is refused with, or None.

    All that is independent of the bundle comes before the greeting: importing the libraries, setting the limits.
    """
    import numpy  # noqa: F401

    from .interpreter import MARK
    from .text import tokenizer as text  # noqa: F401

    if asked["engine"] is not None:
        KINDS[asked["kind"]].import_library("cpu")
    limit(asked["bytes"], asked["seconds"])
    print(MARK, flush=True)
    print(MARK + json.dumps({"refused": try_files(asked)}), flush=True)


def try_files(asked: dict[str, Any]) -> str | None:
    """Tries what was requested; returns the line that it is refused with, or None."""
    from .bundle.store import read
    from .proof import first_load
    from .text.tokenizer import Tokenizer

    try:
        bundle = read(Path(asked["bundle"]))
        _speak(Tokenizer(bundle.tokenizer, bundle.chat_template))
        if asked["engine"] is not None:
            engine = bundle.engine(asked["engine"])
            options = OpenOptions(threads=asked["threads"])
            backend = engine.kind.open(bundle, [engine], options)[1]
            _run(backend)
            if asked["prove"]:
                return first_load.refusal(bundle, engine, backend, options)
    except (UserError, DeviceError) as error:
        return str(error)
    except MemoryError:
        return f"{asked['bundle']} takes more than {asked['bytes'] >> 20} MB of memory {ADVICE}"
    return None


def limit(size: int, seconds: int) -> None:
    """Ends this process after that many seconds of computing, and refuses it memory beyond `size` more bytes."""
    try:
        import resource
    except ImportError:  # not on every system; the clock is left
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # reported (SIGXCPU) before it is killed
    with suppress(OSError, ValueError):  # not Linux, or a lower limit is set already
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + size, held + size))


def _speak(tokenizer: Any) -> None:
    """Encodes a text and a message; a template that refuses this message may take others."""
    try:
        tokenizer.encode(MESSAGE)
        tokenizer.encode_chat(MESSAGE)
    except UserError as error:
        if isinstance(error.__context__, MemoryError):
            raise error.__context__ from None


def _run(backend: Any) -> None:
    """Runs one forward pass over one token."""
    import numpy as np

    from .decoding.block_layout import room_for_answer
    from .decoding.loop import steps
    from .decoding.options import DecodeOptions, Request

    contract = backend.contract
    special = {contract.mask_id, contract.pad_id, *contract.eos_ids}
    token = next((token for token in range(contract.vocab) if token not in special), 0)
    if not room_for_answer(contract, 1):
        return
    try:
        next(steps(backend, [Request(np.array([token]), DecodeOptions(1))]))
    except NumericalError:  # reported when an answer is generated
        return
