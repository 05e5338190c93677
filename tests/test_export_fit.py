"""What an engine needs of a device's memory: sums that are done here by hand, and the commands that print them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export import fit
from export.fit import MEMORY, MOST, EngineShape, MemoryNeed, compute_need, judge_fit

SAMPLE = Path(__file__).parent.parent / "samples" / "student.bundle"
# Qwen3-0.6B in fp16: 28 layers, width 1024, 16 heads and 8 of keys and values, all of 128, ffn 3072.
QWEN = EngineShape(
    weights=1_192_000_000, item=2, hidden=1024, ffn=3072, heads=16, kv_heads=8, head_dim=128, layers=28, vocab=151936,
    block=32, batch=1, widest=512, scores=False, delta=False, cached=True,
)  # fmt: skip


def changed(**changes: object) -> EngineShape:
    return EngineShape(**{**{name: getattr(QWEN, name) for name in EngineShape.__slots__}, **changes})  # type: ignore[arg-type]


def test_the_sum_for_a_known_shape() -> None:
    need = compute_need(QWEN, 1024)
    assert need.cache == 1024 * 114_688, "112 KiB a position: 2 x 28 layers x 8 heads x 128 x 2 bytes"
    residual, head = 2 * 512 * 1024 * 2, 3 * 4 * 32 * 151936
    assert need.activations == residual + head, "the head of a whole vocabulary is the largest part here"
    assert need.total == 1_192_000_000 + 117_440_512 + residual + head


def test_what_is_held_beside_follows_from_the_dialect() -> None:
    plain = compute_need(changed(scores=True, delta=True), 1024)
    assert plain.cache == (1024 + 512) * 114_688, "the new keys and values of the widest forward lie beside the cache"
    scores = 512 * (16 * 1536 * (4 + 2) + 1536 * 2 + (16 + 16) * 128 * 2)
    assert plain.activations == 2 * 512 * 1024 * 2 + scores
    assert compute_need(changed(cached=False), 1024).cache == 0
    assert compute_need(changed(batch=4), 1024).cache == 4 * compute_need(QWEN, 1024).cache
    wide = compute_need(changed(widest=None, vocab=1000), 2048)
    assert wide.activations == 2 * 2048 * 1024 * 2 + 2048 * max(3 * 3072 * 2, 32 * 128 * 2 + 2048 * 2)


@pytest.mark.parametrize("device", sorted(MEMORY))
def test_the_largest_capacity_is_the_last_that_fits(device: str) -> None:
    for shape in (QWEN, changed(weights=7_000_000_000), changed(scores=True, delta=True, widest=None)):
        found = judge_fit(device, shape, compute_need(shape, 1024), 2.0)
        room = (MEMORY[device] - 2) * 1e9
        if found.largest_capacity is None:
            assert compute_need(shape, 1).total > room and not found.fits
            continue
        assert compute_need(shape, found.largest_capacity).total <= room
        assert found.largest_capacity == MOST or compute_need(shape, found.largest_capacity + 1).total > room
        assert found.fits == (found.largest_capacity >= 1024)


def test_an_8b_model_in_fp16_needs_more_than_an_orin_nano() -> None:
    llada = changed(weights=16_000_000_000, hidden=4096, ffn=12288, heads=32, kv_heads=32, layers=32, vocab=126464)
    need = compute_need(llada, 1024)
    fits = {device: judge_fit(device, llada, need, 2.0).fits for device in MEMORY}
    assert [device for device, each in fits.items() if each] == ["agx-orin", "thor", "rtx-4090", "rtx-5090"]
    assert judge_fit("orin-nano", llada, need, 2.0).largest_capacity is None


@pytest.mark.parametrize("device", sorted(MEMORY))
def test_no_capacity_beyond_the_context_is_reported(device: str) -> None:
    free = judge_fit(device, QWEN, compute_need(QWEN, 1024), 2.0).largest_capacity
    assert free is not None and free > 2048
    assert judge_fit(device, QWEN, compute_need(QWEN, 1024), 2.0, 2048).largest_capacity == 2048
    assert free == MOST or judge_fit(device, QWEN, compute_need(QWEN, 1024), 2.0, free + 1).largest_capacity == free


def with_context(folder: Path, context: object) -> Path:
    """A copy of the sample's bundle that records a context, or with None none, as older bundles."""
    made = shutil.copytree(SAMPLE, folder / "student.bundle")
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    manifest["provenance"].pop("context", None)
    if context is not None:
        manifest["provenance"]["context"] = context
    (made / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return made


def test_the_report_ends_at_the_context_or_says_that_it_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, context, limit in (("new", 640, 640), ("old", None, None), ("odd", True, None)):
        made = str(with_context(tmp_path / name, context))
        assert fit.main([made, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        largest = {device["largest_capacity"] for device in told["devices"]}
        assert told["context"] == limit and (largest == {640} if limit else min(largest) > 640)
        assert fit.main([made]) == 0
        out = capsys.readouterr().out
        assert ("at most 640, the context the model was trained with" in out) == (limit is not None)
        assert ("which this bundle does not record; export it again" in out) == (limit is None)
        assert fit.main([made, "--capacity", "641"]) == (2 if limit else 0)
        assert ("--capacity is 641; expected 1 to 640, the context" in capsys.readouterr().err) == (limit is not None)


def test_the_sample_bundle_fits_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main([str(SAMPLE), "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.out.count("\n") == 1 and captured.err == ""
    assert told["cache"] == 2 * 6 * 1 * 64 * 4 * 512 and told["capacity"] == 512
    assert told["weights"] == sum(file.stat().st_size for file in SAMPLE.glob("ort-fp32-*.onnx"))
    assert told["total"] == MemoryNeed(512, told["weights"], told["cache"], told["activations"]).total
    assert [device["device"] for device in told["devices"]] == list(MEMORY)
    assert all(device["fits"] for device in told["devices"])


def test_a_device_that_is_too_small_is_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main([str(SAMPLE), "--device", "orin-nano"]) == 0
    assert fit.main([str(SAMPLE), "--device", "orin-nano", "--system-gb", "8"]) == 1
    last = capsys.readouterr().out.splitlines()[-3]
    assert last.split() == ["orin-nano", "8", "8", "no", "none"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["nowhere"], "no bundle at nowhere"),
        ([str(SAMPLE), "--device", "orin"], "invalid choice: 'orin'"),
        ([str(SAMPLE), "--capacity", "0"], "--capacity is 0"),
        ([str(SAMPLE), "--batch", "0"], "--batch is 0"),
        ([str(SAMPLE), "--system-gb", "nan"], "got 'nan'; expected a finite number"),
        ([str(SAMPLE), "--system-gb", "1e400"], "got '1e400'; expected a finite number"),
        ([str(SAMPLE), "--system-gb", "-1"], "--system-gb is -1; expected a number from 0 on"),
        ([str(SAMPLE), "--batch", "9" * 400], "expected a whole number of 64 bits"),
        ([str(SAMPLE), "--engine", "trt"], "has no engine 'trt'; it has ort-fp32"),
    ],
)
def test_mistakes_are_one_line(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(options) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and told in captured.err
