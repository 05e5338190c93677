"""The sample's engines are right on CPUs that are not at hand, which qemu emulates (tests/other_cpus.sh)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forced_steps import write_sample

SCRIPT = Path(__file__).parent / "other_cpus.sh"
MISSING = 77  # what the script exits with if something that it needs is missing


def run_script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=1800, check=False)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder)
    return folder


@pytest.mark.long
@pytest.mark.smoke
@pytest.mark.parametrize("cpu", ["haswell", "nehalem", "aarch64"])
def test_every_precision_is_right_on_an_emulated_cpu(cpu: str, sample: Path) -> None:
    done = run_script("--sample", sample, cpu)
    if done.returncode == MISSING:
        pytest.skip(" ".join(done.stderr.split())[-200:])
    assert done.returncode == 0 and f"{cpu}: 0 checks failed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("[ok]") == (13 if cpu == "haswell" else 11)


def test_the_script_says_how_it_is_used_and_refuses_what_it_does_not_know() -> None:
    assert "haswell" in run_script("--help").stdout
    assert "--matrix" in run_script("a72").stderr and "needs --matrix" in run_script("--first-loads").stderr
    done = run_script("z80")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: z80 is neither an option nor a CPU; expected haswell, nehalem or aarch64; see --help\n"
    )
