"""Measures the section `step`: one step of a shape in this project and in others, next to this machine's limit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from export import contract_from_checkpoint
from export.graph import ort_graph
from runtime.errors import describe_error
from runtime.perf.data_sheets import Device
from runtime.perf.op_counts import WEIGHT_SIZES, ModelShape, PassSize

from .contender import Cell, Contender
from .loop_cost import measure_host_ms
from .onnx_step import OnnxStep
from .race import race
from .ratios import LONG, MIDDLE, SHORT, WITH_CANDIDATES, compare_loop, compute_ratios
from .standin import make_standin
from .torch_step import TorchStep

TORCH = (("fp32", False), ("bf16", False), ("bf16", True))
LLAMA = ("Q8_0", "Q4_0")
CANDIDATES = 64  # candidates per row of the graph that is exported for decisions
SAME = Cell(32, 0)  # a cell at which all contenders compute the same, since their KV caches are empty


@dataclass(frozen=True, slots=True)
class Plan:
    """Describes the race: widths and pasts in tokens, rounds of `steps` steps, threads.

    only: words, of which a contender's name has to contain one; empty for all contenders.
    """

    shape: ModelShape
    widths: tuple[int, ...]
    pasts: tuple[int, ...]
    rounds: int
    steps: int
    threads: int
    only: tuple[str, ...]

    @property
    def groups(self) -> list[list[Cell]]:
        """Returns groups: each width and past, by ascending past, so that KV caches only grow; last two capacities."""
        widest = max(self.widths)
        grid = [[Cell(width, past)] for past in sorted(self.pasts) for width in self.widths]
        return [*grid, [Cell(widest, 0, SHORT), Cell(widest, 0, LONG)]]

    def wants(self, name: str) -> bool:
        return not self.only or any(word in name for word in self.only)


def measure(plan: Plan, device: Device, folder: Path) -> dict[str, Any]:
    """Runs the race, with its files in `folder`.

    Returns rows with this machine's limit, the contenders that were left out, and the ratios.
    """
    missing: dict[str, str] = {}
    entered = [
        *export_contenders(plan, folder),
        *make_torch_contenders(plan),
        *make_llama_contenders(plan, folder, missing),
    ]
    result = race(entered, plan.groups, plan.rounds, plan.steps)
    rows = [{**row, **compute_limit(plan.shape, row, device)} for row in result.rows]
    host = measure_loops([each for each in entered if each.ours and each.name in result.about], missing)
    return {
        "shape": asdict(plan.shape), "rounds": plan.rounds, "steps_a_round": plan.steps, "contenders": result.about,
        "left_out": missing | result.failed, "same_tokens": list(count_agreement(rows)),
        "ratios": [*compute_ratios(rows, plan.shape, device), *compare_loop(rows, host)], "host_ms_per_forward": host,
        "rows": [{name: value for name, value in row.items() if name != "best"} for row in rows],
    }  # fmt: skip


def export_contenders(plan: Plan, folder: Path) -> Iterator[Contender]:
    """Yields this project in every precision that export.onnx writes, and a graph for candidates that gets none."""
    source = make_standin(plan.shape)
    kinds = [(precision, 0) for precision in ort_graph.ORT_PRECISIONS] + [("fp32", CANDIDATES)]
    for precision, candidates in kinds:
        name = WITH_CANDIDATES if candidates else f"blockstep {precision}"
        if plan.wants(name):
            print(f"exporting {name} ...", file=sys.stderr, flush=True)
            contract = contract_from_checkpoint.make_export_contract(source, LONG, candidates=candidates)
            where = folder / f"{precision}-{candidates}"
            where.mkdir()
            model = ort_graph.write_ort_graph(source, contract, precision, where)[0]
            options = {"model": str(model), "contract": contract, "threads": plan.threads}
            yield Contender(name, OnnxStep, options, ours=True, precision=precision)


def make_torch_contenders(plan: Plan) -> Iterator[Contender]:
    """Yields the reference model in PyTorch; compiled, it runs at one past only, as compiling takes far longer."""
    near = min(plan.pasts, key=lambda past: abs(past - MIDDLE))
    for precision, compiled in TORCH:
        name = f"PyTorch {'compiled' if compiled else 'eager'} {precision}"
        if plan.wants(name):
            options = {"shape": plan.shape, "precision": precision, "compiled": compiled, "threads": plan.threads}
            yield Contender(name, TorchStep, options, past=near if compiled else None)


def make_llama_contenders(plan: Plan, folder: Path, missing: dict[str, str]) -> Iterator[Contender]:
    """Yields llama.cpp over the same weights, if it is installed."""
    names = {f"llama.cpp {kind}": kind for kind in LLAMA if plan.wants(f"llama.cpp {kind}")}
    if lacking := [package for package in ("llama_cpp", "gguf") if find_spec(package) is None]:
        reason = f"{' and '.join(lacking)} not installed; pip install '.[bench]' builds it with a C++ compiler"
        missing.update(dict.fromkeys(names, reason))
        return
    from . import gguf_file
    from .llama_step import LlamaStep

    for name, kind in names.items():
        print(f"writing {name} ...", file=sys.stderr, flush=True)
        model = folder / f"{kind}.gguf"
        gguf_file.write(make_standin(plan.shape), kind, model)
        yield Contender(name, LlamaStep, {"model": str(model), "vocab": plan.shape.vocab, "threads": plan.threads})


def measure_loops(ours: Sequence[Contender], missing: dict[str, str]) -> dict[str, dict[str, float]]:
    """Returns host milliseconds per forward pass, by name; each in a process of its own, one after the other."""
    found = {}
    for contender in tqdm(ours, unit="engine", desc="host", disable=None):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                found[contender.name] = pool.submit(measure_host_ms, **contender.options).result()
            except Exception as error:  # an error here must not lose the race's results
                reason = describe_error(error, 300)
                missing[f"the host's loop over {contender.name}"] = f"{type(error).__name__}: {reason}"
    return found


def compute_limit(shape: ModelShape, row: dict[str, Any], device: Device) -> dict[str, float]:
    """Returns the least ms that this machine needs for a row of ours, in its precision; nothing for other engines."""
    if row["precision"] not in WEIGHT_SIZES:
        return {}
    load = device.count_work(shape, row["precision"], PassSize(1, row["width"], row["past"], row["width"]))
    memory, compute = device.estimate_memory_ms(load), device.estimate_compute_ms(load, row["precision"])
    return {"memory_ms": memory, "compute_ms": compute, "limit_ms": max(memory, compute)}


def count_agreement(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields, per contender, how many top-1 tokens of a step with an empty KV cache equal those of PyTorch in fp32.

    This shows that all contenders do the same work.
    """
    at = {row["contender"]: row["best"] for row in rows if Cell(row["width"], row["past"], row["capacity"]) == SAME}
    reference = at.get("PyTorch eager fp32")
    for name, best in at.items() if reference else ():
        same = sum(one == other for one, other in zip(best, reference, strict=True))
        yield {"contender": name, "same": same, "of": len(best)}
