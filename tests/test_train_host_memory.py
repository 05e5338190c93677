"""A training's memory on the host does not grow with the shapes that its products have had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train import distributed, host_memory

MOST = 120_000_000  # bytes; 400 kernels that stay are 207 to 236 MB, with AVX-512 BF16 and without; 90 were seen here
SHAPES = """
import torch
from pathlib import Path
from train import distributed

def products(sizes):
    weight = torch.ones(256, 64, dtype=torch.bfloat16)
    for size in sizes:
        torch.nn.functional.linear(torch.ones(size, 64, dtype=torch.bfloat16), weight)
    return 0

def most():  # bytes; not ru_maxrss, since a process inherits that of the one that started it
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

distributed.run(lambda: products(range(100, 600)))
before = most()
products(range(600, 1000))
print(most() - before)
"""


def test_few_kernels_stay_unless_the_user_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = host_memory.KERNEL_CACHES
    monkeypatch.setenv(first, "7")
    monkeypatch.delenv(second, raising=False)
    assert distributed.run(lambda: 0) == 0  # of each training command, before its first product
    assert (os.environ[first], os.environ[second]) == ("7", str(host_memory.KERNELS))


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_products_of_ever_new_shapes_take_no_more_memory() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in host_memory.KERNEL_CACHES}
    ran = subprocess.run(
        [sys.executable, "-c", SHAPES], cwd=Path(__file__).parent.parent, env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < MOST
