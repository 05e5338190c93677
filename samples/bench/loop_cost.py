"""Measures the decode loop's cost per forward pass: the host's time in answers of the stand-in checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.contract import Contract, GateSpec
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.model import Model
from runtime.perf.latency import time_answers

from .contender import make_tokens

PROMPT, BLOCKS, ACCEPTED = 256, 2, 8  # tokens before the answer, its blocks, tokens accepted per step
ANSWERS = 3


def measure_host_ms(model: str, contract: Contract, threads: int) -> dict[str, float]:
    """Returns host milliseconds per forward pass: p10, median and p90 of ANSWERS answers after an uncounted one."""
    gate = GateSpec(rule="count", min=ACCEPTED)
    without_text: Any = None
    made = Model(OrtBackend(Path(model), contract, threads), without_text, gate, "stand-in", "")
    request = Request(make_tokens(PROMPT), DecodeOptions(BLOCKS * contract.block))
    found: dict[str, float] = time_answers(made, [request], ANSWERS)["host_ms_per_forward"]
    return found
