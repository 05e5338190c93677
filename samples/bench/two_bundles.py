"""Times the step of two bundles of one checkpoint, exported without and with candidates, by turns in one process.

    python -m samples.bench.two_bundles build/plain.bundle build/decide.bundle --rounds 200

It shows what a bundle for decisions costs when it generates: no step has candidates. The first bundle is loaded twice,
and the ratio of its two copies shows how much of the other ratio is noise. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from runtime import Model
from runtime.bundle.store import read
from runtime.cli import DONE, ENGINE_OPTIONS, Parser, add_options, at_least_1, load_model, print_json, run
from runtime.contract import Contract
from runtime.errors import UserError
from runtime.perf.conditions import describe_conditions
from runtime.perf.latency import block_steps, percentiles, timed_by_turns

from .contender import PAUSE, WARMUP

NAMES = ("without", "without, again", "with")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: compare(options(argv)))


def compare(args: argparse.Namespace) -> int:
    """Loads the bundles, measures, prints."""
    check_checkpoints(args.plain, args.deciding)
    paths = (args.plain, args.plain, args.deciding)
    models = [load_model(argparse.Namespace(**{**vars(args), "bundle": path})) for path in paths]
    check_models(models[0], models[-1])
    conditions = describe_conditions(models[0], "none", None, args.rounds, WARMUP)
    found = {"conditions": conditions, "candidates": models[-1].contract.candidates, "steps": []}
    print("timing steps ...", file=sys.stderr)
    found["steps"] = [*steps(models, args.rounds)]
    if args.json:
        print_json(found)
    else:
        print("\n".join(report(found)))
    return DONE


def check_checkpoints(plain: Path, deciding: Path) -> None:
    """Raises UserError if the bundles are not of one checkpoint."""
    hashes = [read(path).provenance.get("checkpoint_sha256") for path in (plain, deciding)]
    if hashes[0] is None or hashes[0] != hashes[1]:
        raise UserError(f"{plain} and {deciding} are of different checkpoints; export the same one twice")


def check_models(plain: Model, deciding: Model) -> None:
    """Raises UserError if the models differ in anything but the candidates of the second."""
    counts = plain.contract.candidates, deciding.contract.candidates
    if counts[0] or not counts[1]:
        what = "give one exported without --candidates, then one with"
        raise UserError(f"the bundles have {counts[0]} and {counts[1]} candidates; {what}")
    if plain.engine != deciding.engine:
        raise UserError(f"the engines are {plain.engine} and {deciding.engine}; name one that both have with --engine")
    ours, theirs = plain.contract, replace(deciding.contract, candidates=0)
    for name in (field.name for field in fields(Contract)):
        if getattr(ours, name) != getattr(theirs, name):
            values = f"{getattr(ours, name)} and {getattr(theirs, name)}"
            raise UserError(f"the bundles have {name} {values}; export both with the same options but --candidates")


def steps(models: Sequence[Model], rounds: int) -> Iterator[dict[str, Any]]:
    """Yields, per place in the capacity, the ms of each model's step, and their ratios to the first's in the same
    round."""
    for step in block_steps(models[0].contract):
        past, width = int(step.past_length[0]), step.input_ids.shape[1]
        for model in models:
            model.backend.open(1, past + width)
        works = [partial(model.backend.forward, step) for model in models]
        seconds = timed_by_turns(works, rounds, WARMUP, PAUSE)
        ms = {name: asdict(percentiles(1000 * own)) for name, own in zip(NAMES, seconds, strict=True)}
        ratios = {name: asdict(percentiles(own / seconds[0])) for name, own in zip(NAMES[1:], seconds[1:], strict=True)}
        yield {"past": past, "width": width, "rows": step.rows.shape[1], "ms": ms, "ratio": ratios}


def report(found: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the plain report."""
    shown = ("processor", "cores", "threads", "engine", "backend", "block", "capacity")
    yield ", ".join(f"{name} {found['conditions'][name]}" for name in shown)
    yield f"without candidates, and with up to {found['candidates']} per row, of which the steps have none"
    for step in found["steps"]:
        yield ""
        yield f"{'past ' + str(step['past']) + ', width ' + str(step['width']):<34}{'p10':>9}{'median':>9}{'p90':>9}"
        for what, rows in (("ms", step["ms"]), ("ratio", step["ratio"])):
            for name, row in rows.items():
                yield f"{what + ', ' + name:<34}" + "".join(f"{row[part]:>9.3f}" for part in ("p10", "median", "p90"))


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    p = Parser(prog="python -m samples.bench.two_bundles", description=(__doc__ or "").splitlines()[0])
    p.add_argument("plain", type=Path, metavar="PLAIN", help="bundle that was exported without --candidates")
    p.add_argument("deciding", type=Path, metavar="DECIDING", help="bundle of the same checkpoint with --candidates")
    p.add_argument("--rounds", type=at_least_1, default=100, metavar="N", help="timed steps of each (default: 100)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(p, ENGINE_OPTIONS)
    return p.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
