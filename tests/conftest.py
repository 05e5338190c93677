"""Settings of the whole suite: one thread for torch, Hypothesis without a clock, and no cache of the user's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("blockstep", deadline=None, print_blob=True)


def pytest_configure() -> None:
    settings.load_profile("blockstep")
    torch.set_num_threads(1)  # the models are so small that a second thread only waits


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes seen and engines built here are remembered there, by fixtures of a wider scope than one test's too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
