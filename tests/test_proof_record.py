"""What an export records in PyTorch is what its engine computes, and the bounds that it judges by are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_faults
import numpy as np
import pytest
import tiny

from export.contract_from_checkpoint import make_export_contract
from export.graph.ort_graph import write_ort_graph
from export.precisions import PRECISIONS, Floors
from export.proof import held_out
from export.proof import record as module
from export.proof.held_out import make_recorded_requests, take_recorded_problems
from export.proof.prove import sample_requests
from export.proof.quantized_reference import QuantizedBackend
from export.proof.record import Recording, compute_scatter, count_first_load, derive_bounds, record_reference, round_up
from export.proof.record_streamed import record_streamed
from export.quantization.ort_formats import choose_formats
from runtime.backend import Forward
from runtime.bundle.manifest import Engine
from runtime.bundle.reference import RecordedForward, Reference, read_reference
from runtime.contract import Contract
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.proof.judge import judge_answers, judge_figures, prove
from runtime.proof.replay import ReplayResult
from train.checkpoint import Checkpoint
from train.torch_backend import TorchBackend


def recorded(
    source: Checkpoint, contract: Contract, precision: str, folder: Path
) -> tuple[Recording, Reference, OrtBackend]:
    """A reference that was written and read again, and the engine that it is of."""
    [file] = write_ort_graph(source, contract, precision, folder)
    backend = OrtBackend(file, contract, threads=1)
    engine = Engine(f"ort-{precision}", "ort", precision, "cpu", None, file.name, {}, {})
    formats = choose_formats("ort", precision)
    made = record_reference(source, contract, engine, backend, sample_requests(contract), formats, folder)
    return made, read_reference(folder, made.entry, contract), backend


@pytest.mark.parametrize(
    ("precision", "top_k", "decoding"),
    [
        ("fp32", 8, {}), ("int8", 0, {}), ("fp32", 0, {"attention": "full", "shift": True}),
    ],
)  # fmt: skip
def test_an_engine_keeps_the_bounds_that_its_export_records(
    precision: str, top_k: int, decoding: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny.checkpoint(1, **decoding)
    contract = make_export_contract(source, None, top_k)
    made, reference, backend = recorded(source, contract, precision, tmp_path)
    assert made.check.ok and made.file.name == made.entry.file and made.entry.first_load == len(reference.forwards)
    assert all(check.ok for check in prove(backend, reference.forwards, made.entry.bounds))
    assert all(each.ok for each in judge_answers(backend, reference.answers, contract.gate, made.entry.bounds))
    names = {"log_prob", "entropy", "largest_log_prob"} | ({"top_log_prob", "top_spread"} if top_k else set())
    names |= set() if decoding else {"keys", "values"}
    assert made.entry.bounds.keys() - {"answers"} == names == made.entry.first_load_bounds.keys()
    assert ("answers" in made.entry.bounds) == (precision == "fp32")
    known = contract.vocab - 1 - len(source.list_missing_ids())
    assert reference.forwards[0].top_token.shape[1] == min(32, known)
    assert np.all(np.diff(reference.forwards[0].top_logprob) <= 0)
    if precision == "fp32" and contract.has_cache:
        wrong = engine_faults.Masked(backend, -1)
        assert not all(check.ok for check in prove(wrong, reference.forwards, made.entry.bounds))


@pytest.mark.parametrize(
    ("precision", "decoding"), [("fp32", {}), ("int8", {}), ("fp32", {"attention": "full"})]
)  # fmt: skip
def test_a_streamed_reference_is_what_the_whole_model_computes(
    precision: str, decoding: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny.checkpoint(1, **decoding)
    contract = make_export_contract(source, None, 8)
    [file] = write_ort_graph(source, contract, precision, tmp_path)
    engine = Engine(f"ort-{precision}", "ort", precision, "cpu", None, file.name, {}, {})
    request, formats = sample_requests(contract)[-1], choose_formats("ort", precision)
    made = record_streamed(source, contract, engine, request, formats, tmp_path)
    reference = read_reference(tmp_path, made.entry, contract)
    first, second = reference.forwards
    assert first.begins and not second.begins and not reference.answers
    prefix = int(second.forward.past_length[0])
    assert prefix == (len(request.prompt) if contract.has_cache else 0)
    masked = second.forward.input_ids[0, -contract.block :] == contract.mask_id
    assert not contract.has_cache or 0 < masked.sum() < contract.block
    whole = TorchBackend(source.build(), contract, barred=source.list_missing_ids())
    near = QuantizedBackend(source, contract, formats) if formats else whole
    near.open(1, contract.capacity)
    for each in reference.forwards:
        out = near.forward(each.forward)
        np.testing.assert_allclose(out.entropy[0], each.entropy, rtol=1e-4, atol=1e-5)
    checks = prove(OrtBackend(file, contract, threads=1), reference.forwards, made.entry.bounds)
    assert all(check.ok for check in checks), [str(check) for check in checks]


def test_a_reference_stays_within_its_room_and_a_large_model_proves_two_forward_passes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 1)
    monkeypatch.setattr(module, "FIRST_LOAD", 1.0)
    source = tiny.checkpoint(1)
    made, reference, _ = recorded(source, make_export_contract(source, None), "fp32", tmp_path)
    assert len(reference.answers) == 1 and made.entry.first_load == 2 < len(reference.forwards)
    assert sum(each.begins for each in reference.forwards) == 1


def test_prompts_are_of_the_tokenizers_common_tokens_if_it_does_not_know_the_tasks_texts() -> None:
    source = tiny.checkpoint(1)  # 24 tokens: no letters
    contract = make_export_contract(source, None)
    requests = make_recorded_requests(source, contract, None, None)
    assert requests and all(request.prompt.max() < contract.vocab for request in requests)


def test_a_reference_is_of_forty_prompts_whose_tasks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = take_recorded_problems("math,code", None)
    assert [bool(each.tests) for each in problems] == 20 * [False, True]  # code has tests
    monkeypatch.setattr(held_out, "RECORDED", 5)
    assert {each.prompt for each in take_recorded_problems("math,code", None)} <= {each.prompt for each in problems}


def test_a_model_of_many_operations_records_eight_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.checkpoint(1)
    contract = make_export_contract(source, None)
    reference = TorchBackend(source.build(), contract, barred=source.list_missing_ids())
    requests = make_recorded_requests(source, contract, None, None)[:12]
    assert len(module.record(reference, requests, module.count_operations(source)).answers) == 12
    monkeypatch.setattr(module, "RECORD", 1.0)
    assert len(module.record(reference, requests, module.count_operations(source)).answers) == 8


def test_a_first_load_replays_no_more_rows_than_show_a_fault() -> None:
    source = tiny.checkpoint(1)
    forwards = still(40)  # of 16 rows
    assert count_first_load(source, forwards) == 29 < 40
    assert count_first_load(source, forwards[:20]) == 20


def scattered(rng: np.random.Generator, passes: int) -> ReplayResult:
    """A replay of `still` as another machine's last bits make it: each row off by itself, the means by little."""
    rows = 16 * passes
    top = 0.05 * rng.standard_normal((rows, 4))
    return ReplayResult(
        np.zeros(rows, np.int64),
        0.01 * rng.standard_normal(rows),
        0.01 * rng.standard_normal(rows),
        top,
        1 + 1e-3 * rng.standard_normal((passes, 2, 2)),
    )


