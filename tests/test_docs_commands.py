"""The pages walked: each block of commands or Python that a CPU can run is run, in order, in a fresh copy."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from native import needs_tools
from pages import ROOT, WALKED, Block, blocks, find_missing_lines

ENVIRONMENT = {
    **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
    "TQDM_DISABLE": "1",
}  # fmt: skip


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what the pages' commands read, and may change."""
    shutil.copytree(ROOT / "samples", tmp_path / "samples", ignore=shutil.ignore_patterns("results", "__pycache__"))
    return tmp_path


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def words_of(block: Block, port: str) -> list[str]:
    """What runs a block; a page's port 8000 is a free one here."""
    text = block.text.replace("8000", port)
    return ["sh", "-euc", text] if block.language == "sh" else [sys.executable, "-c", text]


@contextmanager
def serving(words: list[str], folder: Path, port: str) -> Iterator[None]:
    """Runs a server until the end of the page."""
    with subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, start_new_session=True) as server:
        try:
            deadline = time.monotonic() + 120
            while not is_ready(port):
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def is_ready(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def walk(todo: list[Block], folder: Path, port: str) -> None:
    """Runs blocks in order and compares what they print."""
    for i, block in enumerate(todo):
        words = words_of(block, port)
        if block.server:
            with serving(words, folder, port):
                return walk(todo[i + 1 :], folder, port)
        done = subprocess.run(
            words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False
        )
        printed = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"{block.text}\n{printed}"
        assert find_missing_lines(block.expected, printed) == [], f"{block.text}\n{printed}"


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in WALKED if any(not block.reason for block in blocks(page))])
def test_what_a_page_shows_runs(page: str, clone: Path) -> None:
    walk([block for block in blocks(page) if not block.reason], clone, free_port())


@pytest.mark.native
def test_the_c_program_that_the_page_on_embedding_shows_is_built_and_generates(clone: Path) -> None:
    needs_tools()
    shown = [block for block in blocks("docs/embed.md") if "build/hello.c" in block.text]
    assert len(shown) == 1 and shown[0].expected
    walk(shown, clone, free_port())
