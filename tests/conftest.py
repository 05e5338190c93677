"""Settings of the whole suite: one thread for torch, and Hypothesis without a clock."""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("blockstep", deadline=None, print_blob=True)


def pytest_configure() -> None:
    settings.load_profile("blockstep")
    torch.set_num_threads(1)  # the models are so small that a second thread only waits