def still(passes: int) -> list[RecordedForward]:
    """Recorded forward passes of 16 rows and 2 layers, all of whose numbers are 0 and norms 1."""
    ids, rows = np.zeros((1, 16), np.int64), np.arange(16)[None]
    forward = Forward(ids, np.zeros(1, np.int64), ids + 16, rows, True)
    zeros, norms = np.zeros((16, 4), np.float32), np.ones((2, 2), np.float32)
    made = RecordedForward(False, forward, zeros.astype(np.int64), zeros, zeros[:, 0], norms)
    return [replace(made, begins=not number) for number in range(passes)]


def test_bounds_leave_room_for_how_rows_scatter_where_the_exported_engine_happens_to_be_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PRECISIONS, "int8", replace(PRECISIONS["int8"], replay=Floors(1e-9, 1e-9, 1.0)))
    rng, forwards = np.random.default_rng(1), still(40)
    kept = Engine("ort-int8", "ort", "int8", "cpu", None, "", {}, {})
    exported = scattered(rng, 40)
    exported = replace(
        exported,
        log_prob=exported.log_prob - exported.log_prob.mean(),
        norms=exported.norms - exported.norms.mean(0) + 1,
    )
    scatter = compute_scatter(forwards, exported)
    whole = derive_bounds(kept, forwards, exported, scatter)
    exact = scattered(rng, 6)
    exact = replace(exact, log_prob=0 * exact.log_prob, norms=0 * exact.norms + 1)
    part = derive_bounds(kept, forwards[:6], exact, scatter)
    for bounds, passes in ((whole, 40), (part, 6)):
        for _ in range(50):
            checks = judge_figures(forwards[:passes], scattered(rng, passes), bounds)
            assert all(check.ok for check in checks), [str(check) for check in checks]
        wrong = scattered(rng, passes)
        wrong = replace(wrong, log_prob=wrong.log_prob - 0.01, norms=1.005 * wrong.norms)
        refused = [check.name for check in judge_figures(forwards[:passes], wrong, bounds) if not check.ok]
        assert refused == ["keys", "values", "log_prob"]


def test_a_bound_is_rounded_up_to_two_digits() -> None:
    assert [round_up(value) for value in (1e-5, 1.201e-3, 0.0199, 7.0)] == [1e-5, 1.3e-3, 0.02, 7.0]
