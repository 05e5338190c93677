"""The command runtime.bench: every kind of forward timed as decoding makes it, with the conditions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from speaking import ANSWER, PROMPT, every_other, ids_of, speaker, speaking_bundle

from runtime import bench
from runtime.perf import latency
from train.torch_backend import TorchBackend, contract_of


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(speaking_bundle(tmp_path_factory.mktemp("speaker"), PROMPT, ANSWER, every_other))


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
    assert values["answers"]["count"] == 3
    assert values["answers"]["tokens"]["median"] == len(ids_of(ANSWER)) + 1
    assert {"processor", "threads", "engine", "precision", "block", "capacity", "versions"} <= set(values["conditions"])
    assert bench.main([bundle, *options]) == 0
    table = capsys.readouterr().out
    assert "tokens per second" in table and "host ms per forward" in table
    assert bench.main([bundle, "--repeat", "0"]) == 2
    assert bench.main([bundle, "--no-cuda-graphs"]) == 2
    assert "runs without CUDA graphs anyway; leave --no-cuda-graphs out" in capsys.readouterr().err


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("alignment", ["prompt", "absolute", "end"])
def test_the_forwards_that_are_timed_are_those_that_decoding_makes(tmp_path: Path, alignment: str, shift: bool) -> None:
    checkpoint = tiny.checkpoint(alignment=alignment, shift=shift)
    backend = TorchBackend(checkpoint.build(), contract_of(checkpoint))
    rows = list(latency.time_forwards(backend, repeat=1, warmup=0))
    assert {row.forward for row in rows} == {"step", "step, half open", "commit", "fused step", "prefill"}
    assert {row.rows for row in rows if row.forward == "step, half open"} == {2}
    assert {row.past for row in rows if row.forward == "step"} == {0, 28, 56}
    spoken = speaker(tmp_path, "x" * 8, "abcdefgh", alignment=alignment, shift=shift, gate={"rule": "count"})
    for fuse in (True, False):
        spoken.generate("x" * 8, fused=fuse)
    made = [f for f in spoken.backend.forwards if f.past_length[0] == 8]  # type: ignore[attr-defined]
    for timed in (latency.fused, latency.canvas, latency.half, latency.commit):
        other = timed(spoken.contract, 8)
        whole = timed is latency.commit  # no mask in it
        one = next(
            f for f in made if f.rows.shape == other.rows.shape and f.input_ids.shape == other.input_ids.shape
            and (tiny.MASK not in f.input_ids) == whole
        )  # fmt: skip
        assert np.array_equal(one.visible, other.visible)
        assert np.array_equal(one.rows, other.rows)


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
