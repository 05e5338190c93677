"""What docs/scale.md says is computed: its tables again, from the counts that runtime.roofline has."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from runtime.perf.data_sheets import DEVICES, Device
from runtime.perf.op_counts import SHAPES, PassSize

PAGE = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
SHAPE = SHAPES["llada-8b"]
PROMPT, ANSWER, PAST, ACCEPTED = 128, 256, 256, 2.3
PEAK, EFFICIENCY, UTILIZATION = 2 * 10_000_000 / 86_400, 0.6, 0.4
WATTS = {"agx-orin": 60, "thor": 130, "rtx-4090": 450, "rtx-5090": 575, "h200": 700}


def table(heading: str) -> list[list[str]]:
    """The rows of the first table behind a heading, without its own two lines."""
    lines = PAGE.split(f"\n## {heading}", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def ms(device: Device, precision: str, forward: PassSize) -> float:
    return device.estimate_ms(device.count_work(SHAPE, precision, forward), precision)


def test_the_fleets() -> None:
    rows = table("2.")
    assert len(rows) == 9
    for name, precision, width, batch, step, seconds, rate, devices, kilowatts in rows:
        device, b, w = DEVICES[name], int(batch), int(width)
        one = ms(device, precision, PassSize(b, w, PAST, w))
        forwards = ANSWER / (ACCEPTED if w > 1 else 1)
        took = (ms(device, precision, PassSize(b, PROMPT, 0, 1)) + forwards * one) / 1000 / EFFICIENCY
        fleet = math.ceil(PEAK * took / b)
        assert [step, seconds, rate] == [f"{one:.3g}", f"{took:.2f}", f"{b / took:.2f}"], name
        assert [devices, kilowatts] == [f"{fleet:,}", f"{fleet * WATTS[name] / 1000:.0f}"], name


def test_where_blocks_stop_paying() -> None:
    rows = table("3.")
    assert len(rows) == 16
    for name, width, *costs in rows:
        device, w = DEVICES[name], int(width)
        for batch, cost in zip((1, 4, 8, 16, 32, 64, 128), costs, strict=True):
            ratio = ms(device, "fp16", PassSize(batch, w, PAST, w)) / ms(device, "fp16", PassSize(batch, 1, PAST, 1))
            shown = f"**{ratio:.2f}**" if ratio >= ACCEPTED else f"{ratio:.2f}"
            assert cost == shown, (name, width, batch)


@pytest.mark.parametrize(
    ("what", "hours"), [("collecting", 256 * 1e5), ("training, LoRA", 7 * 1.6e6), ("training, all weights", 9 * 1.6e6)]
)
def test_the_hours_of_distilling(what: str, hours: float) -> None:
    forward = ms(DEVICES["h200"], "fp16", PassSize(1, PROMPT + ANSWER, 0, ANSWER, False))
    total = hours * forward / 3.6e6 / UTILIZATION
    assert re.search(rf"^\| {what}\b.*\| {total:.0f} \|$", PAGE, re.M), (what, total)


def test_the_bytes_of_trajectories() -> None:
    each = (
        ANSWER * (4 + 2 + 2 * SHAPE.hidden) + 4 * PROMPT
    )  # as train.data.trajectories writes them: ids, order, hidden
    assert f"{each / 1e6:.1f} MB" in PAGE and f"{each * 1e5 / 1e9:.0f} GB" in PAGE
    assert f"{ANSWER * 2 * SHAPE.vocab / 1e6:.0f} MB" in PAGE
    assert f"{SHAPE.vocab / SHAPE.hidden:.0f} times as much" in PAGE
    assert f"{SHAPE.cached * 2:,} bytes" in PAGE
