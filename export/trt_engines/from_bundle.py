"""Builds TensorRT engines from a bundle's graphs, on the machine that runs them; needs no torch and no checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.staging import make_working_folder
from runtime.bundle.reference import read_reference
from runtime.bundle.store import Bundle, Engine, read, verify_files
from runtime.contract import Contract
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
    left_out: list[UserError] = []
    graphs = list_graphs(bundle, library.list_dialects() if dialect == "auto" else (dialect,), precision)
    for origin in graphs:
        files = [bundle.path / name for name in list_graph_files(origin)]
        verify_files(bundle, replace(origin, files={file.name: origin.files[file.name] for file in files}), "always")
        try:
            plan = plan_graph(origin, files[0], bundle.contract, settings, library)
        except UserError as error:
            left_out.append(error)
            if len(left_out) == len(graphs):  # none can be built here
                raise
            report.record_engine(origin.name, f"left out, {error}", built=False, why=str(error))
            continue
        if report_missing(target, plan, report, files[0].name):
            with make_working_folder(bundle.path) as folder:
                kept = origin if fits_reference(bundle, origin, plan) else replace(origin, reference=None)
                if kept is not origin:
                    report.say(
                        f"{plan.make_stem()}: the recorded reference is wider than --max-prompt allows and is left out"
                    )
                recorded = [bundle.path / kept.reference.file] if kept.reference else []
                add(target, plan, kept, [*files, *recorded], folder, report)
    return bundle.path


def fits_reference(bundle: Bundle, origin: Engine, plan: Plan) -> bool:
    """Returns whether a planned engine's profiles take every recorded forward pass, if any."""
    if origin.reference is None:
        return True
    forwards = read_reference(bundle.path, origin.reference, bundle.contract).forwards
    widest = max(most for _, most in plan.profiles)
    return all(each.forward.input_ids.shape[1] <= widest for each in forwards)


def list_graphs(bundle: Bundle, dialects: Sequence[str], precision: str | None) -> list[Engine]:
    """Returns one engine per graph to build, all of the first dialect of `dialects` that the bundle has.

    Raises UserError, which lists the bundle's graphs, if there is none.
    """
    for dialect in dialects:
        found: dict[str, Engine] = {}
        for engine in bundle.engines:
            if engine.dialect == dialect and precision in (None, engine.precision):
                found.setdefault(list_graph_files(engine)[0], engine)
        if found:
            return [*found.values()]
    listed = ", ".join(dict.fromkeys(f"{engine.dialect} {engine.precision}" for engine in bundle.engines))
    wanted = f"{' or '.join(dialects)} {precision or ''}".strip()
    raise UserError(
        (
            f"{bundle.path} has no graph {wanted}, it has {listed}; write it on the machine with the checkpoint: "
            f"blockstep export trt --ckpt CKPT --out {bundle.path.name} --dialect {dialects[0]} --graph-only"
        )
        + (f" --precision {precision}" if precision else "")
    )


def list_graph_files(engine: Engine) -> list[str]:
    """Returns the files of an engine's graph, the .onnx file first."""
    return [engine.graph, *(name for name in engine.files if name.endswith(".data"))]


def plan_graph(origin: Engine, file: Path, contract: Contract, settings: BuilderSettings, library: TrtLibrary) -> Plan:
    """Returns the plan for a graph of the bundle; sizes that the manifest lacks are read from the graph."""
    if (known := origin.build) is not None:
        recipe = known.options.get("graph", {})
        request = GraphRequest(origin.dialect, origin.precision, known.capacity, known.batch, known.dtype, recipe)
    else:
        network = parse_network(file, library.flavor)
        capacity = network.capacity or contract.capacity
        request = GraphRequest(origin.dialect, origin.precision, capacity, network.batch, network.dtype, {})
    return make_plan(request, contract, settings, library)
