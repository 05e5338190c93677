"""Builds TensorRT engines from a bundle's graphs, on the machine that runs them; needs no torch and no checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.staging import make_working_folder
from runtime.bundle.reference import read_reference
from runtime.bundle.store import Bundle, Engine, read, verify_files
from runtime.contract import Contract
from runtime.engines.trt.chunked_prefill import choose_cuts
from runtime.errors import UserError

from .add_to_bundle import TargetBundle, add, report_missing
from .builder import BuilderSettings, parse_network
from .gpu_support import TrtLibrary
from .plan import GraphRequest, Plan, make_plan
from .report import BuildReport


def build_from_bundle(
    path: Path, dialect: str, precision: str | None, settings: BuilderSettings, library: TrtLibrary, report: BuildReport
) -> Path:
    """Builds, from a bundle's graphs, the engines that it lacks; returns the bundle's path.

    Raises UserError if none of the graphs can be built here.
    """
    bundle = read(path)
    tokenizer_text = bundle.tokenizer.read_text(encoding="utf-8")
    target = TargetBundle(bundle.path, bundle.contract, tokenizer_text, bundle.chat_template, bundle.provenance)
    failures = 0
    graph_entries = list_graph_entries(bundle, library.list_dialects() if dialect == "auto" else (dialect,), precision)
    for entry in graph_entries:
        files = [bundle.path / name for name in list_graph_files(entry)]
        verify_files(bundle, replace(entry, files={file.name: entry.files[file.name] for file in files}), "always")
        try:
            plan = plan_graph(entry, files[0], bundle.contract, settings, library)
        except UserError as error:
            failures += 1
            if failures == len(graph_entries):  # none can be built here
                raise
            report.record_engine(entry.name, f"left out, {error}", built=False, why=str(error))
            continue
        if not report_missing(target, plan, report, files[0].name):
            continue
        with make_working_folder(bundle.path) as folder:
            if not can_replay_reference(bundle, entry, plan):
                report.say(
                    f"{plan.make_stem()}: the reference is left out, since its prompts are longer than --max-prompt "
                    "and cannot be prefilled in chunks"
                )
                entry = replace(entry, reference=None)
            reference_files = [bundle.path / entry.reference.file] if entry.reference else []
            add(target, plan, entry, [*files, *reference_files], folder, report)
    return bundle.path


def can_replay_reference(bundle: Bundle, entry: Engine, plan: Plan) -> bool:
    """Returns whether a planned engine can run every recorded forward pass, at once or by chunked prefill.

    A pass that is wider than the engine's profiles can be split if no token sees tokens of a later chunk. If a prompt
    sees itself both ways (the alignment `prompt`, or no KV cache), it cannot. Returns True without a reference. Raises
    UserError if the reference cannot be read.
    """
    if entry.reference is None:
        return True
    reference = read_reference(bundle.path, entry.reference, bundle.contract)
    widest = max(most for _, most in plan.profiles)
    try:
        for recorded in reference.forwards:
            choose_cuts(recorded.forward, widest)
    except UserError:
        return False
    return True


def list_graph_entries(bundle: Bundle, dialects: Sequence[str], precision: str | None) -> list[Engine]:
    """Returns one engine entry per graph to build, all of the first dialect of `dialects` that the bundle has.

    Of engines that share a graph, the first is returned. Raises UserError, which lists the bundle's graphs, if none is
    of the dialects and the precision.
    """
    for dialect in dialects:
        entry_by_graph: dict[str, Engine] = {}
        for engine in bundle.engines:
            if engine.dialect == dialect and precision in (None, engine.precision):
                entry_by_graph.setdefault(list_graph_files(engine)[0], engine)
        if entry_by_graph:
            return [*entry_by_graph.values()]
    available = ", ".join(dict.fromkeys(f"{engine.dialect} {engine.precision}" for engine in bundle.engines))
    request = f"{' or '.join(dialects)} {precision or ''}".strip()
    raise UserError(
        (
            f"{bundle.path} has no graph {request}, it has {available}; write it on the machine with the checkpoint: "
            f"blockstep export trt --ckpt CKPT --out {bundle.path.name} --dialect {dialects[0]} --graph-only"
        )
        + (f" --precision {precision}" if precision else "")
    )


def list_graph_files(engine: Engine) -> list[str]:
    """Returns the files of an engine's graph, the .onnx file first."""
    return [engine.graph, *(name for name in engine.files if name.endswith(".data"))]


def plan_graph(entry: Engine, file: Path, contract: Contract, settings: BuilderSettings, library: TrtLibrary) -> Plan:
    """Returns the plan of the engine to build from a bundle's graph.

    entry: the graph's engine entry; file: the .onnx file, from which sizes are read if the entry has no build, as a
    graph that was written without an engine.
    """
    if (build := entry.build) is not None:
        recipe = build.options.get("graph", {})
        request = GraphRequest(entry.dialect, entry.precision, build.capacity, build.batch, build.dtype, recipe)
    else:
        network = parse_network(file, library.flavor)
        capacity = network.capacity or contract.capacity
        request = GraphRequest(entry.dialect, entry.precision, capacity, network.batch, network.dtype, {})
    return make_plan(request, contract, settings, library)
