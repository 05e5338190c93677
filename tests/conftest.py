"""Settings of the whole suite: one thread for torch, Hypothesis without a clock, and no cache of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("blockstep", deadline=None, print_blob=True)


def pytest_configure() -> None:
    settings.load_profile("blockstep")
    torch.set_num_threads(1)  # the models are so small that a second thread only waits


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes seen and engines built here are remembered there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
