"""A command in a child process whose every change of a folder is asked for first: to be counted, refused or its last.

The kernel itself asks (seccomp's user notification, Linux 5.5 and newer), so that what torch, safetensors in Rust and
TensorRT in C++ write is seen as well as what Python does; not so what is written through mapped memory. The child is
forked: whoever calls has no other threads.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Numbers on x86_64 and aarch64; where the newer one of two stands for both, the older does not exist.
CALLS = {
    "x86_64": {
        "write": 1, "pwrite64": 18, "writev": 20, "pwritev2": 328, "sendfile": 40, "copy_file_range": 326,
        "ftruncate": 77, "fallocate": 285, "fsync": 74, "fdatasync": 75, "open": 2, "openat": 257,
        "rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87, "unlinkat": 263, "rmdir": 84, "mkdir": 83,
        "mkdirat": 258,
    },
    "aarch64": {
        "write": 64, "pwrite64": 68, "writev": 66, "pwritev2": 287, "sendfile": 71, "copy_file_range": 285,
        "ftruncate": 46, "fallocate": 47, "fsync": 82, "fdatasync": 83, "openat": 56, "renameat": 38,
        "renameat2": 276, "unlinkat": 35, "mkdirat": 34,
    },
}  # fmt: skip
SECCOMP = {"x86_64": 317, "aarch64": 277}
HANDLES = {  # which argument is the handle of what is changed
    "write": 0, "pwrite64": 0, "writev": 0, "pwritev2": 0, "sendfile": 0, "copy_file_range": 2, "ftruncate": 0,
    "fallocate": 0, "fsync": 0, "fdatasync": 0,
}  # fmt: skip
PATHS = {  # which arguments are a folder's handle (None: there is none) and a path
    "open": (None, 0), "openat": (0, 1), "rename": (None, 1), "renameat": (2, 3), "renameat2": (2, 3),
    "unlink": (None, 0), "unlinkat": (0, 1), "rmdir": (None, 0), "mkdir": (None, 0), "mkdirat": (0, 1),
}  # fmt: skip
FLAGS = {"open": 1, "openat": 2}
GROWING = {"write", "pwrite64", "writev", "pwritev2", "sendfile", "copy_file_range", "fallocate", "create", "mkdir"}
NAMES = {"create", "overwrite", "mkdir", "rename", "unlink", "rmdir"}
BEFALLS = {  # what each error can befall
    errno.ENOSPC: GROWING,
    errno.EROFS: NAMES,
    errno.EIO: {"fsync", "fdatasync"},
}
NOTIFICATION, ANSWER = "=QIIiIQ6Q", "=QqiI"  # struct seccomp_notif and seccomp_notif_resp
RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1
AT_FDCWD = 0xFFFFFF9C


@dataclass(frozen=True, slots=True)
class Fault:
    """From the change of number `place` on, from 0: the process is killed before it, or each fails with `error`."""

    place: int
    error: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: its exit code, or less than 0 the signal; its changes, such as `rename student.pt`."""

    code: int
    changes: tuple[str, ...]
    out: str
    err: str


class Watched:
    """A process and the changes that it has asked for below a folder."""

    def __init__(self, process: int, folder: Path, fault: Fault | None) -> None:
        self.process, self.folder, self.fault = process, str(folder), fault
        self.changes: list[str] = []

    def answer(self, listener: int) -> None:
        """Takes one question of the kernel's and lets the call go on, fail, or be the process's end."""
        question = bytearray(struct.calcsize(NOTIFICATION))
        try:
            fcntl.ioctl(listener, RECEIVE, question)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the process was killed while it asked
                raise
            return
        number, thread, _, call, _, _, *arguments = struct.unpack(NOTIFICATION, question)
        change = self._change(thread, call, arguments)
        refused = 0 if change is None else self._befalls(change)
        if refused is None:
            os.kill(self.process, signal.SIGKILL)
            return
        reply = struct.pack(ANSWER, number, 0, -refused, 0 if refused else CONTINUE)
        try:
            fcntl.ioctl(listener, SEND, reply)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _befalls(self, change: str) -> int | None:
        """The errno that a change meets, 0 for none, None for the end."""
        place = len(self.changes)
        self.changes.append(change)
        if self.fault is None or place < self.fault.place:
            return 0
        if self.fault.error is None:
            return None
        return self.fault.error if change.split(maxsplit=1)[0] in BEFALLS[self.fault.error] else 0

    def _change(self, thread: int, call: int, arguments: list[int]) -> str | None:
        """What a call would change in the folder, None where it is nothing or something elsewhere."""
        name = next(name for name, number in CALLS[platform.machine()].items() if number == call)
        try:
            if name in HANDLES:
                path = os.readlink(f"/proc/{thread}/fd/{arguments[HANDLES[name]]}")
            else:
                path = _path(thread, name, arguments)
        except OSError:  # a handle or path of no file: the call itself will tell
            return None
        if not f"{path}/".startswith(f"{self.folder}/"):
            return None
        kind = _kind(name, arguments, path)
        return None if kind is None else f"{kind} {os.path.relpath(path, self.folder)}"


