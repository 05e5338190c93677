"""The C library built once, the programs around it, and the library opened inside the test's own process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI

from runtime.capi import SOURCES, find_compiler, find_python_flags, read_declarations
from runtime.errors import UserError

ROOT = Path(__file__).parents[2]
BUNDLE = str(ROOT / "samples" / "student.bundle")
PROMPTS = [(ROOT / "samples" / f"prompt_{n}.txt").read_text(encoding="utf-8").rstrip() for n in ("math", "code")]


def run(*words: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A command's end, with what it wrote."""
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, **settings)


def needs_tools() -> None:
    """Skips the test where a library cannot be built or linked."""
    try:
        find_python_flags(), find_compiler()
    except UserError as error:
        pytest.skip(str(error))
    if missing := [name for name in ("cc", "c++", "make") if shutil.which(name) is None]:
        pytest.skip(f"no {', '.join(missing)} here")


def make_samples(folder: Path, *names: str) -> Path:
    """The library and some of the samples' hosts, by default all, in a folder."""
    words = ["make", "-C", ROOT / "samples" / "c", f"PYTHON={sys.executable}", f"BUILD={folder}"]
    made = run(
        *words, "CFLAGS=-O1 -g -Wall -Wextra -Werror", *(folder / name for name in names),
        env={**os.environ, "MAKEFLAGS": ""},
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


def build_all(folder: Path) -> Path:
    """The library, the samples' hosts and tests/support/soak.c in a folder."""
    make_samples(folder)
    soak = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", Path(__file__).parent / "soak.c"]
    made = run(*find_compiler(), *soak, "-o", folder / "soak", "-pthread", "-ldl")
    assert made.returncode == 0, made.stderr
    return folder


@dataclass(frozen=True)
class Reply:
    """What a request came to. answer: None after an error."""

    code: int
    error: str
    answer: dict[str, Any] | None


class Opened:
    """The library inside this process, whose Python it then uses."""

    def __init__(self, library: Path) -> None:
        self.ffi = FFI()
        self.ffi.cdef(read_declarations())
        self.lib = self.ffi.dlopen(str(library))

    def error(self) -> str:
        return self.ffi.string(self.lib.blockstep_last_error()).decode()

    def load(self, bundle: str, **options: Any) -> tuple[int, Any]:
        """The code, and the model or NULL."""
        kept = {key: self.ffi.new("char[]", v.encode()) if isinstance(v, str) else v for key, v in options.items()}
        model = self.ffi.new("blockstep_model **")
        code = self.lib.blockstep_load(bundle.encode(), self.ffi.new("blockstep_options *", kept), model)
        return code, model[0]

    def ask(self, model: Any, **fields: Any) -> Reply:
        """One request; prompt as bytes, token_ids as a list, threshold as a number, the rest as it is.

        With a temperature, and a seed or none, it is sampled; with a mode, as bytes, decoded in it.
        """
        new, kept = self.ffi.new, dict(fields)
        drawn = [kept.pop("temperature"), kept.pop("seed", None)] if "temperature" in kept else []
        if drawn:
            drawn[1] = self.ffi.NULL if drawn[1] is None else new("int64_t *", drawn[1])
        if "prompt" in kept:
            kept["prompt"] = new("char[]", kept["prompt"])
        if "token_ids" in kept:
            kept["token_count"], kept["token_ids"] = len(fields["token_ids"]), new("int64_t[]", fields["token_ids"])
        if "threshold" in kept:
            kept["threshold"] = new("double *", kept["threshold"])
        out = new("blockstep_answer **")
        call = self.lib.blockstep_sample if drawn else self.lib.blockstep_generate
        if "mode" in kept:
            text = new("char[]", kept.pop("mode"))
            size = kept.pop("size", self.ffi.sizeof("blockstep_decoding"))
            drawn, call = [new("blockstep_decoding *", {"size": size, "mode": text})], self.lib.blockstep_decode
        code = call(model, new("blockstep_request *", kept), *drawn, out)
        error = self.error()
        if not out[0]:
            return Reply(code, error, None)
        return Reply(code, error, self._take(out[0]))

    def _take(self, answer: Any) -> dict[str, Any]:
        """The fields as Python's own, and the memory given back."""
        names = ("finish", "steps", "commits", "forwards", "blocks", "seconds", "prefill_seconds")
        taken = {name: getattr(answer, name) for name in names}
        text = self.ffi.buffer(answer.text, answer.text_length + 1)[:]
        assert text[-1:] == b"\0"
        taken |= {
            "text": text[:-1].decode(), "token_ids": tuple(self.ffi.unpack(answer.token_ids, answer.token_count))
        }  # fmt: skip
        self.lib.blockstep_free(answer)
        return taken
