"""What this machine remembers outside of bundles, in the user's cache folder: files seen whole, engines built or proved
here, kernels compiled for them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UserError

DIGEST = 32  # bytes of a sha256, which precedes what it hashes


def folder() -> Path:
    """Returns the user's cache folder of blockstep. Raises RuntimeError if there is no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockstep"


def seen() -> dict[str, Any]:
    """Returns files by their path, with the size, time, inode and sha256 that they were seen whole with."""
    try:
        known = json.loads((folder() / "verified.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return known if isinstance(known, dict) else {}


def see(marks: dict[str, Any]) -> None:
    """Remembers these files, as far as they are still there. If that cannot be written, nothing is remembered."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        there = {file: mark for file, mark in marks.items() if os.path.exists(file)}
        text = json.dumps(there)
        files.write_whole(
            folder() / "verified.json", lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=False
        )
    except (OSError, RuntimeError):
        return  # not remembered: hashed again the next time


def was_built(digest: str) -> bool:
    """Returns whether this user built an engine with that sha256 on this machine."""
    try:
        return (folder() / "built" / digest).is_file()
    except (OSError, RuntimeError):
        return False


def was_proved(key: str) -> bool:
    """Returns whether an engine was proved on a machine like this one; see `runtime.proof.first_load.key_of`."""
    try:
        return (folder() / "proved" / key).is_file()
    except (OSError, RuntimeError):
        return False


def remember_proved(key: str) -> None:
    """Remembers such an engine; if that cannot be written, nothing is remembered, and it is proved again."""
    try:
        (folder() / "proved").mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder() / "proved" / key).touch()
    except (OSError, RuntimeError):
        return


def kernels(key: str) -> bytes | None:
    """Returns what was remembered of the kernels that a library compiled; see `runtime.engines.trt.rtx_kernels`.

    They are native code, so None if the file is damaged or another user wrote it.
    """
    try:
        with (folder() / "kernels" / key).open("rb") as file:
            owner, digest, compiled = os.fstat(file.fileno()).st_uid, file.read(DIGEST), file.read()
    except (OSError, RuntimeError):
        return None
    mine = not hasattr(os, "getuid") or owner == os.getuid()
    return compiled if mine and hashlib.sha256(compiled).digest() == digest else None


def remember_kernels(key: str, compiled: bytes) -> None:
    """Remembers such kernels; if they cannot be written, nothing is remembered, and they are compiled again."""
    try:
        (folder() / "kernels").mkdir(mode=0o700, parents=True, exist_ok=True)
        content = hashlib.sha256(compiled).digest() + compiled
        files.write_whole(folder() / "kernels" / key, lambda temporary: temporary.write_bytes(content), durable=False)
    except (OSError, RuntimeError):
        return


def remember_built(digest: str) -> None:
    """Remembers an engine that was built here by its sha256: one empty file each, so that no two writers meet.

    Raises UserError if that cannot be written, since the engine would then be refused.
    """
    try:
        place = folder() / "built"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place / digest).touch()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"that the engine was built here cannot be remembered ({error}); set XDG_CACHE_HOME to a folder of yours, "
            "or load the engine with --trust-engine"
        ) from None
