"""The page about published weights: their own code runs only if it is trusted, elsewhere, and a wrong model shows."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from foreign import BLOCK, CANVAS

from export import check_model
from export.check_model import Page, format_lines, format_verdict
from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import write_ort_graph
from export.proof import own_code
from export.proof.against_own_code import Agreement, DecodedAnswer, decode, measure_agreement, run_own_code
from export.proof.prove import sample_requests
from runtime.bundle.manifest import Engine
from runtime.contract import Contract
from runtime.proof.judge import Check
from train.huggingface.families import Overrides
from train.open_checkpoint import load

SIZES = ["--block", str(BLOCK), "--canvas", str(CANVAS)]
CODE = """import os, pathlib
from transformers import Qwen3Config, Qwen3ForCausalLM

pathlib.Path(os.environ["MARKER"]).write_text(str(os.getpid()))

class XConfig(Qwen3Config):
    model_type = "sdar"

class XForCausalLM(Qwen3ForCausalLM):
    config_class = XConfig
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """A directory with code of its own, its exported graph's contract, and the inputs recorded of some answers."""

    directory: Path
    contract: Contract
    inputs: Path
    decoded: list[DecodedAnswer]
    stock: Any


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("check")
    stock = foreign.write(folder / "model", "sdar", seed=5, sharp=4.0)
    (folder / "model" / "modeling_x.py").write_text(CODE)
    own = {"AutoConfig": "modeling_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    foreign.change_config(folder / "model", auto_map=own)
    source = load(folder / "model", Overrides(block=BLOCK, canvas=CANVAS))
    contract = make_export_contract(source, None)
    for name in ("graph", "inputs"):
        (folder / name).mkdir()
    graph, *_ = write_ort_graph(source, contract, "fp32", folder / "graph")
    engine = Engine("ort-fp32", "ort", "fp32", "cpu", None, graph.name, {}, {})
    requests = sample_requests(contract)[:3]
    decoded = decode(folder / "graph", engine, contract, requests, folder / "inputs")
    return Exported(folder / "model", contract, folder / "inputs", decoded, stock)


def inputs_of(exported: Exported) -> list[dict[str, Any]]:
    return [dict(np.load(file)) for file in sorted(exported.inputs.glob("[0-9]*.npz"))]


def test_recorded_inputs_without_a_kv_cache_are_what_the_graph_computed_with_one(exported: Exported) -> None:
    recorded, kept = inputs_of(exported), np.setdiff1d(np.arange(exported.contract.vocab), exported.contract.mask_id)
    assert len(recorded) == sum(len(each.inputs) for each in exported.decoded)
    assert any(len(set(each["visible"].tolist())) > 1 for each in recorded), "none sees less than all"
    form = "by a float attention_mask [1, 1, length, length]"
    for each in recorded:
        theirs = own_code.forward(exported.stock, form, each["ids"], each["visible"])[each["rows"]]
        assert np.abs(theirs[:, kept] - each["logits"][:, kept]).max() < 1e-4


def test_a_directorys_code_is_not_imported_without_the_flag(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    found = run_own_code(sys.executable, exported.directory, exported.inputs, trust=False)
    assert found["untrusted"] == "sdar" and not (tmp_path / "marker").exists()
    assert not list(exported.inputs.glob("*.own.npy"))


def test_with_the_flag_it_runs_in_another_process_and_a_wrong_model_shows(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    before = set(sys.modules)
    found = run_own_code(sys.executable, exported.directory, exported.inputs, trust=True)
    assert found["class"] == "XForCausalLM" and found["own"], found
    assert int((tmp_path / "marker").read_text()) != os.getpid()
    assert not any("modeling_x" in name for name in set(sys.modules) - before)
    page = page_of(decoded=exported.decoded, own=found)
    each = [measure_agreement(exported.inputs, one.inputs, exported.contract, ()) for one in exported.decoded]
    assert all(map(page.agrees, each)) and sum(one.rows for one in each) > 10, each
    file = exported.inputs / f"{exported.decoded[0].inputs[-1]:03}.own.npy"
    right = np.load(file)
    np.save(file, 1.02 * right)
    assert not page.agrees(measure_agreement(exported.inputs, exported.decoded[0].inputs, exported.contract, ()))
    np.save(file, right * np.nan)
    assert not page.agrees(measure_agreement(exported.inputs, exported.decoded[0].inputs, exported.contract, ()))
    np.save(file, right)


def test_a_class_of_transformers_needs_no_trust(exported: Exported, tmp_path: Path) -> None:
    foreign.write(tmp_path / "model", "sdar", seed=5, sharp=4.0)
    foreign.change_config(tmp_path / "model", model_type="qwen3", mask_token_id=None)
    found = own_code.run(str(tmp_path / "model"), exported.inputs, trust=False)
    assert found["class"] == "Qwen3ForCausalLM" and not found["own"] and "float attention_mask" in found["form"]
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "other.safetensors")
    own_code.main(str(tmp_path / "model"), exported.inputs, trust=False)
    assert "refused" in json.loads((exported.inputs / "own.json").read_text())


def test_a_process_that_dies_is_told_in_one_line(exported: Exported, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Illegal instruction' >&2\nexit 132\n")
    python.chmod(0o755)
    (exported.inputs / "own.json").unlink(missing_ok=True)
    found = run_own_code(str(python), exported.directory, exported.inputs, trust=True)
    assert found["refused"] == "its process ended with exit code 132: Illegal instruction"


def is_bool(mask: Any) -> bool:
    return mask is not None and mask.dtype == torch.bool


def only(allowed: Callable[[Any], bool]) -> Callable[[Any, dict[str, Any]], Any]:
    """Code that takes masks of one kind, and raises for others."""

    def call(stock: Any, given: dict[str, Any]) -> Any:
        mask = given.pop("attention_mask", None)
        if not allowed(mask):
            raise TypeError("not such a mask")
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            mask = mask if mask.dim() == 4 else mask[None]
        return stock(**given, attention_mask=mask)

    return call


@pytest.mark.parametrize(
    ("call", "form"),
    [
        (only(lambda mask: is_bool(mask) and mask.dim() == 4), "bool attention_mask [1, 1,"),
        (only(lambda mask: is_bool(mask) and mask.dim() == 3), "bool attention_mask [1, length"),
        (only(lambda mask: mask is None), None),  # it is causal
        (lambda stock, given: stock(input_ids=given["input_ids"]), None),  # it leaves every mask out
        (lambda stock, given: SimpleNamespace(logits=torch.zeros(1, 1, 4)), None),
    ],
)  # fmt: skip
def test_code_is_masked_in_the_first_way_that_it_follows(
    call: Callable[[Any, dict[str, Any]], Any], form: str | None, exported: Exported
) -> None:
    def model(**given: Any) -> Any:
        if "attention_bias" in given:
            raise TypeError("unexpected keyword argument 'attention_bias'")
        return call(exported.stock, given)

    found, left = own_code.choose_form(model, inputs_of(exported))
    assert (found is None) == (form is None) and (form or "") in (found or "")
    assert all(": " in reason and "\n" not in reason for reason in left)
    if form is None:
        assert len(left) == len(own_code.make_masks(np.ones(1, np.int64)))


def page_of(**given: Any) -> Page:
    facts = {"family": "sdar", "written_by": "4.46.2"}
    return Page("Tiny", facts, 1.0, 10**6, "fp32", [Check("graph", True, "valid")], **given)


DECODED = [DecodedAnswer(3, (1, 2), "length", 4, (0, 1))]
RAN = {"torch": "2", "transformers": "5", "class": "X", "own": True, "form": "by its own rule", "seconds": 1.0}


@pytest.mark.parametrize(
    ("found", "precision", "ok"),
    [
        (Agreement(2, 9, 0, 0.0, 1e-5, 1e-5), "fp32", True),
        (Agreement(2, 9, 1, 1e-4, 1e-5, 1e-5), "fp32", True),  # a near tie
        (Agreement(2, 9, 1, 1e-2, 1e-5, 1e-5), "fp32", False),
        (Agreement(2, 9, 0, 0.0, 2e-3, 2e-3), "fp32", False),
        (Agreement(2, 9, 0, 0.0, math.nan, math.nan), "fp32", False),
        (Agreement(2, 9, 1, 1e-2, 0.05, 0.5), "fp16", True),
        (Agreement(2, 9, 1, 1e-2, 0.2, 0.5), "fp16", False),
    ],
)
def test_the_page_begins_with_whether_it_agrees(found: Agreement, precision: str, ok: bool) -> None:
    page = replace(page_of(decoded=DECODED, texts=["hi"], own=RAN, agreements=[found]), precision=precision)
    json.dumps(check_model.to_plain(page), allow_nan=False)
    text = "\n".join(format_lines(page))
    assert page.ok == ok and (("agrees with" if ok else "DIFFERS FROM") in format_verdict(page))
    assert text.startswith(f"# blockstep check-model: Tiny: {format_verdict(page)}\n")
    assert f"[{'ok' if ok else 'x'}] max" in text


def test_the_page_says_what_was_not_run_and_how_to_run_it() -> None:
    page = page_of(decoded=DECODED, texts=[""], own={"torch": "2", "transformers": "5", "untrusted": "sdar"})
    assert page.ok and "not compared with its own code" in format_verdict(page)
    assert any("To compare: blockstep check-model Tiny --trust-remote-code" in line for line in format_lines(page))
    refused = list(format_lines(replace(page, own={"refused": "it masks in no way that was tried"})))
    assert any(line.startswith("own code: not compared: it masks in no way") for line in refused)
    assert any("written by transformers 4.46.2; --python takes a Python" in line for line in refused)
    failed = replace(page, checks=[Check("layers", False, "off")], decoded=[])
    assert not failed.ok and format_verdict(failed) == "the export failed its own checks"


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_model.main([str(tmp_path / "student.pt")]) == 2
    assert "is not a directory; expected a directory of config.json" in capsys.readouterr().err
    assert check_model.main([str(tmp_path)]) == 2
    assert "has no config.json; expected a directory of config.json" in capsys.readouterr().err
    assert check_model.main([""]) == 2
    assert "got ''; expected a path" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert check_model.main([str(tmp_path), "--python", "no-such-python"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert check_model.main([str(tmp_path), "--out", str(tmp_path / "missing" / "page.txt")]) == 2
    assert "whose folder is not there" in capsys.readouterr().err


@pytest.mark.long
def test_the_command_writes_one_page_and_its_json(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "page.txt"
    monkeypatch.setenv("MARKER", str(marker))
    before = sorted(path.name for path in exported.directory.parent.iterdir())
    assert check_model.main([str(exported.directory), *SIZES, "--out", str(file)]) == 0
    page = capsys.readouterr().out
    assert "not compared with its own code" in page and not marker.exists() and file.read_text() in page
    assert check_model.main([str(exported.directory), *SIZES, "--trust-remote-code", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"].endswith("agrees with the directory's own code") and marker.exists()
    assert len(told["agreements"]) == check_model.PROMPTS and told["facts"]["family"] == "sdar" and told["size"] > 1e5
    assert sorted(path.name for path in exported.directory.parent.iterdir()) == before, "the bundle is temporary"
    wrong = CODE + "    def forward(self, **given):\n        out = super().forward(**given)\n"
    (exported.directory / "modeling_x.py").write_text(wrong + "        out.logits *= 1.02\n        return out\n")
    assert check_model.main([str(exported.directory), *SIZES, "--trust-remote-code"]) == 1
    assert "DIFFERS FROM the directory's own code" in capsys.readouterr().out
