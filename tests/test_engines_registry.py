"""An engine is one row: another kind, of numpy alone, is found, checked and opened by what the registry says of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import load_check
from runtime.backend import Forward, Proposal
from runtime.bundle.store import Bundle, Engine, read
from runtime.contract import Contract
from runtime.engines.registry import DEVICES, KINDS, EngineKind, OpenOptions, choose_engines
from runtime.errors import UserError
from runtime.open_bundle import load

GOLDEN = Path(__file__).parent / "golden" / "ort.bundle"


class Constant:
    """Proposes one token everywhere, and is sure of it."""

    name = "numpy"

    def __init__(self, contract: Contract, token: int) -> None:
        self.contract, self.token = contract, token

    def open(self, batch: int, capacity: int) -> None: ...

    def keep(self, rows: NDArray[Any]) -> None: ...

    def forward(self, forward: Forward) -> Proposal:
        ones = np.ones(forward.rows.shape, np.float32)
        return Proposal(np.full(forward.rows.shape, self.token), ones, 0 * ones)


def open_constant(bundle: Bundle, engines: Sequence[Engine], options: OpenOptions) -> tuple[Engine, Constant]:
    return engines[0], Constant(bundle.contract, int(np.load(bundle.path / engines[0].model)))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The golden bundle with a second engine, whose kind is registered for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kind = EngineKind("numpy", ".npy", False, ("numpy",), ("cpu",), ("numpy",), open_constant)
    monkeypatch.setitem(KINDS, "numpy", kind)
    path = tmp_path / "a.bundle"
    shutil.copytree(GOLDEN, path)
    np.save(path / "constant.npy", 7)
    digest = hashlib.sha256((path / "constant.npy").read_bytes()).hexdigest()
    manifest = json.loads((path / "manifest.json").read_text())
    row = manifest["engines"][0] | {"name": "constant", "dialect": "numpy", "model": "constant.npy"}
    manifest["engines"].append(row | {"files": {"constant.npy": digest}})
    (path / "manifest.json").write_text(json.dumps(manifest))
    return read(path)


def test_another_kind_is_found_by_its_name_tried_and_opened(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[Any, ...]] = []
    monkeypatch.setattr(load_check, "attempt", lambda *given: tried.append(given) or True)
    model = load(bundle.path, engine="numpy")
    assert model.engine == "constant" and tried == [(bundle, bundle.find_engine("constant"), None, False)]
    assert model.generate([5, 6], max_new_tokens=8).result.token_ids == (7,) * 8
    assert load(bundle.path).engine == "ort-fp32"


def test_a_device_that_a_kind_does_not_run_on_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="constant does not run on cuda; use --device cpu"):
        choose_engines(bundle, "numpy", "cuda")


def test_a_file_that_no_kind_opens_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KINDS, "numpy")
    with pytest.raises(UserError, match=r"model 'constant.npy' is not a .onnx file; export the bundle again"):
        read(bundle.path)


def test_rows_are_told_apart() -> None:
    assert len({kind.suffix for kind in KINDS.values()}) == len(KINDS)
    assert all(name == kind.name and {*kind.devices} <= {*DEVICES} for name, kind in KINDS.items())
