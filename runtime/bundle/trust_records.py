"""Keeps this machine's records about bundles, in the user's cache folder: verified files, engines built or proved here,
kernels compiled for them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UserError

DIGEST = 32  # bytes of a sha256, which is stored before the content that it hashes


def find_folder() -> Path:
    """Returns the user's cache folder of blockstep. Raises RuntimeError if there is no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockstep"


def read_seen() -> dict[str, Any]:
    """Returns the verified files: by path, the size, time, inode and sha256 that each had."""
    try:
        known = json.loads((find_folder() / "verified.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return known if isinstance(known, dict) else {}


def record_verified(marks: dict[str, Any]) -> None:
    """Records as verified those of the files that still exist. If the record cannot be written, it stays as it was."""
    try:
        find_folder().mkdir(parents=True, exist_ok=True)
        there = {file: mark for file, mark in marks.items() if os.path.exists(file)}
        text = json.dumps(there)
        files.write_whole(
            find_folder() / "verified.json",
            lambda temporary: temporary.write_text(text, encoding="utf-8"),
            durable=False,
        )
    except (OSError, RuntimeError):
        return  # not remembered: hashed again the next time


def was_built(digest: str) -> bool:
    """Returns whether this user built an engine with that sha256 on this machine."""
    try:
        return (find_folder() / "built" / digest).is_file()
    except (OSError, RuntimeError):
        return False


def was_proved(key: str) -> bool:
    """Returns whether an engine was proved on a machine like this one; see `runtime.proof.first_load.make_key`."""
    try:
        return (find_folder() / "proved" / key).is_file()
    except (OSError, RuntimeError):
        return False


def remember_proved(key: str) -> None:
    """Records an engine as proved. If the record cannot be written, the engine is proved again at its next load."""
    try:
        (find_folder() / "proved").mkdir(mode=0o700, parents=True, exist_ok=True)
        (find_folder() / "proved" / key).touch()
    except (OSError, RuntimeError):
        return


def read_kernels(key: str) -> bytes | None:
    """Returns the recorded kernels that a library compiled, or None; see `runtime.engines.trt.rtx_kernels`.

    Kernels are native code, so the result is None, too, if their file is damaged or another user wrote it.
    """
    try:
        with (find_folder() / "kernels" / key).open("rb") as file:
            owner, digest, compiled = os.fstat(file.fileno()).st_uid, file.read(DIGEST), file.read()
    except (OSError, RuntimeError):
        return None
    mine = not hasattr(os, "getuid") or owner == os.getuid()
    return compiled if mine and hashlib.sha256(compiled).digest() == digest else None


def remember_kernels(key: str, compiled: bytes) -> None:
    """Records compiled kernels. If they cannot be written, they are compiled again at the next load."""
    try:
        (find_folder() / "kernels").mkdir(mode=0o700, parents=True, exist_ok=True)
        content = hashlib.sha256(compiled).digest() + compiled
        files.write_whole(
            find_folder() / "kernels" / key, lambda temporary: temporary.write_bytes(content), durable=False
        )
    except (OSError, RuntimeError):
        return


def remember_built(digest: str) -> None:
    """Records the sha256 of an engine that was built here, as an empty file of its own, so that writers do not collide.

    Raises UserError if the file cannot be written, since the engine would then be refused.
    """
    try:
        place = find_folder() / "built"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (place / digest).touch()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"that the engine was built here cannot be remembered ({error}); set XDG_CACHE_HOME to a folder of yours, "
            "or load the engine with --trust-engine"
        ) from None
