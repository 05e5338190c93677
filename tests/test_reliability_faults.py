"""The sections of the reliability report on faults, each at a small scale: what they find lost or wrong they raise."""

from __future__ import annotations

import subprocess

import pytest
from reliability import half_done, long_runs, prompts, scores, watch

needs_watching = pytest.mark.skipif(not watch.possible(), reason="this system lets no process be watched (seccomp)")


@pytest.mark.long
@needs_watching
def test_half_done_work_is_older_or_newer_and_never_lost() -> None:
    section = half_done.run(0.01)
    assert len(section.rows) >= 4 + 1
    assert all("whole" in outcome or "room" in outcome for _, _, outcome in section.rows)


def test_prompts_are_answered_or_refused_in_one_line() -> None:
    found = {what: outcome for what, _, outcome in prompts.run(0.002).rows}
    assert found["a million characters"] == "refused in one line 2"
    assert found["texts of many scripts, controls, and other models' markup"] == f"answered {len(prompts.TEXTS)}"


def test_scores_at_the_edges_are_decided_as_compared_or_stop() -> None:
    found = [outcome for what, _, outcome in scores.run(0.02).rows if "nan" in what]
    assert found and all(outcome.startswith("stopped by NumericalError") for outcome in found)


@pytest.mark.long
def test_long_runs_stay_as_they_began() -> None:
    assert [count for _, count, _ in long_runs.run(0.001).rows] == [20, 20, 1]


@pytest.mark.long
def test_a_leak_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        long_runs.run(0.001, leak=1 << 17)
    assert "grew the process by" in capfd.readouterr().err
