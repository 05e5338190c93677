"""Makes a bundle with TensorRT engines from a checkpoint: traces, proves and builds one engine per capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.calibration import (
    apply_calibration,
    describe_kept_calibration,
    describe_lost_calibration,
    describe_removed_engines,
    keep_mode_order,
)
from export.contract_from_checkpoint import check_template, choose_default_out, make_export_contract
from export.provenance import EXPORTER, collect_provenance
from export.quantization.own_codes import find_own_codes_in_fp16, refuse_rounding_again
from export.staging import make_working_folder, report_write_errors
from runtime.bundle.store import Bundle, Engine, check_place
from runtime.contract import Contract
from runtime.errors import UserError
from runtime.proof.judge import Check
from train import open_checkpoint
from train.checkpoint import Checkpoint
from train.huggingface.families import Overrides
from train.torch_backend import limit_threads

from .add_to_bundle import TargetBundle, add, report_missing
from .builder import BuilderSettings
from .gpu_support import TrtLibrary
from .graphs import GraphRecipe, Graphs
from .plan import GraphRequest, Plan, make_plan
from .report import BuildReport

PRECISION = "fp16"  # the default, since there is no fused attention in fp32


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """Describes the graphs to make from a checkpoint, one engine per graph. Fields are named as `export.trt`'s options.

    overrides: how a Hugging Face directory is read. In the other fields, None means the option's default.
    """

    ckpt: Path
    overrides: Overrides
    out: Path | None
    dialect: str
    precision: str | None
    capacity: Sequence[int] | None
    batch: int | None
    top_k: int
    candidates: int
    data: Path | None


def from_checkpoint(
    wanted: GraphOptions, settings: BuilderSettings, library: TrtLibrary | None, report: BuildReport
) -> Path:
    """Builds the engines that the bundle lacks, or without a library writes only graphs; returns the bundle's path."""
    limit_threads()
    source = open_checkpoint.load(wanted.ckpt, wanted.overrides)
    out = wanted.out or choose_default_out(wanted.overrides.adapter or wanted.ckpt)
    check_template(source)
    if wanted.precision == "int4":
        # Raises UserError if weights that their directory holds quantized would be rounded a second time.
        find_own_codes_in_fp16(source, "trt" if wanted.dialect == "auto" else wanted.dialect)
    if wanted.precision == "nvfp4":
        refuse_rounding_again(source, f"{wanted.precision} for TensorRT")
    capacities: list[int | None] = [*sorted(set(wanted.capacity or ()))] or [None]
    contracts = [make_export_contract(source, capacity, wanted.top_k, wanted.candidates) for capacity in capacities]
    if not contracts[0].has_cache and (wanted.batch or 1) > 1:
        raise UserError(
            f"--batch is {wanted.batch}, but a full model sees all that it is given, also what pads a shorter "
            "sequence; give 1"
        )
    origin = collect_provenance(wanted.ckpt, wanted.overrides, source)
    shared = TargetBundle(out, contracts[-1], source.tokenizer, source.chat_template, origin)
    if (there := shared.read_bundle()) is not None:
        shared = replace(shared, contract=keep_mode_order(there, match_capacity(there, shared.contract)))
    dialect = library.list_dialects()[0] if library is not None and wanted.dialect == "auto" else wanted.dialect
    recipe = GraphRecipe(dialect, wanted.precision or PRECISION, wanted.batch or 1, wanted.data)
    for contract in contracts:
        if library is None:
            export_one(source, contract, recipe, shared, None, report)
            continue
        plan = make_plan(make_graph_request(recipe, contract), contract, settings, library)
        if report_missing(shared, plan, report):
            export_one(source, contract, recipe, shared, plan, report)
    return out


def match_capacity(there: Bundle, contract: Contract) -> Contract:
    """Returns the contract with the capacity of the existing bundle `there`, so that engines can be added to it.

    Raises UserError if the contract's own capacity is larger: the bundle's capacity cannot grow, since its other
    engines may hold no more.
    """
    longest = there.contract.capacity
    if contract.capacity > longest:
        raise UserError(
            f"{there.path} was exported with a KV-cache capacity of {longest}, {contract.capacity} is more; give "
            f"--capacity {longest} or less, or --out another bundle"
        )
    return replace(contract, capacity=longest)


def make_graph_request(recipe: GraphRecipe, contract: Contract) -> GraphRequest:
    """Returns a description of the graph that a recipe and a contract give, for `make_plan`."""
    top = {"top_k": contract.top_k} if contract.top_k else {}  # left out if 0: the plan of an older graph lacks it
    top |= {"candidates": contract.candidates} if contract.candidates else {}
    values = recipe.describe(EXPORTER) | top
    return GraphRequest(recipe.dialect, recipe.precision, contract.capacity, recipe.batch, recipe.row.dtype, values)


def export_one(
    source: Checkpoint,
    contract: Contract,
    recipe: GraphRecipe,
    shared: TargetBundle,
    plan: Plan | None,
    report: BuildReport,
) -> None:
    """Writes and proves a graph; then builds its engine, or keeps only the graph if there is no plan.

    Raises UserError, before any work, if the bundle cannot take the engine.
    """
    engine = plan.make_engine(plan.make_stem(), "", {}, plan.build("")) if plan else make_graph_entry(recipe, contract)
    engine = replace(engine, decision_temperature=source.decoding.decision_temperature)
    with report_write_errors(shared.path):
        check_place(shared.path, shared.contract, engine, shared.provenance)
    graphs = Graphs(source, contract, recipe)
    with make_working_folder(shared.path) as folder:
        with report_write_errors(shared.path):
            ranges = graphs.calibrate(folder)
            files = graphs.write(folder, ranges)
        parity: dict[str, Any] = {}
        for check in graphs.prove(files[0], folder, ranges):
            parity[check.name] = check.detail
            if not report.check(check.name, check.ok, check.detail):
                return
        with report_write_errors(shared.path):
            made = graphs.record(engine, files[0], folder, plan.settings.max_prompt if plan else None, ranges)
        check = (
            made.check if made else Check("reference", True, "none: nothing bounds calibrated activations by layers")
        )
        parity[check.name] = check.detail
        if not report.check(check.name, check.ok, check.detail):
            return
        files += [made.file] if made else []
        origin = replace(engine, model=files[0].name, parity=parity, reference=made.entry if made else None)
        kept = apply_calibration(shared.read_bundle(), shared.contract, origin)  # as `shared.write` stores it
        notes = [
            *describe_kept_calibration(origin, kept),
            *describe_lost_calibration(shared.path, kept, shared.provenance),
            *describe_removed_engines(shared.path, kept, shared.provenance),
        ]
        if plan is not None:
            added = add(shared, plan, origin, files, folder, report)
        else:
            with report_write_errors(shared.path):
                shared.write(origin, files)
                report.record_engine(engine.name, f"graph written to {shared.path}", built=False, file=files[0].name)
            added = True
        for line in notes if added else ():
            report.say(line)


def make_graph_entry(recipe: GraphRecipe, contract: Contract) -> Engine:
    """Returns a bundle's engine entry for a graph alone, from which TensorRT engines can be built.

    ONNX Runtime on the CPU runs it too, if it has the graph's operators.
    """
    batch = f"-b{recipe.batch}" if recipe.batch > 1 else ""
    name = f"{recipe.dialect}-{recipe.precision}-{contract.capacity}{batch}"
    return Engine(name, recipe.dialect, recipe.precision, "any", None, "", {}, {})
