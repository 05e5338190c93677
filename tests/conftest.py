"""Settings of the whole suite: one thread for torch, Hypothesis without a clock, and no cache of the user's."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

MUTANT_SECONDS = 12  # of computing, a test; the longest takes 4

settings.register_profile("blockstep", deadline=None, print_blob=True)


def pytest_configure() -> None:
    settings.load_profile("blockstep")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Sets up what the collected tests have imported; what needs no torch is to stay without it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # the models are so small that a second thread only waits
    if "export.graph.step_graph" in sys.modules:
        from traced import share_traces

        share_traces(session.config.rootpath / ".pytest_cache" / "traces")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes seen and engines built here are remembered there, by fixtures of a wider scope than one test's too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_endless_mutant() -> Iterator[None]:
    """Under mutation testing a loop that has lost its end is noticed now, not after mutmut's quarter of an hour."""
    if "__mutmut_" not in os.environ.get("MUTANT_UNDER_TEST", ""):
        yield
        return
    signal.signal(signal.SIGPROF, lambda *_: os._exit(1))  # an exception would be tried again by Hypothesis
    signal.setitimer(signal.ITIMER_PROF, MUTANT_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