def watched(main: Callable[[], int], folder: Path, fault: Fault | None = None, seconds: float = 120) -> Outcome:
    """Runs `main` in a child process and answers for its changes below `folder`, a path without links.

    seconds: after which it is killed and a TimeoutError raised.
    """
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = os.fork()
        if process == 0:
            _child(main, theirs, out, err)
        theirs.close()
        listener = _received(ours)
        state = Watched(process, folder, fault)
        try:
            code = _attended(state, listener, seconds)
        finally:
            os.close(listener)
            ours.close()
        texts = [(stream.seek(0), stream.read())[1] for stream in (out, err)]
    return Outcome(code, tuple(state.changes), *texts)


def killed_after(main: Callable[[], int], seconds: float) -> Outcome:
    """Runs `main` in a child process that is killed after so many seconds, wherever it is then."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = os.fork()
        if process == 0:
            _child(main, None, out, err)
        end, code = time.monotonic() + seconds, None
        while code is None and time.monotonic() < end:
            time.sleep(0.001)
            code = _ended(process)
        if code is None:
            os.kill(process, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        texts = [(stream.seek(0), stream.read())[1] for stream in (out, err)]
    return Outcome(code, (), *texts)


def possible() -> bool:
    """Whether this system lets an unprivileged process be watched so."""
    if not sys.platform.startswith("linux") or platform.machine() not in SECCOMP:
        return False
    process = os.fork()
    if process == 0:
        try:
            _listen()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1] == 0


def _attended(state: Watched, listener: int, seconds: float) -> int:
    end, poll = time.monotonic() + seconds, select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        if any(happened & select.POLLIN for _, happened in poll.poll(20)):
            state.answer(listener)
        elif (code := _ended(state.process)) is not None:
            return code
        if time.monotonic() > end:
            os.kill(state.process, signal.SIGKILL)
            os.waitpid(state.process, 0)
            raise TimeoutError(f"not done after {seconds} s and {len(state.changes)} changes")


def _ended(process: int) -> int | None:
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _child(main: Callable[[], int], socket_to_parent: socket.socket | None, out: Any, err: Any) -> None:
    """What the child does: never returns."""
    code = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(handle, "w", closefd=False) for handle in (1, 2))
        if socket_to_parent is not None:
            listener = _listen()
            socket_to_parent.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
            os.close(listener)
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _received(ours: socket.socket) -> int:
    size = struct.calcsize("i")
    _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(size))
    if not ancillary:
        raise OSError("the child could not be watched")
    return int(struct.unpack("i", ancillary[0][2][:size])[0])


def _listen() -> int:
    """Has the kernel ask for each of CALLS of this thread and those that it starts; where to listen."""
    libc, machine = ctypes.CDLL(None, use_errno=True), platform.machine()
    code = [(0x20, 0, 0, 0)]  # load the call's number
    for number in CALLS[machine].values():
        code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x7FC00000)]  # if it is this one, ask
    code.append((0x06, 0, 0, 0x7FFF0000))  # allow
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    header = struct.pack("@HP", len(code), ctypes.addressof(program))
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, without which only root may
    listener = int(libc.syscall(SECCOMP[machine], 1, 8, header))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _path(thread: int, name: str, arguments: list[int]) -> str:
    handle, path = PATHS[name]
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(arguments[path])
        text = os.fsdecode(memory.read(4096).split(b"\0")[0])
    at = AT_FDCWD if handle is None else arguments[handle] & 0xFFFFFFFF
    start = os.readlink(f"/proc/{thread}/cwd" if at == AT_FDCWD else f"/proc/{thread}/fd/{at}")
    return os.path.normpath(os.path.join(start, text))


def _kind(name: str, arguments: list[int], path: str) -> str | None:
    """The change in one word, None for a file that is opened to be read."""
    if name in FLAGS:
        flags = arguments[FLAGS[name]]
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return None
        return "overwrite" if os.path.exists(path) else "create"
    if name == "unlinkat":
        return "rmdir" if arguments[2] & 0x200 else "unlink"  # AT_REMOVEDIR
    return {"renameat": "rename", "renameat2": "rename", "mkdirat": "mkdir"}.get(name, name)
