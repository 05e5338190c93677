"""The first load of a bundle's files, tried in a process of its own: what crashes, hangs or swells there does not here.

The parsers behind it are native code (ONNX Runtime in C++, tokenizers in Rust), where a damaged or hostile file can end
the process, and a chat template is a program. Tried are: reading all of them, one forward, and the template on one
message. A file that behaves there and misbehaves later is not found, and nothing is tried on a GPU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DeviceError, NumericalError, UserError

if TYPE_CHECKING:
    from .manifest import Bundle, Engine

MEMORY = 1 << 30  # bytes beyond what the interpreter and its libraries hold, and
COPIES = 4  # times the files: as they are, converted, packed for the kernels, with room to move
STACK = 16 << 20  # bytes a thread
SECONDS = 60  # of computing, and one more for each
RATE = 10 << 20  # bytes of the files
PATIENCE = 10  # times that on the clock, for a machine that is busy
MESSAGE = "How many apples are left?"
ADVICE = (
    "when it was tried in a process of its own, so it is not loaded; it is damaged or was made to do harm: copy or "
    "export the bundle again"
)
# The package is found by its folder, whatever it is called and whoever hosts this interpreter; isolated (-I), so that
# nothing in the working directory is imported before the path is this process's.
CHILD = """
import importlib.util, json, os, sys
asked = json.load(sys.stdin)
sys.path[:] = asked["path"]
start = os.path.join(asked["package"], "__init__.py")
spec = importlib.util.spec_from_file_location("blockstep", start, submodule_search_locations=[asked["package"]])
sys.modules["blockstep"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from blockstep.trial import answer
print(json.dumps({"refused": answer(asked)}))
"""


def attempt(bundle: Bundle, engine: Engine | None, threads: int | None = None) -> None:
    """Reads a bundle's texts and runs an engine of ONNX Runtime, None for the texts alone, in a child process.

    It runs on the CPU, whatever device the engine is loaded for: what CUDA's own kernels do with a file is not tried.

    Raises UserError where the child refuses them, crashes, or takes more time or memory than files of their size need.
    Nothing is tried where no child can be started, as in a program that an interpreter is frozen into, nor where Python
    leaves signals alone, as in the C library: the imports below would take SIGINT from the host.
    """
    if not sys.executable or getattr(sys, "frozen", False) or "_signal" not in sys.modules:
        return
    import subprocess

    names = [*bundle.texts, *(engine.files if engine else ())]
    size = sum((bundle.path / name).stat().st_size for name in names)
    what = f"engine {engine.name} of {bundle.path}" if engine else f"the text of {bundle.path}"
    seconds = SECONDS + size // RATE
    asked = {
        "path": sys.path, "package": str(Path(__file__).resolve().parent), "bundle": str(bundle.path.absolute()),
        "engine": engine.name if engine else None, "threads": threads, "seconds": seconds,
        "bytes": MEMORY + COPIES * size + STACK * (threads or os.cpu_count() or 1),
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", CHILD], input=json.dumps(asked).encode(), capture_output=True,
            timeout=seconds * PATIENCE, check=False,
        )  # fmt: skip
    except OSError:
        return
    except subprocess.TimeoutExpired:
        raise UserError(f"{what} did not end within {seconds * PATIENCE} s {ADVICE}") from None
    if done.returncode < 0:
        raise UserError(f"{what} {ending(-done.returncode, seconds)} {ADVICE}")
    try:
        refused = json.loads(done.stdout.splitlines()[-1])["refused"]
    except (ValueError, LookupError):
        reason = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise UserError(f"{what} failed ({reason}) {ADVICE}") from None
    if refused is not None:
        raise UserError(refused)


def ending(number: int, seconds: int) -> str:
    """How a child ended that a signal ended."""
    import signal

    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"computed for more than {seconds} s" if name == "SIGXCPU" else f"crashed ({name})"


def answer(asked: dict[str, Any]) -> str | None:
    """In the child: tries what was asked for, under its limits; the line that it is refused with, or None."""
    from .bundle import read
    from .text import Tokenizer

    bundle = read(Path(asked["bundle"]))
    if asked["engine"] is not None:
        from .ort import OrtBackend  # loaded before its memory is counted
    limit(asked["bytes"], asked["seconds"])
    try:
        _speak(Tokenizer(bundle.tokenizer, bundle.chat_template))
        if asked["engine"] is not None:
            engine = bundle.engine(asked["engine"])
            _run(OrtBackend(bundle.path / engine.model, bundle.contract, asked["threads"]))
    except (UserError, DeviceError) as error:
        return str(error)
    except MemoryError:
        return f"{bundle.path} takes more than {asked['bytes'] >> 20} MB of memory {ADVICE}"
    return None


def limit(size: int, seconds: int) -> None:
    """Ends this process after that many seconds of computing, and refuses it memory beyond `size` more bytes."""
    try:
        import resource
    except ImportError:  # not on every system; the clock is left
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # told (SIGXCPU) before it is killed
    try:
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + size, held + size))
    except (OSError, ValueError):  # not Linux, or a lower limit is set already
        return


def _speak(tokenizer: Any) -> None:
    """A text and a message; that the template refuses this one says nothing of others."""
    try:
        tokenizer.encode(MESSAGE)
        tokenizer.encode_chat(MESSAGE)
    except UserError as error:
        if isinstance(error.__context__, MemoryError):
            raise error.__context__ from None


def _run(backend: Any) -> None:
    """One forward over one token."""
    import numpy as np

    from .decode import Request, steps
    from .layout import room_for_answer

    contract = backend.contract
    special = {contract.mask_id, contract.pad_id, *contract.eos_ids}
    token = next((token for token in range(contract.vocab) if token not in special), 0)
    if not room_for_answer(contract, 1):
        return
    try:
        next(steps(backend, [Request(np.array([token]), 1)]))
    except NumericalError:  # told when it is asked for an answer
        return
