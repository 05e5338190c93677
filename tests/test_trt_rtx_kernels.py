"""Kernels that TensorRT for RTX compiles where it runs: for every shape at once, and kept for the next process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fake_tensorrt import FakeTensorRT
from trt_bundle import make_fake_backend

from runtime.bundle import trust_records
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.trt.trt_backend import TrtBackend

MODEL, CONTRACT = tiny.model(31), tiny.contract()
PROFILES = ((4, 4), (8, 8), (1, 128))  # each runs once, as wide as it is, when the engine is loaded
WIDTHS = len(PROFILES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kernels of a user who has run nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "blockstep" / "kernels"


def rtx(folder: Path, change: Callable[[FakeTensorRT], object] = id) -> tuple[TrtBackend, FakeTensorRT]:
    """An engine of TensorRT for RTX as another process opens it, after a change to the library."""
    backend, _, fake = make_fake_backend(
        folder, MODEL, CONTRACT, flavor="rtx", library=change, capacities=(128,), profiles=PROFILES
    )
    return backend, fake


def test_every_context_specializes_its_kernels_before_a_graph_is_captured(tmp_path: Path) -> None:
    backend, fake = rtx(tmp_path)
    configs = [context.config for context in fake.contexts]
    assert {config.dynamic_shapes_kernel_specialization_strategy for config in configs if config} == {"EAGER"}
    assert len(configs) == len(fake.compiled) == WIDTHS and not backend.name.endswith("without CUDA graphs")


def test_the_next_process_compiles_nothing_again(tmp_path: Path, cache: Path) -> None:
    backend, first = rtx(tmp_path)
    generate(backend, Request(np.arange(3, 9), DecodeOptions(8)))  # whose prompt is padded to 64 tokens
    assert len(first.compiled) == WIDTHS + 1
    backend.close()
    again, second = rtx(tmp_path)
    generate(again, Request(np.arange(3, 9), DecodeOptions(8)))
    assert second.compiled == [] and len(list(cache.iterdir())) == 1


def test_kernels_of_another_gpu_have_a_file_of_their_own(tmp_path: Path, cache: Path) -> None:
    rtx(tmp_path)
    _, other = rtx(tmp_path, lambda fake: setattr(fake.cuda.gpu, "name", b"Fake 4080"))
    assert len(other.compiled) == WIDTHS and len(list(cache.iterdir())) == 2


def _change_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "another byte": _change_byte,
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_kernels_never_reach_the_library(
    damage: str, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx(tmp_path)
    (file,) = cache.iterdir()
    DAMAGE[damage](file)
    _, fake = rtx(tmp_path, lambda fake: fake.raises.update(deserialize=AssertionError("it saw them")))
    assert len(fake.compiled) == WIDTHS and capsys.readouterr().err == ""
    if damage != "a folder":
        assert trust_records.read_kernels(file.name) is not None, "what was compiled again takes their place"


def test_kernels_that_another_user_wrote_are_not_loaded(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx(tmp_path)
    (file,) = cache.iterdir()
    monkeypatch.setattr(trust_records.os, "getuid", lambda: file.stat().st_uid + 1)
    assert len(rtx(tmp_path)[1].compiled) == WIDTHS


@pytest.mark.parametrize(
    "change",
    [
        lambda fake: setattr(fake, "environment", "driver 590"),
        lambda fake: fake.raises.update(deserialize=RuntimeError("a bad blob")),
    ],
)
def test_kernels_that_the_library_refuses_are_compiled_again(
    change: Callable[[FakeTensorRT], object], tmp_path: Path
) -> None:
    rtx(tmp_path)
    assert len(rtx(tmp_path, change)[1].compiled) == WIDTHS


def test_kernels_that_cannot_be_written_are_compiled_by_every_process(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder")
    for _ in range(2):
        backend, fake = rtx(tmp_path)
        assert len(fake.compiled) == WIDTHS
        backend.close()
