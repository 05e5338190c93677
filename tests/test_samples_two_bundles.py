"""samples/bench/two_bundles.py: steps of two bundles by turns, and which two bundles it refuses; no timing asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deciding import CANDIDATES, CAPACITY, deciding_bundle

from export import onnx as export
from samples.bench import two_bundles

SAMPLE = Path(__file__).parent.parent / "samples" / "student.bundle"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Bundles of one checkpoint, without candidates and with."""
    folder = tmp_path_factory.mktemp("made")
    deciding, plain = deciding_bundle(folder), folder / "plain.bundle"
    words = ["--ckpt", str(folder / "student.pt"), "--capacity", str(CAPACITY), "--out", str(plain)]
    assert export.main(words) == 0
    return str(plain), str(deciding)


def test_each_step_is_timed_of_all_three(made: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*made, "--rounds", "1", "--threads", "1"]
    assert two_bundles.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["candidates"] == CANDIDATES and found["conditions"]["engine"] == "ort-fp32"
    assert [(step["past"], step["width"], step["rows"]) for step in found["steps"]] == [
        (0, 4, 4), (188, 4, 4), (376, 4, 4),
    ]  # fmt: skip
    for step in found["steps"]:
        assert all(row["median"] > 0 for row in step["ms"].values())
        for name, ratio in step["ratio"].items():
            assert ratio["median"] == pytest.approx(step["ms"][name]["median"] / step["ms"]["without"]["median"])
    assert two_bundles.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[3:9]] == [
        "past 0, width 4", "ms, without", "ms, without, again", "ms, with", "ratio, without, again", "ratio, with",
    ]  # fmt: skip


def test_bundles_that_differ_in_more_are_refused(
    made: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, deciding = made
    shorter = tmp_path / "shorter.bundle"
    words = ["--ckpt", str(Path(plain).parent / "student.pt"), "--capacity", "64", "--candidates", "8"]
    assert export.main([*words, "--out", str(shorter)]) == 0
    for words, line in (
        ([str(SAMPLE), deciding], "are of different checkpoints; export the same one twice"),
        (
            [deciding, plain],
            "the bundles have 64 and 0 candidates; give one exported without --candidates, then one with",
        ),
        ([plain, plain], "the bundles have 0 and 0 candidates"),
        ([plain, str(shorter)], "the bundles have capacity 384 and 64; export both with the same options but"),
        ([plain, str(tmp_path / "none")], "none: expected a folder with manifest.json"),
        ([plain, deciding, "--rounds", "0"], "'0' is not a whole number from 1"),
    ):
        capsys.readouterr()
        assert two_bundles.main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and line in err
