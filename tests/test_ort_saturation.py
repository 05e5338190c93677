"""The session option for CPUs whose int8 kernel saturates is set if it is needed, and only then.

Whether a product is right with it is shown under emulated CPUs (tests/other_cpus.sh).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.proof.instrumented import load_instrumented
from runtime.bundle import store
from runtime.engines.ort import saturation
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.ort.ort_session import load_session
from runtime.perf import local_cpu

BUNDLE = Path(__file__).parent.parent / "samples" / "student.bundle"
PLAIN = ort.SessionOptions()
NAMES = [name for name in dir(PLAIN) if not name.startswith("_") and not callable(getattr(PLAIN, name))]


def exact(options: ort.SessionOptions) -> str | None:
    try:
        return str(options.get_session_config_entry(saturation.OPTION))
    except RuntimeError:
        return None


@pytest.fixture(params=[True, False], ids=["saturates", "sound"])
def saturates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU of either kind, as far as the options go."""
    monkeypatch.setattr(saturation, "u8s8_saturates", lambda: request.param)
    return bool(request.param)


def test_the_probe_tells_what_a_product_gives_here() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(200, 256, (32, 4)).astype(np.uint8), rng.integers(100, 128, (4, 32)).astype(np.int8)
    out = saturation.make_product("probe", right, ort.SessionOptions())(left)
    saturation.u8s8_saturates.cache_clear()
    assert saturation.u8s8_saturates() == (not np.array_equal(out, left.astype(np.int32) @ right.astype(np.int32)))


def test_the_probe_runs_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []
    real = saturation.make_product
    monkeypatch.setattr(saturation, "make_product", lambda *given: runs.append(given) or real(*given))
    saturation.u8s8_saturates.cache_clear()
    first = saturation.u8s8_saturates()
    for _ in range(2):
        load_session(store.read(BUNDLE).path / store.read(BUNDLE).engines[0].model)
    assert len(runs) == 1 and saturation.u8s8_saturates() == first


def test_the_option_reaches_the_engine_the_instrumented_graph_and_the_roofline(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.read(BUNDLE)
    backend = OrtBackend(made.path / made.engines[0].model, made.contract, 2)
    wanted = "1" if saturates else None
    assert exact(backend.session.get_session_options()) == wanted
    assert exact(load_instrumented(made.path / made.engines[0].model, backend).session.get_session_options()) == wanted
    given: list[ort.SessionOptions] = []
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda m, o, **rest: given.append(o) or real(m, o, **rest))
    monkeypatch.setattr(local_cpu, "ROWS", 2)
    local_cpu.make_product("int8", 1)
    assert [exact(options) for options in given] == [wanted]


def test_on_a_sound_cpu_a_session_has_the_options_that_it_had_before(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: dict[str, str] = {}

    class Recording(ort.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            entries[key] = value
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(ort, "SessionOptions", Recording)
    made = store.read(BUNDLE)
    got = load_session(made.path / made.engines[0].model, 2).get_session_options()
    assert entries == ({saturation.OPTION: "1"} if saturates else {})
    assert {name: getattr(got, name) for name in NAMES} == {
        **{name: getattr(PLAIN, name) for name in NAMES}, "intra_op_num_threads": 2, "log_severity_level": 3,
    }  # fmt: skip
