"""The command runtime.bench: every kind of forward timed as decoding makes it, with the conditions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from deciding import CANDIDATES, make_deciding_bundle
from speaking import ANSWER, PROMPT, encode_ids, every_other, make_speaker, make_speaking_bundle

from runtime import bench
from runtime.backend import Forward, Proposal
from runtime.perf import latency
from train.torch_backend import TorchBackend, derive_contract


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_speaking_bundle(tmp_path_factory.mktemp("speaker"), PROMPT, ANSWER, every_other))


def test_bench_reports_every_kind_of_forward_and_its_conditions(
    bundle: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"prompt": "{PROMPT}"}}\n' * 3)
    options = ["--repeat", "2", "--warmup", "0", "--threads", "1", "--prompts", str(prompts)]
    assert bench.main([bundle, *options, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    values = json.loads(captured.out)
    assert [row["width"] for row in values["forwards"]] == [41, 52, 64]
    assert values["candidates"] == []  # of a graph without
    assert (values["answers"]["count"], values["answers"]["mode"]) == (3, "block")
    assert values["answers"]["tokens"]["median"] == len(encode_ids(ANSWER)) + 1
    assert {"processor", "threads", "engine", "precision", "block", "capacity", "versions"} <= set(values["conditions"])
    assert bench.main([bundle, *options]) == 0
    table = capsys.readouterr().out
    for expected in ("3 answers, mode block ", "tokens per second", "host ms per forward"):
        assert expected in table
    assert "candidates" not in table
    assert bench.main([bundle, *options[:6], "--prompt", "", "--json"]) == 2  # and not another prompt's times
    assert "the prompt is empty" in capsys.readouterr().err
    assert bench.main([bundle, "--repeat", "0"]) == 2
    assert bench.main([bundle, "--no-cuda-graphs"]) == 2
    assert "runs without CUDA graphs anyway; leave --no-cuda-graphs out" in capsys.readouterr().err


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
def test_the_forwards_that_are_timed_are_those_that_decoding_makes(tmp_path: Path, alignment: str, shift: bool) -> None:
    checkpoint = tiny.checkpoint(alignment=alignment, shift=shift)
    backend = TorchBackend(checkpoint.build(), derive_contract(checkpoint))
    rows = list(latency.time_forwards(backend, repeat=1, warmup=0))
    assert {row.forward for row in rows} == {"step", "step, half open", "commit", "fused step", "prefill"}
    assert {row.rows for row in rows if row.forward == "step, half open"} == {2}
    assert {row.past for row in rows if row.forward == "step"} == {0, 28, 56}
    spoken = make_speaker(tmp_path, "x" * 8, "abcdefgh", alignment=alignment, shift=shift, gate={"rule": "count"})
    for fuse in (True, False):
        spoken.generate("x" * 8, fused=fuse)
    made = [f for f in spoken.backend.forwards if f.past_length[0] == 8]  # type: ignore[attr-defined]
    for timed in (latency.make_fused, latency.make_canvas_step, latency.make_half, latency.make_commit):
        other = timed(spoken.contract, 8)
        whole = timed is latency.make_commit  # no mask in it
        one = next(
            f for f in made if f.rows.shape == other.rows.shape and f.input_ids.shape == other.input_ids.shape
            and (tiny.MASK not in f.input_ids) == whole
        )  # fmt: skip
        assert np.array_equal(one.visible, other.visible)
        assert np.array_equal(one.rows, other.rows)


class Clocked:
    """A backend on which a step takes a second, half a second more per candidate, and each call as long as that."""

    def __init__(self, **contract: int) -> None:
        self.contract, self.now, self.forwards = tiny.contract(**contract), 0.0, list[Forward]()

    def open(self, batch: int, capacity: int) -> None:
        self.opened = (batch, capacity)

    def forward(self, forward: Forward) -> None:
        self.forwards.append(forward)
        self.now += 1 + (0 if forward.candidates is None else forward.candidates.shape[2] / 2)


def test_steps_with_and_without_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Clocked(candidates=20)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: backend.now, sleep=lambda _: None))
    rows = latency.time_candidates(backend, repeat=2, warmup=1)  # type: ignore[arg-type]
    assert [(row.candidates, row.ms.median, row.ratio) for row in rows] == [
        (0, 1000, 1), (1, 1500, 1.5), (16, 9000, 9), (20, 11000, 11),
    ]  # fmt: skip
    assert {(row.past, row.width, row.rows) for row in rows} == {(28, 4, 4)} and backend.opened == (1, 32)
    made = [0 if f.candidates is None else f.candidates.shape[2] for f in backend.forwards]
    once = [0, 0, 1, 1, 16, 16, 20, 20]  # an untimed step and a timed one
    assert made == [*once[::-1], *once, *once[::-1]]
    given = backend.forwards[0].candidates
    assert given is not None and given.shape == (1, 4, 20) and (given == given[0, 0]).all()
    assert len(set(given[0, 0].tolist())) == 20 and tiny.MASK not in given and given.max() < tiny.VOCAB
    assert latency.time_candidates(Clocked(), repeat=1, warmup=0) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", tiny.ATTENTIONS)
def test_an_engine_takes_the_steps_that_are_timed(attention: str) -> None:
    checkpoint = tiny.checkpoint(attention=attention)
    backend = TorchBackend(checkpoint.build(), replace(derive_contract(checkpoint), candidates=8))
    for step in latency.list_block_steps(backend.contract):
        backend.open(1, int(step.past_length[0]) + step.input_ids.shape[1])
        out: Proposal = backend.forward(latency.add_candidates(backend.contract, step, 8))
        assert out.candidate_logprob is not None and out.candidate_logprob.shape == (1, step.rows.shape[1], 8)
    assert [row.candidates for row in latency.time_candidates(backend, repeat=1, warmup=0)] == [0, 1, 8]


def test_bench_reports_what_candidates_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = str(make_deciding_bundle(tmp_path))
    capsys.readouterr()
    options = [made, "--repeat", "1", "--warmup", "0", "--threads", "1", "--max-new-tokens", "4"]
    assert bench.main([*options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["candidates"]
    assert [row["candidates"] for row in rows] == [0, 1, 16, CANDIDATES] and rows[0]["ratio"] == 1
    assert bench.main(options) == 0
    table = capsys.readouterr().out.splitlines()
    (first,) = [i for i, line in enumerate(table) if line.startswith("step by turns (ms)")]
    assert [line.split()[:2] for line in table[first + 1 : first + 5]] == [
        ["candidates", str(count)] for count in (0, 1, 16, CANDIDATES)
    ]


@pytest.mark.parametrize(
    ("content", "reason"), [("", "is empty"), ('{"text": "x"}', "line 1"), ('{"prompt": "x"}\nx', "line 2")]
)
def test_bench_names_the_line_of_a_bad_prompts_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: str, content: str, reason: str
) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    assert bench.main([bundle, "--prompts", str(tmp_path / "prompts.jsonl")]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
